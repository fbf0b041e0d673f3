"""A list of comparisons: what its lines say, what of it is made here, and that the list of a GPU can be made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from minimax_m2.harness import comparisons
from minimax_m2.harness.cli import WRONG
from minimax_m2.harness.comparisons import NOTHING_MEASURED, Wanted, main, wanted
from minimax_m2.harness.contenders import shaped
from minimax_m2.harness.op import find_op
from minimax_m2.harness.paired import read_pairs
from minimax_m2.harness.peers import can, offers
from minimax_m2.harness.roofline import Roof

LIST = Path(__file__).resolve().parents[2] / "ci" / "performance_gpu.txt"
ASKED = wanted(LIST.read_text().splitlines())


def test_a_line_says_what_follows_compare_ours() -> None:
    (found,) = wanted(
        ["# a comment", "", "plain --op routing --shape prefill --set T=16 --set bias=none --at-least 1.5"]
    )
    assert found == Wanted(
        text="plain --op routing --shape prefill --set T=16 --set bias=none --at-least 1.5", peer="plain", op="routing",
        shape="prefill", setting={"T": 16, "bias": "none"}, at_least=1.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    "line, told",
    [
        ("plain --set T=16", "is no comparison"),
        ("plain --op routing --out x", "holds '--out', which is no option of a comparison"),
        ("plain --op routing --at-least much", "is no comparison"),
        ("plain --op routing --set T", "--set 'T' is no assignment"),
    ],
)
def test_a_line_that_is_no_comparison_is_refused(line: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        wanted([line])


@pytest.mark.parametrize("one", ASKED, ids=[one.text for one in ASKED])
def test_the_list_asks_for_nothing_that_a_peer_cannot_express(one: Wanted) -> None:
    op = find_op(one.op)
    assert one.op in offers(one.peer)
    assert can(one.peer)(op, shaped(op, one.shape, one.setting)) is None


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a list is written; ours is plain torch, and the machine's roof is known."""
    monkeypatch.setattr(comparisons, "OURS", "plain")
    monkeypatch.setattr(comparisons, "roof_of", lambda device, tell: Roof({1 << 30: 1e9}, {"float32": 1e9}))
    monkeypatch.setattr(sys, "argv", ["comparisons", str(tmp_path / "list.txt"), str(tmp_path / "out.jsonl"), "0"])
    return tmp_path


def test_what_is_here_is_compared_and_what_is_not_is_told(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (listed / "right.py").write_text("def rms_norm(x, weight, *, eps):\n    return x\n")
    lines = [f"{listed}/right.py --op rms_norm --set H=64 --at-least 2", "vllm-cuda --op rms_norm", "plain --op swiglu"]
    (listed / "list.txt").write_text("\n".join(lines))
    assert main() == WRONG
    wrong, right = read_pairs(listed / "out.jsonl")
    assert (wrong.a.outcome, wrong.b.outcome, wrong.at_least) == ("pass", "wrong", 2.0)
    assert right.b.passed
    assert right.at_least is None
    told = capsys.readouterr().out.splitlines()
    assert "right is wrong: y at " in told[0]
    assert "vllm-cuda --op rms_norm: " in told[1]
    assert "is not here" in told[1]


def test_a_list_of_nothing_that_is_here_measures_nothing(listed: Path) -> None:
    (listed / "list.txt").write_text("deep-gemm --op fp8_linear")
    assert main() == NOTHING_MEASURED
