#!/usr/bin/env bash
# Sampled cases of every op through kernels built with ASan and UBSan, on each instruction set of this machine: a line
# for each, with the first report where there is one. ci/sanitize.sh RECORD.jsonl goes on where a run was cut off; more:
# --op routing, --cases 60, --jobs 4. On a host without network PYTHON=python3.
set -euo pipefail
cd "$(dirname "$0")/.."
export MINIMAX_M2_CACHE="${MINIMAX_M2_CACHE:-$PWD/build/sanitized}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
exec "${PYTHON:-.venv/bin/python}" -m minimax_m2.harness.sanitized "$@"
