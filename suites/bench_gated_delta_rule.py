"""Speed of gated_delta_rule, on verified outputs."""

from __future__ import annotations

from minimax_m2.harness.bench import Timed


def bench_decode(timed: Timed) -> None:
    timed("gated_delta_rule", "decode")


def bench_prefill(timed: Timed) -> None:
    timed("gated_delta_rule", "prefill")
