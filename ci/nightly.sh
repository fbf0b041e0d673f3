#!/usr/bin/env bash
# One night: ci/nightly.sh [RECORDS...] measures, merges other machines' records, builds the page, says what moved.
set -uo pipefail
cd "$(dirname "$0")/.."
m2check=.venv/bin/m2check
"$m2check" nightly run --budget "${BUDGET:-40}" || exit
# What is no whole file is told and quarantined; the others count.
if (($#)); then "$m2check" nightly add "$@"; fi
levels=()
# What `pytest suites -m npu --levels runs/levels.jsonl` wrote, here or on another machine.
[[ -f runs/levels.jsonl ]] && levels=(--levels runs/levels.jsonl)
"$m2check" dash build --out nightly.html "${levels[@]}" || exit
"$m2check" events --format junit > events.xml
exec "$m2check" events --format markdown
