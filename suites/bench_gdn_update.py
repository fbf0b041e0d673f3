"""Speed of gdn_update, on verified outputs."""

from __future__ import annotations

from minimax_m2.harness.bench import Timed


def bench_decode(timed: Timed) -> None:
    timed("gdn_update", "decode")


def bench_prefill(timed: Timed) -> None:
    timed("gdn_update", "prefill")
