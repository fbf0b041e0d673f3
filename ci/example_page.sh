#!/usr/bin/env bash
# The page that docs show, of real records alone: thirty commits timed by ci/seed_history.sh, one H200, drift reports.
set -euo pipefail
cd "$(dirname "$0")/.."
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT
.venv/bin/m2check nightly add ci/results/nights-*.jsonl.gz ci/results/gpu-h200-*-pairs.jsonl --store "$store"
reports=()
for report in ci/results/drift-{ours,transformers,vllm-cpu}-*.json; do reports+=(--drift "$report"); done
.venv/bin/m2check dash build --store "$store" "${reports[@]}" --out "${1:-docs/nightly.html}"
