"""A fleet tells what one machine tells: every cell once, whoever dies in between."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from minimax_m2.harness.fleet import Done, Fleet, device_of, resources_here
from minimax_m2.harness.hands import Hand, RunJob, ScoreJob, Unit
from minimax_m2.harness.matrix import machine_kind
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import Record
from minimax_m2.harness.run import planned, run
from minimax_m2.harness.score_plan import Asked, Score, measured, plan
from minimax_m2.harness.shards import WHOLE
from minimax_m2.harness.wrong_use import WrongUse

OPS = ("swiglu", "unpack_routing")
CPU = f"cpu:{machine_kind('cpu')}"


class TwoWorkers:
    """A cluster on this machine: a head that does nothing, and two workers with a hand each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small: dict[str, Any] = {"object_store_memory": 80 << 20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        self._workers = [self._cluster.add_node(num_cpus=1, resources={CPU: 1}, **small) for _ in range(2)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def kill_one(self) -> None:
        self._cluster.remove_node(self._workers.pop(), allow_graceful=False)

    def replace_the_killed(self) -> None:
        while len(self._workers) < 2:
            self._workers.append(self._cluster.add_node(num_cpus=1, resources={CPU: 1}))

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster(required: Any) -> Iterator[TwoWorkers]:
    if find_spec("ray") is None:
        required("ray", "the Python package ray")
    found = TwoWorkers()
    yield found
    found.close()


@pytest.fixture
def fleet(cluster: TwoWorkers) -> Iterator[Fleet]:
    cluster.replace_the_killed()
    found = Fleet(cluster.address, [])
    yield found
    found.close()


def job(fleet: Fleet, **given: Any) -> RunJob:
    asked: dict[str, Any] = {
        "label": "fleet", "files": {}, "names": ("ours", "plain"), "ops": OPS, "variants": (), "count": 3,
        "times": False, "models": False, "failures": (), "hands": fleet.hands,
    }  # fmt: skip
    return RunJob(**asked | given)


def plainly(records: list[Record]) -> list[str]:
    """Records without what says who judged them, and when."""
    return sorted(replace(record, run="", machine={}).json for record in records)


def records_of(found: list[Done]) -> list[Record]:
    return [Record.from_json(line) for done in found for line in done.lines]


def test_a_worker_killed_in_mid_run_loses_and_doubles_no_record(cluster: TwoWorkers, fleet: Fleet) -> None:
    found = []
    for number, done in enumerate(fleet.spread(job(fleet)), 1):
        found.append(done)
        if number == 3:
            cluster.kill_one()
    providers = [ours(), plain()]
    cells = planned(providers, ops=OPS)
    assert Counter(done.unit for done in found) == Counter((cell.id,) for cell in cells)
    whole = list(run(providers, chosen=cells, count=3, name="one"))
    assert plainly(records_of(found)) == plainly(whole)


def test_a_score_of_a_fleet_is_that_of_one_machine(fleet: Fleet) -> None:
    asked = Asked(ops=("unpack_routing",), short=True, right=2)
    score = Score(asked)
    for done in fleet.spread(ScoreJob(asked=asked), chosen=lambda unit: unit[0] != "rewrites"):
        for line in done.lines:
            score.enter(json.loads(line))
    whole = measured(replace(plan(asked, [find_op("unpack_routing")]), rewrites=()))
    assert sorted(untimed(score)) == sorted(untimed(whole))


def untimed(score: Score) -> list[str]:
    return [json.dumps(json.loads(line) | {"seconds": 0}) for line in score.lines(WHOLE)]


class Deadly:
    """A hand that one unit kills, and another makes fail."""

    def plan(self) -> list[tuple[Unit, float | None]]:
        return [(("fine",), 1.0), (("fails",), None), (("kills",), 3.0)]

    def do(self, unit: Unit) -> list[str]:
        if unit == ("kills",):
            import os

            os._exit(1)
        return [str(1 // (unit != ("fails",)))]


class DeadlyJob:
    def hand(self, device: str) -> Hand:
        return Deadly()


# Each hand that is hired imports torch: seconds.
@pytest.mark.nightly
@pytest.mark.parametrize(
    "unit, told", [("kills", r"kills has ended its process 3 times"), ("fails", r"fails failed on cpu.*ZeroDivision")]
)
def test_a_unit_that_cannot_be_done_is_named_and_ends_the_run(fleet: Fleet, unit: str, told: str) -> None:
    with pytest.raises(RuntimeError, match=f"(?s){told}"):
        list(fleet.spread(DeadlyJob(), chosen=lambda one: one == (unit,)))


@pytest.mark.nightly
def test_nothing_is_begun_when_the_time_is_over(fleet: Fleet) -> None:
    assert list(fleet.spread(job(fleet), until=lambda: True)) == []


def test_a_resource_that_no_machine_has_is_refused_with_those_that_are_there(cluster: TwoWorkers, fleet: Fleet) -> None:
    with pytest.raises(WrongUse, match=f"'gpu:sm_90'; it has {CPU}"):
        Fleet(cluster.address, ["gpu:sm_90"])


@pytest.mark.parametrize(
    "name, device", [("cpu", "cpu"), ("gpu:sm_90", "gpu"), ("npu", "npu"), ("CPU", ""), ("memory", "")]
)
def test_resources_that_are_no_devices_are_not_ours(name: str, device: str) -> None:
    assert device_of(name) == device


def test_a_machine_says_what_it_has() -> None:
    assert resources_here()[CPU] == 1


def test_a_providers_file_travels_as_its_text(tmp_path: Path) -> None:
    mine = RunJob(
        label="x", files={"mine": "def swiglu(gate_up):\n    return gate_up[:, ::2] * 0\n"}, names=(), ops=("swiglu",),
        variants=(), count=3, times=False, models=False, failures=(), hands=1,
    ).hand("cpu")  # fmt: skip
    ((unit, _),) = mine.plan()
    assert unit == ("swiglu-mine-cpu",)
    # A case without rows has nothing that could be wrong.
    assert {Record.from_json(line).outcome for line in mine.do(unit)} == {"pass", "wrong"}
