"""A run judges every cell on the same cases, draws and predicts each once, and times what is right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minimax_m2.harness import judge as judging
from minimax_m2.harness.case import Case
from minimax_m2.harness.op import Op, find_op
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.report import failure, replay
from minimax_m2.harness.roofline import SIZES, Roof
from minimax_m2.harness.run import new_log, run
from minimax_m2.harness.summary import lines

ROOF = Roof(bandwidth=dict.fromkeys(SIZES, 1e9), flops={"float32": 1e9})


def wrong() -> Provider:
    return from_object(SimpleNamespace(swiglu=lambda gate_up: gate_up[:, ::2] * 0), name="wrong")


def test_a_case_is_drawn_and_predicted_once_for_all_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, drawn = Counter[Case](), Counter[Case]()
    for name, counter in (("expectation", predicted), ("_drawn", drawn)):
        monkeypatch.setattr(judging, name, _counting(getattr(judging, name), counter))
    judging._expected.cache_clear()
    records = list(run([ours()], ops=["swiglu"], count=4, name="now", roof=ROOF))
    assert set(predicted.values()) == {1}
    # Four cases, and two shapes that are judged and timed.
    assert len(drawn) == len({r.case_id for r in records}) == 6
    assert len(lines(records)) == len(ours().variants)


def _counting(function: Any, counter: Counter[Case]) -> Any:
    original = getattr(function, "__wrapped__", function)

    def counted(*arguments: Any) -> Any:
        counter[next(a for a in arguments if isinstance(a, Case))] += 1
        return original(*arguments)

    return counted


def test_only_right_cells_are_timed() -> None:
    records = list(run([plain(), wrong()], ops=["swiglu"], count=4, name="now", roof=ROOF))
    assert {r.provider for r in records if r.timing} == {"plain"}
    assert {r.provider for r in records} == {"plain", "wrong"}


def test_a_run_that_never_tried_a_corruption_is_vacuous() -> None:
    def one_row(op: Op, case: Case) -> str | None:
        return None if case.number("T") == 1 else "one token only"

    single = Provider(name="single", device="cpu", functions=plain().functions, refuses=one_row)
    records = list(run([single, plain()], ops=["swiglu"], count=4, name="now", roof=ROOF))
    one, all_rows = lines(records)
    assert (one.verdict, all_rows.verdict) == ("vacuous", "pass")
    assert "row, rows" in one.failed[0].evidence[0]
    assert len(one.judged) == 4
    assert "all cases: vacuous" in failure(one.failed[0])
    assert replay(one.failed[0]) == "m2check run --op swiglu --cases 60 --with single"


def test_every_provider_gets_its_own_count_of_cases() -> None:
    def refuses(op: Op, case: Case) -> str | None:
        return None if case.word("dtype") == "float32" else "float32 only"

    op = find_op("swiglu")
    picky = Provider(name="picky", device="cpu", functions=plain().functions, refuses=refuses)
    records = list(run([plain(), picky], ops=[op.name], count=4, name="now"))
    assert Counter(r.provider for r in records) == {"plain": 4, "picky": 4}
    assert {r.case["dtype"] for r in records if r.provider == "picky"} == {"float32"}
    assert torch.get_num_threads() == records[0].machine["threads"]


def test_runs_that_start_at_once_write_files_of_their_own(tmp_path: Path) -> None:
    started = [new_log(tmp_path) for _ in range(50)]
    names = [name for name, _ in started]
    for _, log in started:
        log.close()
    assert names == sorted(set(names))
    assert len(list(tmp_path.glob("*.jsonl"))) == 50
