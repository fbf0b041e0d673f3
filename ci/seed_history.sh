#!/usr/bin/env bash
# History of commits that nobody measured at their time, on a quiet machine:
#   ci/seed_history.sh [COMMITS] [MINUTES] [STORE] [ARGUMENTS of m2check nightly run, --op routing say]
# The last first parents that changed a CPU kernel, timed by this checkout's method beside the oldest of them:
# between two of them no time can have moved.
set -euo pipefail
cd "$(dirname "$0")/.."
commits=$(git rev-list --first-parent --reverse -n "${1:-30}" HEAD -- kernels/cpu kernels/schema)
oldest=$(head -1 <<< "$commits")
for commit in $commits; do
    .venv/bin/m2check nightly run --build "$commit" --against "$oldest" --provider ours --seconds 0.4 \
        --budget "${2:-3}" --store "${3:-runs/nightly}" "${@:4}" || echo "$commit was not measured" >&2
done
.venv/bin/m2check dash build --store "${3:-runs/nightly}"
