#!/usr/bin/env bash
# History of commits that nobody measured at their time: ci/seed_history.sh [COMMITS] [MINUTES] [STORE], on a quiet machine.
# The kernels of each of the last first parents are timed by this checkout's method, beside the oldest of them.
set -euo pipefail
cd "$(dirname "$0")/.."
commits=$(git rev-list --first-parent --reverse -n "${1:-30}" HEAD)
oldest=$(head -1 <<< "$commits")
for commit in $commits; do
    .venv/bin/m2check nightly run --build "$commit" --against "$oldest" --provider ours --seconds 0.4 \
        --budget "${2:-3}" --store "${3:-runs/nightly}" || echo "$commit was not measured" >&2
done
.venv/bin/m2check dash build --store "${3:-runs/nightly}"
