"""A night measures what matters first, beside the accepted build, and goes on where it was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest

from minimax_m2.harness.fleet import Done, Fleet
from minimax_m2.harness.hands import Job, Unit
from minimax_m2.harness.history import fleet_night, nightly
from minimax_m2.harness.history.builds import resolved, taken_out
from minimax_m2.harness.history.causes import Cause, Evidence, Ruling
from minimax_m2.harness.history.events import Event, evidence
from minimax_m2.harness.history.files import Content
from minimax_m2.harness.history.fleet_night import NightHand, NightJob, tonight_on
from minimax_m2.harness.history.measuring import LOOKS, RERUNS, Canaries, Night, Planned, place, plan
from minimax_m2.harness.history.nightly import Asked, accepted_commit, odd_places, tonight
from minimax_m2.harness.history.panel import changed, panels
from minimax_m2.harness.history.store import Store
from minimax_m2.harness.history.under_way import seen
from minimax_m2.harness.provenance import commit, kernel_hash, position
from minimax_m2.harness.record import Canary, Log, Pair, Record, read
from minimax_m2.harness.roofline import SIZES, Roof
from minimax_m2.harness.shards import WHOLE, Shard

ROOF = Roof(dict.fromkeys(SIZES, 1e10), {"float32": 1e11, "bfloat16": 1e11})
USUAL = Canary(copy_gbps=20.0, gemm_gflops=100.0)
SLOW = Canary(copy_gbps=20.0, gemm_gflops=60.0)


def cells(*, shard: Shard = WHOLE) -> list[Planned]:
    return plan(["routing", "swiglu", "experts"], ["ours", "plain"], ROOF, shard=shard)


@dataclass(kw_only=True)
class Pretended(Night):
    """A night that times nothing: every cell has the same record."""

    record: Record
    took: list[str] = field(default_factory=list)

    def measured(self, cell: Planned, *, purpose: str = "nightly") -> list[Record]:
        assert self.record.timing is not None
        self.took.append(f"{cell.op.name} {cell.shape} {cell.provider}")
        timing = replace(self.record.timing, shape=cell.shape)
        return [replace(self.record, op=cell.op.name, provider=cell.provider, timing=timing, purpose=purpose)]


def night(record: Record, speeds: Callable[[], Canary] = lambda: USUAL) -> Pretended:
    return Pretended(
        label=record.run, roof=ROOF, sides={}, accepted=None, against="", seconds=0.1, record=record,
        canaries=Canaries(measure=speeds, pause=lambda seconds: None),
    )  # fmt: skip


def run(tonight: Pretended, path: Path, *, most: int = 99) -> None:
    with Log(path) as log:
        tonight.run(cells(), log, until=lambda: len(tonight.took) >= most, progress=lambda text, share: None)


def test_what_takes_most_of_a_step_is_measured_first() -> None:
    assert cells()[0].op.name == "experts"
    weights = [cell.weight for cell in cells()]
    assert weights == sorted(weights, reverse=True)


@pytest.mark.parametrize("parts", [1, 2, 5, 30])
def test_shards_are_the_whole_and_share_nothing(parts: int) -> None:
    dealt = [cell for index in range(parts) for cell in cells(shard=Shard(index + 1, parts))]
    assert len(dealt) == len(cells())
    assert {(c.op.name, c.shape, c.provider) for c in dealt} == {(c.op.name, c.shape, c.provider) for c in cells()}


def test_a_night_that_was_killed_goes_on_where_it_was(record: Record, tmp_path: Path) -> None:
    first, second, path = night(record), night(record), tmp_path / "night.jsonl"
    run(first, path, most=5)
    with path.open("a") as file:
        file.write(record.json[:80])
    with pytest.warns(UserWarning, match="half-written"):
        run(second, path)
    assert len(first.took) == 5
    assert not set(first.took) & set(second.took)
    assert len(read(path)) == len(cells())
    assert second.outcome.cells == len(cells())


def test_a_budget_that_is_spent_ends_the_plan(record: Record, tmp_path: Path) -> None:
    tonight = night(record)
    run(tonight, tmp_path / "night.jsonl", most=3)
    assert (tonight.outcome.cells, tonight.outcome.planned) == (3, len(cells()))


def test_a_cell_beside_a_slow_machine_is_timed_once_more(record: Record, tmp_path: Path) -> None:
    speeds = iter([*[USUAL] * LOOKS, SLOW, *[USUAL] * 40])
    tonight = night(record, lambda: next(speeds))
    run(tonight, tmp_path / "night.jsonl")
    # Slow after the first look and so before the second: neither can be told from a slow kernel.
    assert tonight.took[0] == tonight.took[1]
    assert tonight.outcome.throttled == 1
    assert len(read(tmp_path / "night.jsonl")) == len(cells()) - 1


def test_a_machine_that_stays_slow_leaves_no_times(record: Record, tmp_path: Path) -> None:
    turns = count()
    tonight = night(record, lambda: USUAL if next(turns) < LOOKS else SLOW)
    run(tonight, tmp_path / "night.jsonl")
    assert tonight.outcome.throttled == len(cells())
    assert read(tmp_path / "night.jsonl") == []


def test_a_machine_that_wanders_is_left_out_only_where_it_is_slower_than_it_wanders(
    record: Record, tmp_path: Path
) -> None:
    # A shared machine copied at 14 to 20 GB/s before the night: 15 is its usual, 12 is not.
    usual, slow = replace(USUAL, copy_gbps=15.0), replace(USUAL, copy_gbps=12.0)
    looks = [replace(USUAL, copy_gbps=14.0 + 6.0 * (look % 2)) for look in range(LOOKS)]
    speeds = iter([*looks, usual, slow, slow, *[usual] * 40])
    tonight = night(record, lambda: next(speeds))
    run(tonight, tmp_path / "night.jsonl")
    assert tonight.outcome.throttled == 1
    assert len(read(tmp_path / "night.jsonl")) == len(cells()) - 1


def test_the_canary_of_a_cell_is_what_was_measured_around_it(record: Record, tmp_path: Path) -> None:
    quick = replace(USUAL, copy_gbps=21.0)
    speeds = iter([*[USUAL] * LOOKS, *[quick] * 40])
    run(night(record, lambda: next(speeds)), tmp_path / "night.jsonl")
    found = [r.canary.copy_gbps for r in read(tmp_path / "night.jsonl") if r.canary]
    assert found[:2] == [20.5, 21.0]


def test_suspicious_cells_are_measured_again(record: Record, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert record.timing is not None
    for day in range(1, 21):
        slow = 1.5 if day == 20 else 1 + 0.003 * (day % 3)
        timed = replace(record, run=f"202601{day:02}T020000.000000Z", op="routing", provider="plain",
                        machine=record.machine | {"commit": f"{day:012x}"},
                        timing=replace(record.timing, median_us=40 * slow))  # fmt: skip
        store.keep(Content([timed], {}))
    assert odd_places(store, "20260120T020000.000000Z") == {("routing", "decode", "plain")}
    odd = next(cell for cell in cells() if place(cell) == ("routing", "decode", "plain"))
    looked = night(record).again(odd, lambda text, share: None)
    assert [one.purpose for one in looked] == ["rerun"] * RERUNS


def test_a_ratio_to_a_build_before_the_accepted_one_is_forgotten(record: Record, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for day, build in ((1, "a"), (2, "a"), (3, "b")):
        pair = Pair(against=f"ours@{build}", log_ratio=0.1 * day, low=0.0, high=1.0, blocks=12)
        store.keep(Content([replace(record, run=f"2026010{day}T020000.000000Z", paired=pair)], {}))
    with store.connect() as index:
        (panel,) = panels(index)
    assert [round(float(v), 3) for v in panel.log_ratio[0, -1:]] == [0.3]
    assert not any(v == v for v in panel.log_ratio[0, :-1])


def test_a_method_is_an_ops_whatever_op_came_last_in_a_night(record: Record, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for day, order in ((1, ("routing", "swiglu")), (2, ("swiglu", "routing")), (3, ("routing", "swiglu"))):
        # On the third day swiglu is drawn by other sources, routing is not.
        methods = {"routing": "aaaa", "swiglu": "bbbb" if day < 3 else "cccc"}
        done = [
            replace(record, run=f"2026010{day}T020000.000000Z", op=op, case={**record.case, "op": op},
                    code={**record.code, "method": methods[op]})
            for op in order
        ]  # fmt: skip
        store.keep(Content(done, {}))
    with store.connect() as index:
        (panel,) = panels(index)
    assert [night.context for night in panel.nights] == [panel.nights[0].context] * 3
    changes = {one.op: [changed(panel.methods[row], n) for n in range(3)] for row, one in enumerate(panel.series)}
    assert changes == {"routing": [None] * 3, "swiglu": [None, None, ("bbbb", "cccc")]}
    by_op = {one.op: row for row, one in enumerate(panel.series)}
    blank = Evidence(series=0, effect=0.0, changed={})
    told = []
    for rows in ([by_op["swiglu"]], [by_op["routing"]], list(by_op.values())):
        event = Event(panel.lane, "time", 2, "", [], Ruling(Cause.UNKNOWN, ""), blank, 2, rows=rows)
        told.append("method" in evidence(panel, event).changed)
    assert told == [True, False, False]


def test_the_accepted_build_is_the_one_asked_for_or_the_last_nights(record: Record, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert accepted_commit(store, "HEAD") == resolved("HEAD")
    assert accepted_commit(store, "") == resolved("HEAD^")
    pair = Pair(against=f"ours@{resolved('HEAD')[:12]}", log_ratio=0.0, low=0.0, high=0.0, blocks=12)
    store.keep(Content([replace(record, paired=pair)], {}))
    assert accepted_commit(store, "") == resolved("HEAD")
    with pytest.raises(ValueError, match="no commit of this checkout"):
        accepted_commit(store, "--output=x")


def test_another_plan_does_not_go_on_with_this_one() -> None:
    assert commit()
    assert Asked().name() != Asked(ops=("routing",)).name() != Asked(shard=Shard(1, 2)).name()


def test_a_builds_kernels_are_taken_out_whole(tmp_path: Path) -> None:
    place = taken_out(resolved("HEAD"), tmp_path)
    assert (place / "kernels" / "cpu" / "routing.cpp").is_file()
    assert taken_out(resolved("HEAD"), tmp_path) == place
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_a_record_of_another_build_says_whose_kernels_it_is_of(record: Record, tmp_path: Path) -> None:
    tonight = replace(night(record), build=taken_out(resolved("HEAD^"), tmp_path))
    found = tonight._of_build(replace(record, provider="ours"))
    assert found.machine["commit"] == resolved("HEAD^")[:12]
    assert found.code["kernel"] == kernel_hash("routing", "ours", "cpu", tonight.build or tmp_path) != ""
    assert int(found.code["height"]) == int(position()["height"]) - 1
    assert tonight._of_build(record) == record


def test_another_builds_kernels_run_instead_of_ours(tmp_path: Path) -> None:
    for name, text in {
        "__init__.py": "",
        "isa.py": "from contextlib import nullcontext\navailable = lambda: ['portable']\nforced = nullcontext\n",
        "swiglu.py": "def swiglu(gate_up):\n    return 'of the other build'\n",
    }.items():
        (tmp_path / "kernels/cpu").mkdir(parents=True, exist_ok=True)
        (tmp_path / "kernels/cpu" / name).write_text(text)
    source = (
        f"import os; os.environ['MINIMAX_M2_BUILD'] = {str(tmp_path)!r}\n"
        "from minimax_m2.harness.providers.ours import of_build\n"
        "print(of_build().functions('swiglu')(None))\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "of the other build", done.stderr


@pytest.fixture
def pretended(record: Record, monkeypatch: pytest.MonkeyPatch) -> list[Night]:
    """Nights as `tonight` makes them, which time nothing."""
    made: list[Night] = []

    def make(**given: Any) -> Night:
        made.append(
            Pretended(record=record, canaries=Canaries(measure=lambda: USUAL, pause=lambda seconds: None), **given)
        )
        return made[-1]

    monkeypatch.setattr(nightly, "Night", make)
    monkeypatch.setattr(nightly, "measure", lambda: ROOF)
    monkeypatch.setattr(nightly, "side", lambda name, own_process: nullcontext(name))
    monkeypatch.setattr(nightly, "side_of", lambda build: nullcontext(build.name))
    return made


def test_a_night_is_in_the_store_before_its_journal_goes(
    pretended: list[Night], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(ops=("routing",), against="HEAD", build="HEAD^")
    with monkeypatch.context() as killed:
        killed.setattr(Store, "keep", lambda store, content: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tonight(Store(tmp_path), asked, lambda text, share: None)
    assert len(list(tmp_path.glob("pending/*.jsonl"))) == 1
    done = tonight(Store(tmp_path), asked, lambda text, share: None)
    assert done.resumed
    assert done.kept.is_file()
    assert list(tmp_path.glob("pending/*.jsonl")) == []
    standing = seen(tmp_path)
    assert standing is not None
    assert (standing["ended"], standing["measured"], standing["planned"]) == (True, 4, 4)
    # Records of another commit's kernels must say so.
    assert [one.build.name for one in pretended if one.build] == [resolved("HEAD^")[:12]] * 2


class OneMachine:
    """A fleet of one, which may die after some units."""

    def __init__(self, most: int = 99) -> None:
        self.most = most

    def spread(self, job: Job, *, chosen: Callable[[Unit], bool] = lambda unit: True, **given: Any) -> Iterator[Done]:
        hand = job.hand("cpu")
        for number, unit in enumerate([unit for unit, _ in hand.plan() if chosen(unit)]):
            if number == self.most:
                raise RuntimeError("nobody of the fleet has answered")
            yield Done(unit, hand.do(unit), "here")


@pytest.fixture
def on_a_fleet(pretended: list[Night], monkeypatch: pytest.MonkeyPatch) -> Callable[[Store, int], Any]:
    def measured(store: Store, most: int = 99) -> Any:
        asked = Asked(ops=("routing", "swiglu"), against="HEAD", resource="cpu")
        fleet = cast(Fleet, OneMachine(most))
        return tonight_on(fleet, store, asked, lambda text, share: None)

    return measured


def test_a_night_of_a_fleet_goes_on_where_it_was(
    on_a_fleet: Callable[..., Any], pretended: list[Night], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="nobody of the fleet"):
        on_a_fleet(store, 3)
    done = on_a_fleet(store)
    assert done.resumed
    assert (done.outcome.planned, done.outcome.cells, done.outcome.throttled) == (8, 8, 0)
    first, second = (one.took for one in pretended if isinstance(one, Pretended))
    assert (len(first), len(second)) == (3, 5)
    assert not set(first) & set(second)
    with store.connect() as index:
        rows = list(index.rows("SELECT run, purpose FROM points"))
    # Every record of the pretended night is one case: eight cells, eight series.
    assert [row["purpose"] for row in rows] == ["nightly"] * 8
    assert list(tmp_path.glob("pending/*.jsonl")) == []
    assert len(list(tmp_path.glob("runs/*/cpu-a/*.jsonl.gz"))) == 1


def test_cells_of_a_fleet_beside_a_slow_machine_are_counted_and_leave_no_times(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = iter([*[USUAL] * LOOKS, SLOW, SLOW, USUAL, USUAL])
    monkeypatch.setattr(fleet_night, "night_of", lambda *given: night(record, lambda: next(speeds)))
    asked = Asked(ops=("routing",), against="HEAD", resource="cpu")
    hand = NightHand(NightJob(label="x", asked=asked, against="HEAD"))
    first, second = [unit for unit, _ in hand.plan()][:2]
    assert json.loads(hand.do(first)[0]) == {"kind": "left out", "throttled": 1}
    assert Record.from_json(hand.do(second)[0]).op == second[0]
