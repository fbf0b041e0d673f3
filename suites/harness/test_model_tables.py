"""The tables of docs/models_gpu.md are those of their records: verdicts, steps, and why a load was not timed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minimax_m2.harness.model_tables import (
    HEADERS,
    caption,
    forms_table,
    language_table,
    layer_table,
    model_table,
    proof_table,
    read_model_steps,
)

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "ci" / "results").glob("gpu-*-model.jsonl"))
PAGE = (ROOT / "docs" / "models_gpu.md").read_text()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_page_has_what_the_records_give(path: Path) -> None:
    records = read_model_steps(path)
    tables = [proof_table(records), *(model_table(records, phase) for phase in HEADERS), layer_table(records)]
    assert [table for table in tables if table and f"{caption(records, path)}\n{table}\n" not in PAGE] == []


def test_the_page_has_every_form_of_a_layer_that_was_tried() -> None:
    assert forms_table(ROOT / "ci" / "results" / "gpu-h200-20261123-layer.jsonl") in PAGE


def test_the_page_has_what_a_trained_model_made_of_a_text() -> None:
    assert language_table(ROOT / "ci" / "results" / "gpu-h200x2-20261122-ranks.jsonl") in PAGE


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_model_is_timed_only_behind_a_proof_that_passed(path: Path) -> None:
    records = read_model_steps(path)
    proven = {(r.case["layers"], r.case["tp"], r.case["sums"]) for r in records if r.kind == "model proof" and r.passed}
    assert {(r.case["layers"], r.case["tp"], r.case["sums"]) for r in records if r.timing} <= proven
    assert all(record.passed or record.outcome == "unsupported" for record in records)


def test_a_step_shows_tokens_of_all_sequences_and_a_load_that_does_not_fit_its_reason() -> None:
    step = next(r for r in read_model_steps(RECORDS[0]) if r.timing and r.case["phase"] == "decode")
    assert step.timing is not None
    timed = replace(step, case={**step.case, "B": 8}, timing=replace(step.timing, median_us=4000.0, roof_us=1000.0))
    assert model_table([timed], "decode").endswith("| 4.00 | 2000 | 25 % |")
    left = replace(step, timing=None, evidence=["9 GB are needed"])
    assert model_table([left], "decode").endswith("| 9 GB are needed |  |  |")
