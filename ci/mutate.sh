#!/usr/bin/env bash
# Mutation of the harness itself, hours for all of it; arguments as in harness/self_mutation.py.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
.venv/bin/python -c 'import cosmic_ray' 2>/dev/null || .venv/bin/pip install -q -c ci/constraints/cpu.txt '.[mutation]'
exec .venv/bin/python -m minimax_m2.harness.self_mutation "$@"
