#!/usr/bin/env bash
# Sampled cases of every op through kernels built with ASan and UBSan, on each instruction set of this machine.
# More: ci/sanitize.sh --cases 60, or --op routing. The first report ends the run with what was read, where and by whom.
set -euo pipefail
cd "$(dirname "$0")/.."
export MINIMAX_M2_SANITIZE=1 MINIMAX_M2_CACHE="$PWD/build/sanitized" OMP_NUM_THREADS=2
.venv/bin/python -c 'from minimax_m2.kernels.cpu import extension; extension.build_all(print)'
(($#)) || set -- --cases 24
# Python and torch are not instrumented: their runtimes come first, and what they leave behind is not ours to report.
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    exec .venv/bin/m2check run --with ours --no-times --no-model "$@"
