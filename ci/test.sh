#!/usr/bin/env bash
# Tests: every suite but the benchmarks; two workers of one thread each, on any machine the same.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
# A choice of tests executes a part of the cells; the whole must execute all that suites/expected names.
(($#)) || set -- --expected
exec .venv/bin/python -m pytest -n 2 --hypothesis-profile=ci --ignore-glob='*/bench_*.py' "$@"
