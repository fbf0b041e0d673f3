"""Units of work spread over a Ray cluster by resource: each is done by some machine that has it, and told once.

A machine says what it has when it joins::

    ray start --address=HEAD:6379 --resources="$(python -m minimax_m2.harness.fleet)"

Resources are devices, with the kind where kinds differ: ``cpu``, ``cpu:avx512_bf16``, ``gpu:sm_90``, ``npu``; as many
of one as hands that the machine lends. Needs the extra ``fleet``; Ray is imported when it is asked for.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from minimax_m2.harness.devices import DEVICES, absence
from minimax_m2.harness.hands import Job, Unit, settle, threads_of
from minimax_m2.harness.matrix import machine_kind
from minimax_m2.harness.provenance import commit
from minimax_m2.harness.wrong_use import WrongUse

# A unit whose machine dies goes to another, so often; one that kills its machines must not eat the fleet.
TRIES = 3
# Seconds without an answer from anybody, and without anybody at work.
PATIENCE = 300.0
START = 'start one by: ray start --head --resources="$(python -m minimax_m2.harness.fleet)"'

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Done:
    """One unit, the lines that it was answered by, and the host that did it."""

    unit: Unit
    lines: list[str]
    host: str


class Remote:
    """What runs on a machine of the fleet: a job's hand."""

    def __init__(self, job: Job, device: str, hands: int) -> None:
        self._about = settle(threads_of(hands))
        self._hand = job.hand(device)

    def about(self) -> tuple[str, str, list[tuple[Unit, float | None]]]:
        """This machine's host and commit, and the units that it could do."""
        return str(self._about["host"]), str(self._about["commit"]), self._hand.plan()

    def do(self, unit: Unit) -> list[str]:
        """Do one unit."""
        return self._hand.do(unit)


@dataclass(slots=True)
class Crew:
    """The hands of one resource, and what is left for them to do."""

    resource: str
    size: int
    ready: dict[Any, str] = field(default_factory=dict)
    left: deque[Unit] = field(default_factory=deque)
    planned: bool = False


