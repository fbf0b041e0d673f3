#!/usr/bin/env bash
# GPU lane on a host without network: uses the Python and the torch that are there (ci/constraints/gpu.txt).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
"$PYTHON" -m pip install -e . --no-deps --no-build-isolation
"$PYTHON" -m pytest -m gpu suites "$@"
# Ranks over NCCL; where there are fewer than two GPUs its tests say so.
exec "$PYTHON" -m pytest -m gpu suites/parallel "$@"
