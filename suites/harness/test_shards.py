"""Parts of a plan are the whole, share nothing, cost alike, and leave the records that one machine leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.run import planned, run
from minimax_m2.harness.score import GENERIC
from minimax_m2.harness.score_plan import Asked, Score, joined, measured, plan
from minimax_m2.harness.shards import WHOLE, Shard, seconds_of, sharded
from minimax_m2.harness.wrong_use import WrongUse

OPS = ["moe_align", "swiglu", "unpack_routing"]


def parts(count: int) -> Iterator[Shard]:
    return (Shard(index + 1, count) for index in range(count))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/2/3", "a/b", "-1/2", "", "1/0", "²/2"])
def test_what_is_no_part_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(WrongUse, match=r"no part of a whole; write 2/8"):
        sharded(text)


def test_a_part_reads_as_it_is_written() -> None:
    assert str(sharded("2/8")) == "2/8"
    assert sharded("1/1") == WHOLE


# 1 to 40 machines for 13 items: fewer, as many, and more than there are.
@pytest.mark.parametrize("count", [1, 2, 3, 13, 40])
def test_parts_are_the_whole_in_its_order(count: int) -> None:
    items = list(range(13))
    dealt = [item for part in parts(count) for item in part.of(items, lambda item: float(item % 4))]
    assert dealt == items


@pytest.mark.parametrize("count", [2, 3, 8])
def test_no_part_costs_more_than_its_share_and_one_item(count: int) -> None:
    costs = [1.0, 9.0, 2.0, 2.0, 5.0, 1.0, 1.0, 30.0, 4.0, 4.0, 1.0] * 3
    loads = [sum(part.of(costs, lambda cost: cost)) for part in parts(count)]
    assert max(loads) <= sum(costs) / count + max(costs)


def test_what_nobody_measured_costs_as_much_as_the_middle() -> None:
    costs = {"a": 1.0, "b": None, "c": 7.0, "d": 3.0}
    # 1 + 3 + 7 + 3: half of it ends in c.
    assert [part.of("abcd", costs.get) for part in parts(2)] == [["a", "b"], ["c", "d"]]
    assert [part.of("abcd", lambda item: None) for part in parts(2)] == [["a", "b"], ["c", "d"]]


def test_the_cost_of_every_op_is_known() -> None:
    assert [name for name in all_ops() if not seconds_of(name)] == []


def test_joined_runs_of_parts_hold_the_records_of_one_machine() -> None:
    providers = [plain(), ours()]
    every = planned(providers, ops=OPS)
    whole = [replace(r, run="") for r in run(providers, chosen=every, count=3, name="whole")]
    dealt = [part.of(every, lambda cell: seconds_of(cell.op)) for part in parts(3)]
    apart = [replace(r, run="") for mine in dealt for r in run(providers, chosen=mine, count=3, name="part")]
    assert all(dealt)
    assert sorted(r.json for r in apart) == sorted(r.json for r in whole)


def saved(folder: Path, count: int) -> list[Path]:
    """A score of some mutants in parts, each as ``score --json`` prints it."""
    asked = Asked(ops=("unpack_routing",), short=True, right=2)
    every = plan(asked, [find_op("unpack_routing")])
    files = []
    for part in parts(count):
        path = folder / f"{part.index}.jsonl"
        path.write_text("".join(f"{line}\n" for line in measured(every.part(part)).lines(part)))
        files.append(path)
    return files


def untimed(score: Score) -> list[str]:
    return sorted(json.dumps(json.loads(line) | {"seconds": 0}) for line in score.lines(WHOLE))


@pytest.fixture(autouse=True)
def _no_line_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """To rewrite a line of C++ is to compile it."""
    monkeypatch.setattr("minimax_m2.harness.score_plan.planted", lambda each, stems: [])


def test_joined_scores_of_parts_are_the_score_of_one_machine(tmp_path: Path) -> None:
    found = joined(saved(tmp_path, 3))
    whole = measured(plan(found.asked, [find_op("unpack_routing")]))
    assert len([kill for kill in whole.kills if kill.group == GENERIC]) > 3
    assert untimed(found) == untimed(whole)


def test_a_part_that_is_missing_there_twice_or_of_another_plan_is_refused(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 2)
    with pytest.raises(ValueError, match=r"parts 2/2 are missing"):
        joined([first])
    with pytest.raises(ValueError, match=r"part 1/2 is there twice"):
        joined([first, second, first])
    about, *rows = second.read_text().splitlines()
    other = json.loads(about)
    second.write_text("\n".join([json.dumps(other | {"asked": other["asked"] | {"short": False}}), *rows]))
    with pytest.raises(ValueError, match=r"of another plan"):
        joined([first, second])
    second.write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"is no part of a score"):
        joined([second])
