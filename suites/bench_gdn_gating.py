"""Speed of gdn_gating, on verified outputs."""

from __future__ import annotations

from minimax_m2.harness.bench import Timed


def bench_decode(timed: Timed) -> None:
    timed("gdn_gating", "decode")


def bench_prefill(timed: Timed) -> None:
    timed("gdn_gating", "prefill")
