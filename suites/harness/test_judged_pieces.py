"""Many sequences are judged a few at a time: all of them, under one false-alarm rate, in memory that a few need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.case import Case
from minimax_m2.harness.contenders import Side, shaped
from minimax_m2.harness.expectation import Outputs, Tensors, expectation
from minimax_m2.harness.judged_pieces import by_pieces
from minimax_m2.harness.op import find_op
from minimax_m2.harness.ops import gated_delta_rule
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.stopwatch import Stopwatch
from minimax_m2.harness.verdict import Outcome

OP = find_op("gdn_update")
# Five sequences of up to nine tokens, every other one padding, in eleven slots; padding in front and behind.
SMALL = OP.case(B=5, S=9, Hv=1, Hk=1, Dk=16, Dv=16, queries="prefill", index="some", pad=3)
PER_SEQUENCE = 16 * 16


def returned(case: Case) -> Outputs:
    """What plain torch returns, then the states that it wrote."""
    watch = Stopwatch(plain(), [case.json])
    watch.start()
    return watch.outputs(0)


def judged(outputs: Outputs, case: Case = SMALL) -> tuple[Outcome, str]:
    return by_pieces(OP, case, {}, outputs)[:2]


@pytest.fixture(autouse=True)
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_delta_rule, "PIECE", 2 * PER_SEQUENCE)


def test_pieces_hold_every_token_and_every_slot_once() -> None:
    given = OP.inputs(SMALL, Bits(SMALL))
    numbers = torch.arange(len(given["v"])), torch.arange(len(given["state"]))
    pieces = [outputs for _, outputs in gated_delta_rule.pieces(given, numbers)]
    assert len(pieces) == 4
    assert torch.cat([o for o, _ in pieces]).sort().values.equal(numbers[0])
    assert torch.cat([state for _, state in pieces]).sort().values.equal(numbers[1])


def test_a_right_result_passes_and_all_of_it_was_seen() -> None:
    outputs = returned(SMALL)
    outcome, told, found = by_pieces(OP, SMALL, {}, outputs)
    assert outcome is Outcome.PASS, told
    assert sum(c.elements for c in found) == sum(o.numel() for o in outputs)


@pytest.mark.parametrize("whose", ["a sequence's", "nobody's"])
def test_a_wrong_state_is_told_whosever_it_is(whose: str) -> None:
    outputs, index = returned(SMALL), OP.inputs(SMALL, Bits(SMALL))["state_index"].long()
    named = torch.zeros(len(outputs[1]), dtype=torch.bool).index_fill_(0, index[index >= 0], True)
    slot = int((named if whose == "a sequence's" else ~named).nonzero()[-1])
    outputs[1][slot, 0, 3, 5] += 0.5
    outcome, told = judged(outputs)
    assert outcome is Outcome.WRONG
    assert told.startswith("state at")
    assert told.endswith("in one of 4 pieces")


@pytest.mark.parametrize("row", [0, 3, -1], ids=["padding in front", "a token", "padding behind"])
def test_a_wrong_token_is_told_wherever_it_is(row: int) -> None:
    outputs = returned(SMALL)
    outputs[0][row] += 0.5
    assert judged(outputs)[0] is Outcome.WRONG


def shorter(outputs: Outputs) -> Outputs:
    return outputs[0][:-1], outputs[1]


def longer(outputs: Outputs) -> Outputs:
    return outputs[0], torch.cat([outputs[1], outputs[1][:1]])


@pytest.mark.parametrize("change", [shorter, longer, lambda outputs: outputs[:1]], ids=["shorter", "longer", "fewer"])
def test_rows_too_few_or_too_many_are_told(change: Any) -> None:
    assert judged(change(returned(SMALL)))[0] is Outcome.WRONG_SHAPE


def test_a_timed_batch_has_keys_as_wide_as_they_are_said() -> None:
    assert OP.case(B=16)["Dk"] == 16
    assert [shaped(OP, "decode", {"B": 16})[name] for name in ("B", "Hv", "Dk", "Dv")] == [16, 32, 128, 128]
    assert shaped(OP, "decode", {"B": 16, "Dk": 64})["Dk"] == 64


def test_a_timed_batch_is_judged_by_pieces() -> None:
    watch = Stopwatch(plain(), [SMALL.json])
    watch.start()
    verdict = Side(plain(), "", None).judged(OP, [SMALL], watch)
    assert verdict.passed, verdict.evidence
    assert len(verdict.comparisons) == 4 * len(OP.outputs)


def families(value: Budgeted | Tensor) -> int:
    return len(value.shared) if isinstance(value, Budgeted) else 0


def test_a_batch_has_as_many_families_of_shared_errors_as_a_sequence() -> None:
    cases = [OP.case(B=B, Hv=1, Hk=1, Dk=16, Dv=16) for B in (1, 5)]
    found = [expectation(OP, case, OP.full_contract(case, {})) for case in cases]
    assert all(isinstance(one, Tensors) for one in found)
    one, many = ({name: families(v) for name, v in right.expected.items()} for right in found)  # type: ignore[attr-defined]
    assert one == many == {"o": 4, "state": 2}


# Peak memory in bytes that judging takes beyond what inputs and outputs took, and the bytes of the states in float64.
PEAK = r"""
import re, sys
from pathlib import Path
from minimax_m2.harness.contenders import shaped
from minimax_m2.harness.judged_pieces import by_pieces
from minimax_m2.harness.op import find_op
from minimax_m2.harness.ops import gated_delta_rule
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.stopwatch import Stopwatch

def peak():
    # Not getrusage: there a process begins with the peak of the one that started it.
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

def judged_peak(sequences):
    case = shaped(op, "decode", {"B": sequences, "Hv": 1, "Hk": 1})
    watch = Stopwatch(plain(), [case.json])
    watch.start()
    outputs, before = watch.outputs(0), peak()
    outcome, told, _ = by_pieces(op, case, {}, outputs)
    assert outcome.value == "pass", told
    return peak() - before, 8 * outputs[1].numel()

op = find_op("gdn_update")
gated_delta_rule.PIECE = int(sys.argv[1])
# What is imported at a first call is no memory of judging.
judged_peak(2)
print(*judged_peak(64))
"""


def growth(piece: int) -> float:
    """Peak memory of judging 64 sequences, ``piece`` elements of their states at once, in copies of all states."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(piece)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken, states = (int(word) for word in done.stdout.split())
    return taken / states


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from Linux")
def test_memory_of_judging_is_that_of_a_piece() -> None:
    # The inputs are drawn once more, in float64.
    assert growth(2**16) < 4
    assert growth(2**30) > 6, "a budget keeps more numbers than that of each: this cannot tell a piece from the whole"
