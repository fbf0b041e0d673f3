"""Speed of add_rms_norm, on verified outputs."""

from __future__ import annotations

from minimax_m2.harness.bench import Timed


def bench_decode(timed: Timed) -> None:
    timed("add_rms_norm", "decode")


def bench_prefill(timed: Timed) -> None:
    timed("add_rms_norm", "prefill")
