#!/usr/bin/env bash
# Peers: the wheels of a list, each below .peers/, without what they depend on: ci/peers.sh [LIST] [pip's options]
set -euo pipefail
cd "$(dirname "$0")/.."
list=ci/constraints/peers.txt
[[ ${1:-} == *.txt ]] && { list=$1; shift; }
grep -v '^#' "$list" | while read -r wheel with; do
    folder=.peers/${wheel%%==*}
    [[ -e $folder/$wheel ]] && continue
    rm -rf "$folder"
    # shellcheck disable=SC2086  # a list of requirements
    .venv/bin/pip install -q --no-deps "$@" --target "$folder" $wheel $with || { echo "$wheel: not here"; continue; }
    touch "$folder/$wheel"
done
