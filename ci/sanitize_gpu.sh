#!/usr/bin/env bash
# Our GPU kernels under compute-sanitizer: ci/sanitize_gpu.sh [TOOL], memcheck unless it says racecheck, initcheck or
# synccheck. OPS="routing swiglu" picks ops, CASES how many cases of each. On a host without network as ci/gpu.sh says.
set -euo pipefail
cd "$(dirname "$0")/.."
only=()
for op in ${OPS:-}; do only+=(--op "$op"); done
compute-sanitizer --tool "${1:-memcheck}" --error-exitcode 9 \
    "${PYTHON:-python3}" -m minimax_m2.harness.cli run --with ours --device gpu --cases "${CASES:-6}" \
    --no-times --no-model --shrink 0 "${only[@]}"
