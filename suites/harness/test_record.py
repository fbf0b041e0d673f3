"""Records read back as they were written, and say what is wrong with what is not one."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import QUOTED, Canary, Log, Pair, Record, Timing, find_case, read
from minimax_m2.harness.report import page
from minimax_m2.harness.roofline import Roof
from minimax_m2.harness.summary import lines

RESULTS = Path(__file__).resolve().parents[2] / "ci" / "results"
WORDS = ("run", "op", "case_id", "provider", "device", "variant", "kind", "determinism", "bits")


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
        ({"machine": {"threads": True}}, "machine=.*wrong type"),
        ({"case": [1]}, "case=.*wrong type"),
        ({"code": {"height": 1.5}}, "code=.*wrong type"),
        ({"timing": {"samples_us": [], "shape": 3}}, "timing.shape=3 is no text"),
        ({"run": 1, "op": 2}, "run=1 is of the wrong type"),
        *(({name: None}, f"{name}=None is of the wrong type") for name in WORDS),
        ({"evidence": "wrong"}, "no list of sentences"),
        ({"evidence": ["wrong", 1]}, "no list of sentences"),
        ({"utilisation": True}, "utilisation=True is no share of a budget"),
        ({"utilisation": "much"}, "utilisation='much' is no share of a budget"),
        ({"mean_z2": -1}, "mean_z2=-1 is no share of a budget"),
        ({"timing": 3}, "record of case .*: timing is '3'; it has shape, call"),
        ({"canary": {"copy_gbps": 1.0, "gemm_gflops": "fast"}}, "canary.gemm_gflops='fast' is no finite number"),
        ({"canary": {"copy_gbps": 1.0, "gemm_gflops": True}}, "canary.gemm_gflops=True is no finite number"),
        ({"canary": {"copy_gbps": 1.0, "gemm_gflops": -2.0}}, "canary.gemm_gflops=-2.0 is no time or speed"),
        (
            {"paired": {"against": 7, "log_ratio": 0.0, "low": 0.0, "high": 0.0, "blocks": 1}},
            "paired.against=7 is no text",
        ),
    ],
)
def test_a_value_that_no_record_has_is_refused_by_name(record: Record, change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Record.from_json(json.dumps(json.loads(record.json) | change))


def test_values_at_the_edge_are_a_records(record: Record) -> None:
    edge = {"utilisation": 0, "mean_z2": 0.0, "case": {}, "evidence": [], "machine": {"threads": 2, "host": "a"}}
    pair = {"against": "b", "log_ratio": -0.5, "low": -1.0, "high": 0, "blocks": 0}
    found = Record.from_json(json.dumps(json.loads(record.json) | edge | {"paired": pair}))
    assert found.paired == Pair(against="b", log_ratio=-0.5, low=-1.0, high=0, blocks=0)
    assert (found.utilisation, found.mean_z2, found.passed) == (0, 0.0, True)
    assert not replace(found, outcome="wrong").passed


def test_a_record_keeps_what_its_verdict_found() -> None:
    op = find_op("rms_norm")
    verdict = judge(op.case(T=40, H=64, dtype="bfloat16"), plain())
    found = Record.of(verdict, run="20260101T000000Z", purpose="bench")
    z2 = [c.mean_z2 for c in verdict.comparisons if math.isfinite(c.mean_z2)]
    assert z2
    assert (found.utilisation, found.mean_z2) == (verdict.utilisation, max(z2))
    assert found.elements == sum(c.elements for c in verdict.comparisons) > 0
    assert (found.unspecified, found.evidence, found.purpose) == (0, [], "bench")
    nothing = replace(verdict, utilisation=math.inf, comparisons=())
    assert (Record.of(nothing, run="r").utilisation, Record.of(nothing, run="r").mean_z2) == (None, None)


def test_a_share_is_the_roofline_time_over_ours_and_a_canary_counts_in_billions() -> None:
    timing = Timing(
        shape="decode", call="routing", median_us=4.0, best_us=3.0, calls=9, bytes=1, flops=1, roof_us=1.0
    )  # fmt: skip
    assert timing.share == 0.25
    roof = Roof(bandwidth={1: 2e9, 8: 3e9}, flops={"float32": 5e9, "bfloat16": 9e9})
    assert Canary.of(roof) == Canary(copy_gbps=3.0, gemm_gflops=5.0)


def test_equal_records_are_equal_lines_of_json(record: Record) -> None:
    assert replace(record, case=dict(reversed(record.case.items()))).json == record.json
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = replace(record, utilisation=math.nan).json


def test_a_line_of_this_schema_lacks_nothing(record: Record) -> None:
    fields = json.loads(record.json)
    del fields["bits"]
    with pytest.raises(ValueError, match=r"lacks or adds fields: \['bits'\]"):
        Record.from_json(json.dumps(fields))


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


@pytest.mark.parametrize(
    ("name", "schema"), [("cpu-20261122", 4), ("gpu-h200-20261122", 3), ("gpu-h100-20261122", 2)]
)  # fmt: skip
def test_records_that_were_committed_stay_readable(name: str, schema: int) -> None:
    with (RESULTS / f"{name}.jsonl").open() as file:
        line = file.readline()
    assert json.loads(line)["schema"] == schema
    assert Record.from_json(line).op == json.loads(line)["op"]


def test_a_long_line_that_is_no_record_is_quoted_by_its_beginning() -> None:
    with pytest.raises(ValueError, match=rf"record 'x{{{QUOTED}}}' is not JSON"):
        Record.from_json("x" * 10_000)


@pytest.mark.parametrize("samples", [[0.0], [-1], "12", [1.0] * 13, [1e999], [True]])
def test_raw_times_that_are_none_are_refused(record: Record, samples: object) -> None:
    timed = replace(record, timing=Timing(
        shape="decode", call="routing", median_us=4.0, best_us=3.0, calls=9, bytes=1, flops=1, roof_us=1.0,
        samples_us=(0.25, 4.0) * 6,
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


def test_a_file_of_records_goes_on_behind_its_last_whole_line(record: Record, tmp_path: Path) -> None:
    path, said = tmp_path / "run.jsonl", list[str]()
    # More than is read at once, so that the last line break lies in an earlier piece.
    half = '{"long": "' + "x" * 70_000
    path.write_text(record.json + "\n" + half)
    with Log(path, report=said.append) as log:
        log.append(record.json)
    assert said == [f"{path}: {len(half)} bytes of a half-written line are cut off"]
    assert read(path) == [record, record]
    with Log(path, report=said.append) as log:
        log.append(record.json)
    assert (len(said), len(read(path))) == (1, 3)
    with pytest.raises(FileExistsError):
        Log(path, new=True)


@pytest.mark.parametrize(("text", "cut"), [("", []), ("\n", []), ('{"half', [6]), ('\n{"half', [6])])
def test_a_file_without_a_whole_record_begins_anew(text: str, cut: list[int], record: Record, tmp_path: Path) -> None:
    path, said = tmp_path / "run.jsonl", list[str]()
    path.write_text(text)
    with Log(path, report=said.append) as log:
        log.append(record.json)
    assert said == [f"{path}: {size} bytes of a half-written line are cut off" for size in cut]
    assert read(path) == [record]
    log = Log(tmp_path / "new.jsonl", new=True)
    log.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(log._file)


def test_everybody_whom_the_mask_lets_may_read_a_file_of_records(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        Log(tmp_path / "run.jsonl").close()
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "run.jsonl").stat().st_mode) == 0o644


def test_a_line_that_is_not_written_whole_is_told(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Log(tmp_path / "run.jsonl") as log:
        monkeypatch.setattr(os, "write", lambda file, line: 3)
        with pytest.raises(OSError, match="wrote 3 bytes of a line; is the disk full"):
            log.append(record.json)


def test_what_is_no_record_of_a_case_is_left_to_others_or_told(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(replace(record, kind="model").json + "\n\n{}\n" + record.json + "\n")
    assert read(path) == [record]
    path.write_text("3\n")
    with pytest.raises(ValueError, match="line 1: '3' is no record"):
        read(path)
    path.write_text(record.json + "\n" + replace(record, outcome="fine").json + "\n")
    with pytest.raises(ValueError, match=r"line 2: record of case .* unknown outcome"):
        read(path)


def test_the_newest_of_two_runs_with_a_case_is_found_and_no_id_finds_none(record: Record, tmp_path: Path) -> None:
    (tmp_path / "20250101.jsonl").write_text(replace(record, case={"op": "routing", "T": 1}).json + "\n")
    (tmp_path / "20260101.jsonl").write_text(replace(record, case_id="").json + "\n" + record.json + "\n")
    assert find_case(record.case_id, tmp_path) == Case(record.case)
    for unknown in ("", "ffffffff"):
        with pytest.raises(KeyError, match="no recorded case has id"):
            find_case(unknown, tmp_path)


def test_a_broken_line_elsewhere_is_an_error_with_its_place(record: Record, tmp_path: Path) -> None:
    path, said = tmp_path / "run.jsonl", list[str]()
    path.write_text(record.json[:-5] + "\n" + record.json + "\n")
    with pytest.raises(ValueError, match=r"line 1: .*not JSON"):
        read(path)
    (tmp_path / "last.jsonl").write_text(record.json + "\n" + record.json[:-5] + "\n")
    with pytest.raises(ValueError, match=r"line 2: .*not JSON"):
        read(tmp_path / "last.jsonl")
    (tmp_path / "last.jsonl").unlink()
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
