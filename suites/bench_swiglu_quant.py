"""Speed of swiglu_quant, on verified outputs."""

from __future__ import annotations

from minimax_m2.harness.bench import Timed


def bench_decode(timed: Timed) -> None:
    timed("swiglu_quant", "decode")


def bench_prefill(timed: Timed) -> None:
    timed("swiglu_quant", "prefill")
