"""Thirty real commits, timed by ci/seed_history.sh: what made kernels faster is found where it is known to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimax_m2.harness.history.causes import Cause
from minimax_m2.harness.history.events import Event
from minimax_m2.harness.history.panel import Panel
from minimax_m2.harness.history.store import Store
from minimax_m2.harness.history.tonight import lanes_of
from minimax_m2.harness.provenance import ROOT

(NIGHTS,) = (ROOT / "ci" / "results").glob("nights-*.jsonl.gz")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Panel, list[Event]]:
    folder: Path = tmp_path_factory.mktemp("real")
    store = Store(folder)
    (added,) = store.add([NIGHTS])
    assert not added.fault
    (lane,) = lanes_of(store, accepted=folder)
    return lane


def test_every_commit_is_a_night(real: tuple[Panel, list[Event]]) -> None:
    nights = real[0].nights
    assert len({night.commit for night in nights}) == len(nights) == 30
    assert [night.height for night in nights] == sorted(night.height for night in nights)


@pytest.mark.parametrize(
    "op, shape, commit",
    [
        # "fp8_linear: pack the weight in blocks of 64 outputs"
        ("fp8_linear", "decode", "447ea9086125"),
        ("fp8_linear", "prefill", "447ea9086125"),
        # "ab77bf3 qk_norm_rope: check arguments in the binding", which spares the checks in Python
        ("qk_norm_rope", "decode", "ab77bf3"),
        # "b434c0b add_rms_norm: check arguments in the binding"
        ("add_rms_norm", "decode", "b434c0b"),
    ],
)
def test_a_faster_kernel_is_found_at_its_commit(
    real: tuple[Panel, list[Event]], op: str, shape: str, commit: str
) -> None:
    panel, events = real
    rows = {row for row, one in enumerate(panel.series) if (one.op, one.shape) == (op, shape)}
    largest = min((e for e in events if e.metric == "time" and rows & set(e.rows)), key=lambda event: event.effect)
    night = next(n for n, one in enumerate(panel.nights) if one.commit.startswith(commit))
    # A cell beside a slow machine was left out, so a step may be seen a night late.
    assert largest.ruling.cause is Cause.CODE
    assert abs(largest.night - night) <= 1


def test_no_step_of_a_clean_build_is_called_a_change_of_method(real: tuple[Panel, list[Event]]) -> None:
    assert not [event for event in real[1] if event.ruling.cause is Cause.METHOD]


def test_a_step_that_was_undone_within_its_night_asks_for_nothing(real: tuple[Panel, list[Event]]) -> None:
    undone = [event for event in real[1] if event.made_up]
    assert [event.factor for event in undone] == ["qk_norm_rope/cpu/ours/avx512_bf16/decode"]
    assert all(event.made_up and event.made_up.night == event.night for event in undone)
