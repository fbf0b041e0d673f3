"""Correct kernels raise no alarm, on every op's sampled cases; one that is wrong does, and rates come with a bound."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from minimax_m2.harness import false_alarms
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.expectation import emulated, expectation
from minimax_m2.harness.false_alarms import (
    SLICE,
    Tally,
    implementations,
    legal,
    main,
    read,
    share,
    table,
    tally,
    upper_bound,
)
from minimax_m2.harness.museum import right
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.providers.backwards import backwards

ROOT = Path(__file__).resolve().parents[2]
TRUST = (ROOT / "docs/trust.md").read_text()
# The conformance suite takes the first cases; the slice of every change lies behind a thousand.
EACH, START = 24, 1000


def test_correct_kernels_raise_no_alarm(op_name: str) -> None:
    count = share(op_name, EACH)
    found = tally(op_name, implementations(), count, start=START)
    assert found.cases == count
    assert found.calls >= 3 * count
    assert found.alarms == ()


@pytest.mark.nightly
def test_correct_kernels_raise_no_alarm_in_ten_thousand_cases(op_name: str) -> None:
    assert tally(op_name, implementations(), 10_000).alarms == ()


def a_percent_too_large(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return (right("rms_norm")(x, weight, eps=eps).double() * 1.01).to(x.dtype)


def in_float64(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right("rms_norm")(x, weight, eps=eps).double()


@pytest.mark.parametrize("function", [a_percent_too_large, in_float64])
def test_an_alarm_is_told_and_a_case_counts_once(function: object) -> None:
    wrong = from_object(SimpleNamespace(rms_norm=function), name="wrong")
    found = tally("rms_norm", [wrong, wrong], 4, start=START, contracts=False)
    assert found.cases == 4
    assert 0 < found.wrong <= 4
    assert len(found.alarms) == 2 * found.wrong
    assert "wrong" in found.alarms[0]


# Correct results that a smaller budget called wrong: few errors behind a row, codes whose products round alike, codes
# of numbers with few digits, a rival of the largest number, few numbers times nearly one cosine.
ONCE_CALLED_WRONG: tuple[tuple[dict[str, Field], dict[str, object]], ...] = (
    (
        {"op": "attention", "B": 1, "D": 256, "Hk": 3, "S": 128, "group": 6, "page": 64, "queries": "all", "pad": 0,
         "cache": "float16", "dtype": "float16", "kv_scale": "float", "ids": "int64", "gap": 8, "regime": "heavy",
         "seed": 223},
        {"normalised": True},
    ),
    (
        {"op": "fp8_linear", "H": 16, "N": 9, "T": 2049, "block": 32, "dtype": "float16", "out": "float32", "x": "e4m3",
         "regime": "heavy", "weight_milli": 5, "gap": 0, "seed": 760},
        {},
    ),
    (
        {"op": "experts", "E": 8, "H": 33, "I": 17, "K": 2, "T": 2049, "active": 8, "block": 32, "dtype": "float16",
         "gap": 8, "ids": "int64", "load": "holes", "map": 0, "out": "float32", "quant": "none", "regime": "equal",
         "weights": "0.005", "seed": 241},
        {"activation": "e4m3"},
    ),
    (
        {"op": "add_rms_norm_quant", "H": 8, "T": 2049, "dtype": "bfloat16", "eps": 5, "gap": 3, "group": 128,
         "regime": "heavy", "residual": "same", "weight_milli": 5, "seed": 1631},
        {"variance_of": "rounded"},
    ),
    (
        {"op": "rope", "D": 64, "Hk": 1, "Hq": 2, "R": 64, "T": 2049, "dtype": "float16", "gap": 3,
         "positions": "int32", "regime": "signed_zero", "table": "float32", "table_gap": 0, "where": "end",
         "seed": 134},
        {"products": "float16"},
    ),
)  # fmt: skip


@pytest.mark.parametrize("fields, contract", ONCE_CALLED_WRONG, ids=lambda value: str(value.get("op", "")))
def test_what_was_called_wrong_once_is_right(fields: dict[str, Field], contract: dict[str, object]) -> None:
    case, op = Case(fields), find_op(str(fields["op"]))
    full = op.full_contract(case, contract)
    assert all(found.passed for found in expectation(op, case, full).judge(emulated(op, case, full, torch.float32)))


@pytest.mark.parametrize("alarms, cases, bound", [(0, 1, 0.95), (0, 10_000, 2.995e-4), (1, 10, 0.3942), (3, 3, 1.0)])
def test_the_bound_is_that_of_clopper_and_pearson(alarms: int, cases: int, bound: float) -> None:
    # derived: the tables' last digit
    assert upper_bound(alarms, cases) == pytest.approx(bound, rel=1e-3)


def test_more_alarms_than_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="alarms=3 is outside"):
        upper_bound(3, 2)


def test_backwards_adds_up_otherwise_and_breaks_ties_otherwise() -> None:
    find, plain = backwards().functions, right
    x, weight = torch.randn(3, 100), torch.randn(7, 100)
    assert not torch.equal(find("linear")(x, weight), plain("linear")(x, weight))  # type: ignore[misc]
    ids = find("routing")(torch.zeros(1, 8), None, top_k=2)[1]  # type: ignore[misc]
    assert ids.tolist() == [[7, 6]]


def test_legal_contracts_are_those_of_engines() -> None:
    assert ("silu", "dtype") in legal(find_op("swiglu"))
    assert all(value != "tensor_core" for op in all_ops().values() for _, value in legal(op))


@pytest.fixture(scope="module")
def recorded() -> list[Tally]:
    (named,) = re.findall(r"ci/results/right-[^ ,)]+", TRUST)
    return read(ROOT / named)


def test_the_rates_of_the_docs_are_those_of_the_record(recorded: list[Tally]) -> None:
    assert table(recorded) in TRUST
    calls, cases, wrong = (sum(getattr(t, name) for t in recorded) for name in ("calls", "cases", "wrong"))
    assert f"{calls:,} calls on {cases:,} cases, {wrong} called wrong" in TRUST


def test_a_recorded_alarm_would_change_the_rates(recorded: list[Tally]) -> None:
    assert table([replace(recorded[0], wrong=1), *recorded[1:]]) not in TRUST


def test_every_op_has_a_rate(recorded: list[Tally]) -> None:
    assert [t.op for t in recorded] == list(all_ops())


def test_a_tally_is_read_as_it_was_written(tmp_path: Path, recorded: list[Tally]) -> None:
    again = replace(recorded[0], wrong=1, alarms=("plain: y",))
    record = tmp_path / "right.jsonl"
    record.write_text(f"{recorded[0].line(0, 9)}\n{again.line(0, 9)}\n")
    assert read(record) == [again], "what was tallied last counts"


def some(calls: int, **more: object) -> Tally:
    told = Tally(op="rope", implementations=("plain",), calls=calls, cases=calls, wrong=0, alarms=(), worst=0.5)
    return replace(told, **more)  # type: ignore[arg-type]


def test_slices_of_an_ops_draws_add_up(tmp_path: Path) -> None:
    last = some(2, cases=1, wrong=1, alarms=("ours: q",), worst=2.0, implementations=("plain", "ours"))
    record = tmp_path / "right.jsonl"
    record.write_text(f"{last.line(3, 5)}\n{some(3).line(0, 3)}\n")
    assert read(record) == [replace(last, calls=5, cases=4)]


@pytest.mark.parametrize("start", [2, 4])
def test_a_slice_that_is_missing_or_held_twice_is_told(start: int, tmp_path: Path) -> None:
    record = tmp_path / "right.jsonl"
    record.write_text(f"{some(3).line(0, 3)}\n{some(2).line(start, 9)}\n")
    with pytest.raises(ValueError, match=f"rope: draws 3 to {start} are in no line, or in two"):
        read(record)


def test_the_command_goes_on_where_it_was_cut_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = list[tuple[int, int]]()

    def tallied(op_name: str, providers: object, count: int, *, start: int) -> Tally:
        held.append((start, count))
        return some(count)

    monkeypatch.setattr(false_alarms, "tally", tallied)
    monkeypatch.setattr(false_alarms, "implementations", list)
    main(["600", "rope"])
    main(["150", "rope", "--start", "600"])
    assert held == [(0, SLICE), (SLICE, 100), (600, 150)]
    (tmp_path / "right.jsonl").write_text(capsys.readouterr().out)
    assert read(tmp_path / "right.jsonl") == [some(750)]
