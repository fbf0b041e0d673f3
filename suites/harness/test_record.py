"""Records read back as they were written, and say what is wrong with what is not one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import Record, Timing, find_case, read
from minimax_m2.harness.report import page
from minimax_m2.harness.summary import lines


@pytest.fixture(scope="module")
def record() -> Record:
    return Record.of(judge(find_op("routing").case(T=3), plain()), run="20260101T000000Z")


def test_a_record_survives_its_json(record: Record) -> None:
    assert Record.from_json(record.json) == record


@pytest.mark.parametrize(
    ("change", "told"),
    [({"schema": 0}, "schema"), ({"outcome": "fine"}, "unknown outcome 'fine'"), ({"speed": 3}, "adds fields")],
)
def test_what_is_not_a_record_is_refused_by_name(record: Record, change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Record.from_json(json.dumps(json.loads(record.json) | change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"timing": {"median_us": 3.0}}, "timing: .*missing"),
        ({"canary": {"copy_gbps": 0, "gemm_gflops": 1.0}}, "canary.copy_gbps=0 is no time or speed"),
        ({"canary": {"copy_gbps": float("nan"), "gemm_gflops": 1.0}}, "no finite number"),
        ({"paired": {"ratio": 1.0}}, "paired is .*it has against"),
        ({"utilisation": -0.5}, "utilisation=-0.5 is no share of a budget"),
        ({"purpose": "party"}, "purpose='party' is none of run, bench"),
        ({"machine": {"threads": [2]}}, "machine=.*wrong type"),
        ({"provider": None}, "provider=None is of the wrong type"),
        ({"evidence": "wrong"}, "no list of sentences"),
    ],
)
def test_a_value_that_no_record_has_is_refused_by_name(record: Record, change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Record.from_json(json.dumps(json.loads(record.json) | change))


def test_a_truncated_line_is_refused(record: Record) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        Record.from_json(record.json[:-5])


def test_records_of_the_schemas_before_are_read(record: Record) -> None:
    old = json.loads(record.json) | {"schema": 2}
    del old["bits"]
    assert Record.from_json(json.dumps(old | {"schema": 3})) == replace(record, bits="")
    for name in ("purpose", "code", "canary", "paired"):
        del old[name]
    assert Record.from_json(json.dumps(old)) == replace(record, bits="", code={})
    del old["kind"]
    assert Record.from_json(json.dumps(old | {"schema": 1})) == replace(record, bits="", code={})


@pytest.mark.parametrize("samples", [[0.0], [-1], "12", [1.0] * 13, [1e999], [True]])
def test_raw_times_that_are_none_are_refused(record: Record, samples: object) -> None:
    timed = replace(record, timing=Timing(
        shape="decode", call="routing", median_us=4.0, best_us=3.0, calls=9, bytes=1, flops=1, roof_us=1.0,
        samples_us=(4.0, 5.0),
    ))  # fmt: skip
    assert Record.from_json(timed.json) == timed
    bad = json.loads(timed.json)
    bad["timing"]["samples_us"] = samples
    with pytest.raises(ValueError, match=r"samples_us.* is no list of up to 12 times"):
        Record.from_json(json.dumps(bad))


def test_a_half_written_last_line_is_reported_and_the_others_are_read(record: Record, tmp_path: Path) -> None:
    path, said = tmp_path / "run.jsonl", list[str]()
    path.write_text(record.json + "\n" + record.json[:-5])
    assert read(path, report=said.append) == [record]
    assert "line 2: half-written" in said[0]
    assert find_case(record.case_id, tmp_path, report=said.append).id == record.case_id


def test_a_broken_line_elsewhere_is_an_error_with_its_place(record: Record, tmp_path: Path) -> None:
    path, said = tmp_path / "run.jsonl", list[str]()
    path.write_text(record.json[:-5] + "\n" + record.json + "\n")
    with pytest.raises(ValueError, match=r"line 1: .*not JSON"):
        read(path)
    (tmp_path / "earlier.jsonl").write_text(record.json + "\n")
    assert find_case(record.case_id, tmp_path, report=said.append).id == record.case_id
    assert "run.jsonl, line 1" in said[0]


def test_a_case_is_found_again_by_its_id(record: Record, tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text(record.json + "\n")
    assert find_case(record.case_id, tmp_path).id == record.case_id


def test_a_page_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="records is empty"):
        page([], absent=[])


def test_hostile_names_are_escaped_in_the_page(record: Record) -> None:
    fields = json.loads(record.json) | {"provider": "<script>alert(1)</script>"}
    assert "<script>" not in page([Record.from_json(json.dumps(fields))], absent=["gpu: <b>"])


def test_a_page_tells_the_card_of_a_cell_and_which_pairs_met(record: Record) -> None:
    text = page([replace(record, determinism="D0+ D1-")], absent=[])
    assert "D0+ D1-" in text
    assert "Pairs of values" in text


def test_one_wrong_case_makes_a_cell_wrong(record: Record) -> None:
    wrong = Record.from_json(json.dumps(json.loads(record.json) | {"outcome": "wrong", "utilisation": 7.0}))
    (line,) = lines([record, wrong])
    assert line.verdict == "wrong"
    assert line.worst == 7.0
