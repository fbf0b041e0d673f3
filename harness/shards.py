"""Parts of a whole for many machines: ``--shard 2/8`` is the second of eight.

Every machine makes the same list and takes its part, so nobody deals. Neighbours stay together, since the cells of an
op share its inputs and its expectation; the list is cut where equal shares of its cost end.

``python -m minimax_m2.harness.shards`` measures ``seconds.toml`` anew.
"""

from __future__ import annotations

import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from minimax_m2.harness.wrong_use import WrongUse

# What one cell of an op takes untimed, by op: only their ratios count.
SECONDS = Path(__file__).with_name("seconds.toml")
CASES = 12
# What scoring whole models is called beside the cells of a plan.
MODELS = "models"
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Shard:
    """The ``index``-th of ``count`` parts, counted from 1."""

    index: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def is_whole(self) -> bool:
        return self.count == 1

    def of(self, items: Sequence[Item], cost: Callable[[Item], float | None]) -> list[Item]:
        """The items of this part. What has no known cost is taken for the median of what has one.

        No part costs more than its equal share and one item.
        """
        costs = _filled([cost(item) for item in items])
        ends = list(accumulate(costs))
        # An item belongs where its middle lies.
        part = (int((end - own / 2) / ends[-1] * self.count) for end, own in zip(ends, costs, strict=True))
        return [item for item, at in zip(items, part, strict=True) if at == self.index - 1]


WHOLE = Shard()


def sharded(text: str) -> Shard:
    """``2/8`` as a part. Raises WrongUse for what is no part of a whole."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise WrongUse(f"--shard {text!r} is no part of a whole; write 2/8 for the second of eight")
    return Shard(int(index), int(count))


def seconds_of(op_name: str) -> float | None:
    """What one cell of an op takes; None where nobody measured it."""
    return _known().get(op_name)


@cache
def _known() -> dict[str, float]:
    return {name: float(value) for name, value in tomllib.loads(SECONDS.read_text()).items()}


def _filled(costs: Sequence[float | None]) -> list[float]:
    known = [one for one in costs if one is not None and one > 0]
    middle = statistics.median(known) if known else 1.0
    return [one if one is not None and one > 0 else middle for one in costs]


def measured(op_names: Iterable[str]) -> dict[str, float]:
    """Seconds of one cell of each op: plain torch and our kernels on ``CASES`` cases, per cell."""
    from minimax_m2.harness.matrix import cells
    from minimax_m2.harness.providers.ours import ours
    from minimax_m2.harness.providers.plain import plain
    from minimax_m2.harness.run import run

    providers, found = [plain(), ours()], {}
    for name in op_names:
        # Neither what else runs here nor the compiler counts.
        start = time.process_time()
        for _ in run(providers, ops=[name], count=CASES, name="shards"):
            pass
        found[name] = (time.process_time() - start) / len(cells(providers, [name]))
    return found


def measured_models() -> float:
    """Seconds of whole models of the same providers on tiny-m2, 0 where it is not here."""
    from minimax_m2.harness.models import score_models, tiny_m2
    from minimax_m2.harness.providers.ours import ours
    from minimax_m2.harness.providers.plain import plain

    folder, start = tiny_m2(), time.process_time()
    for _ in score_models([plain(), ours()], folder, run="shards") if folder else ():
        pass
    return time.process_time() - start


def main() -> None:
    """Print the table as TOML."""
    from minimax_m2.harness.op import all_ops

    lines = [
        f"# CPU seconds, {CASES} cases, untimed: of one cell of an op, and of whole models; shards.py measures them"
    ]
    table = measured(all_ops()) | {"models": measured_models()}
    lines += [f"{name} = {seconds:.3g}" for name, seconds in sorted(table.items())]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
