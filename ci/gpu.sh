#!/usr/bin/env bash
# GPU lane on a host without network: uses the Python and the torch that are there (ci/constraints/gpu.txt). A worker a
# core, of one thread, as long as each has 5 GB of the GPU. Compiled kernels stay in ~/.triton and ~/.cache/minimax_m2,
# or where TRITON_CACHE_DIR and MINIMAX_M2_CACHE say: keep both between runs.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
export OMP_NUM_THREADS=1
"$PYTHON" -m pip install -e . --no-deps --no-build-isolation
# nproc counts threads, where somebody limits them.
cores=$(env -u OMP_NUM_THREADS nproc)
# Without nvidia-smi there is no GPU: levels G0 and G1 are shown, the others say what is missing.
room=$(nvidia-smi --id=0 --query-gpu=memory.free --format=csv,noheader,nounits 2>/dev/null || echo $((5000 * cores)))
workers=$((room / 5000 < cores ? room / 5000 : cores))
huge=suites/kernels/test_gpu_huge.py failed=0
"$PYTHON" -m pytest -m gpu -n "$workers" --dist worksteal --ignore "$huge" --ignore-glob='*/bench_*.py' \
    suites suites/drift "$@" || failed=1
# One test at a time: what takes 20 GB, and ranks over NCCL, of which tests say so where there are fewer than two GPUs.
"$PYTHON" -m pytest -m gpu "$huge" suites/parallel "$@" || failed=1
exit $failed
