#!/usr/bin/env bash
# Peers: the wheels of ci/constraints/peers.txt, each below .peers/, without what they depend on.
set -euo pipefail
cd "$(dirname "$0")/.."
grep -v '^#' ci/constraints/peers.txt | while read -r wheel with; do
    folder=.peers/${wheel%%==*}
    [[ -e $folder/$wheel ]] && continue
    rm -rf "$folder"
    # shellcheck disable=SC2086  # a list of requirements
    .venv/bin/pip install -q --no-deps "$@" --target "$folder" $wheel $with || { echo "$wheel: not here"; continue; }
    touch "$folder/$wheel"
done
