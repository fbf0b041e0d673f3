"""An op's share of a step is of the whole step, whatever else of it a lane has timed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minimax_m2.harness.history.panel import Panel
from minimax_m2.harness.history.simulated import World, simulated
from minimax_m2.harness.history.weight import PATH, shares
from minimax_m2.harness.op import find_op

BYTES_A_US = 3e4


def lane(*ops: str) -> Panel:
    """Decode of these ops on a machine that is bound by its memory."""
    panel = simulated(World(seed=1, nights=2, ops=ops, providers=("ours",), shapes=("decode",)))
    for row, op in enumerate(ops):
        declared = find_op(op)
        panel.roof_us[row] = declared.cost(declared.shape("decode")).bytes / BYTES_A_US
    return panel


def test_the_ops_of_a_step_are_the_whole_of_it() -> None:
    assert round(sum(shares(lane(*PATH))), 12) == 1


@pytest.mark.parametrize("ops", [("routing", "router"), ("linear", "lm_head", "attention")])
def test_what_is_not_timed_counts_too(ops: tuple[str, ...]) -> None:
    every = tuple(dict.fromkeys((*PATH, *ops)))
    whole = dict(zip(every, shares(lane(*every)), strict=True))
    assert [round(one, 12) for one in shares(lane(*ops))] == [round(whole[op], 12) for op in ops]


def test_what_no_step_calls_has_no_share() -> None:
    panel = lane("routing")
    panel.series[0] = replace(panel.series[0], op="of_nobody")
    assert shares(panel) == [0.0]
