#!/usr/bin/env bash
# The compilers behind the NPU levels N1 to N3, in .npu/: no torch, no CANN, no device; about 1 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PINS=ci/constraints/npu.txt
stamp=.npu/installed-$(cksum <"$PINS" | cut -d ' ' -f 1)
mlir=${MINIMAX_M2_MLIR:-/usr/lib/llvm-19/bin}

if [[ ! -e $stamp ]]; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
        echo "$PYTHON is $("$PYTHON" --version); the wheels are for Python 3.11: PYTHON=python3.11 make npu-toolchain" >&2
        exit 2
    }
    rm -rf .npu
    "$PYTHON" -m venv .npu
    .npu/bin/pip install -q -r "$PINS"
    touch "$stamp"
fi
if [[ ! -x $mlir/mlir-opt ]]; then
    apt=(apt-get install -y --no-install-recommends mlir-19-tools)
    if ((EUID == 0)) && command -v apt-get >/dev/null; then
        apt-get update -qq && "${apt[@]}"
    else
        echo "as root: ${apt[*]}" >&2
    fi
fi
