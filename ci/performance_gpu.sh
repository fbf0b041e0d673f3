#!/usr/bin/env bash
# Compares ours with each peer on the rows that docs/performance.md shows for a GPU: ci/performance_gpu.sh FILE.jsonl [SECONDS]
# On a host without network as ci/gpu.sh says: the Python and the torch that are there.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m minimax_m2.harness.comparisons ci/performance_gpu.txt "$1" "${2:-1}"