class Fleet:
    """A Ray cluster that this process has joined. Raises WrongUse where there is none, or none with these resources."""

    def __init__(self, address: str, resources: Sequence[str]) -> None:
        try:
            import ray
        except ImportError as error:
            raise WrongUse("ray is not here; pip install 'minimax-m2-harness[fleet]'") from error
        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise WrongUse(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}; {START}") from error
        there = {name: int(amount) for name, amount in ray.cluster_resources().items() if device_of(name)}
        for name in resources:
            if name not in there:
                self.close()
                known = ", ".join(sorted(there)) or f"none of ours; {START}"
                raise WrongUse(f"no machine of the cluster has the resource {name!r}; it has {known}")
        self.crews = [Crew(name, there[name]) for name in sorted(resources or there)]
        if not self.crews:
            self.close()
            raise WrongUse(f"the cluster has none of our resources; {START}")

    @property
    def hands(self) -> int:
        """How many hands there are."""
        return sum(crew.size for crew in self.crews)

    def close(self) -> None:
        """Leave the cluster; the hands end with it."""
        self._ray.shutdown()

    def spread(
        self, job: Job, *, chosen: Callable[[Unit], bool] = lambda unit: True,
        until: Callable[[], bool] = lambda: False, progress: Progress = lambda text, share: None,
    ) -> Iterator[Done]:  # fmt: skip
        """Do every unit of the job that is ``chosen`` once, the costly ones first; none is begun after ``until``.

        Raises RuntimeError where a hand is of another commit, fails, kills its machine ``TRIES`` times, or where nobody
        is left who answers.
        """
        ray, waiting, tries = self._ray, dict[Any, tuple[Crew, Any, Unit | None]](), Counter[Unit]()
        total = done = 0
        for crew in self.crews:
            crew.planned = False
            for _ in range(crew.size):
                self._hire(crew, job, waiting)
        heard = time.monotonic()
        while any(unit is not None for *_, unit in waiting.values()) or self._is_open(waiting, until):
            found, _ = ray.wait(list(waiting), num_returns=1, timeout=5.0)
            if not found:
                if time.monotonic() - heard > PATIENCE and all(unit is None for *_, unit in waiting.values()):
                    raise RuntimeError(
                        f"nobody of the fleet has answered for {PATIENCE:.0f} s; ray status says who is there"
                    )
                continue
            heard = time.monotonic()
            crew, hand, unit = waiting.pop(found[0])
            try:
                answer = ray.get(found[0])
            except ray.exceptions.RayActorError as error:
                crew.ready.pop(hand, None)
                what = unit or (f"making a hand of {crew.resource}",)
                tries[what] += 1
                if tries[what] == TRIES:
                    raise RuntimeError(f"{' '.join(what)} has ended its process {TRIES} times: {error}") from error
                progress(f"{' '.join(what)[:60]}: its process ended; another takes it", done / max(1, total))
                crew.left.extendleft([unit] if unit else [])
                self._hire(crew, job, waiting)
                self._feed(crew, waiting, until)
                continue
            except ray.exceptions.RayTaskError as error:
                raise RuntimeError(f"{' '.join(unit or ('a hand',))} failed on {crew.resource}: {error}") from error
            if unit is None:
                total += self._introduced(crew, hand, answer, chosen)
            else:
                done += 1
                progress(f"{crew.ready[hand]}: {' '.join(unit)[:60]}", done / max(1, total))
                yield Done(unit, answer, crew.ready[hand])
            self._feed(crew, waiting, until)
        for crew in self.crews:
            for hand in [*crew.ready, *(h for c, h, _ in waiting.values() if c is crew)]:
                ray.kill(hand)
            crew.ready.clear()
            crew.left.clear()

    def _hire(self, crew: Crew, job: Job, waiting: dict[Any, tuple[Crew, Any, Unit | None]]) -> None:
        """Ask for a hand; it answers when some machine has made it."""
        device = device_of(crew.resource)
        made = self._ray.remote(Remote).options(
            resources={crew.resource: 1}, num_cpus=0, num_gpus=int(device == "gpu"), max_restarts=0, max_task_retries=0
        )
        hand: Any = made.remote(job, device, self._hands_a_node(crew.resource))
        waiting[hand.about.remote()] = (crew, hand, None)

    def _hands_a_node(self, resource: str) -> int:
        lent = [int(node["Resources"].get(resource, 0)) for node in self._ray.nodes() if node["Alive"]]
        return max([1, *lent])

    def _introduced(self, crew: Crew, hand: Any, about: Any, chosen: Callable[[Unit], bool]) -> int:
        """Note a hand that is ready; the first of a crew brings the plan. How many units are new."""
        host, of_commit, plan = about
        if of_commit != commit():
            raise RuntimeError(
                f"{host} has commit {of_commit}, this is {commit()}: their records would not be of one run"
            )
        crew.ready[hand] = host
        if crew.planned:
            return 0
        crew.planned = True
        mine = [(unit, cost or 0.0) for unit, cost in plan if chosen(unit)]
        crew.left.extend(unit for unit, _ in sorted(mine, key=lambda one: -one[1]))
        return len(mine)

    def _feed(self, crew: Crew, waiting: dict[Any, tuple[Crew, Any, Unit | None]], until: Callable[[], bool]) -> None:
        """Give whoever of a crew is idle something to do."""
        busy = {hand for _, hand, _ in waiting.values()}
        for hand in [hand for hand in crew.ready if hand not in busy]:
            if not crew.left or until():
                return
            unit = crew.left.popleft()
            waiting[hand.do.remote(unit)] = (crew, hand, unit)

    def _is_open(self, waiting: dict[Any, tuple[Crew, Any, Unit | None]], until: Callable[[], bool]) -> bool:
        """Whether a crew has no plan yet, or has something left that may still be begun."""
        return bool(waiting) and any(not crew.planned or (crew.left and not until()) for crew in self.crews)


def device_of(resource: str) -> str:
    """The device that a resource names, empty where it is none of ours."""
    device = resource.partition(":")[0]
    return device if device in DEVICES else ""


def resources_here() -> dict[str, int]:
    """What this machine has, as it says when it joins: a hand a device, as timings take a machine whole."""
    found = {f"cpu:{machine_kind('cpu')}": 1}
    if absence("gpu") is None:
        found[f"gpu:{machine_kind('gpu')}"] = torch.cuda.device_count()
    if absence("npu") is None:
        found["npu"] = 1
    return found


def main() -> None:
    """Print this machine's resources as ``ray start`` takes them."""
    sys.stdout.write(json.dumps(resources_here()) + "\n")


if __name__ == "__main__":
    main()
