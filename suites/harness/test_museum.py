"""Exhibits say where they come from, break one line, and are right without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimax_m2.harness.judge import judge
from minimax_m2.harness.model_checks import FAILURES
from minimax_m2.harness.museum import WHOLES, Exhibit, exhibits, load, mended, museum_dir, read_exhibit
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.verdict import Outcome

FOLDER = museum_dir() or Path()
EXHIBITS = exhibits(FOLDER)
OF_OPS = [exhibit for exhibit in EXHIBITS if exhibit.subject not in WHOLES]


def name(exhibit: Exhibit) -> str:
    return f"{exhibit.subject}-{exhibit.name}"


@pytest.mark.parametrize("exhibit", OF_OPS, ids=name)
def test_an_exhibit_is_right_without_its_line(tmp_path: Path, exhibit: Exhibit) -> None:
    file = tmp_path / exhibit.path.name
    file.write_text(mended(exhibit.path.read_text()))
    provider = from_object(load(file), name=exhibit.name)
    verdicts = [judge(case, provider) for case in sampled(find_op(exhibit.subject), 10)]
    assert [v.explain() for v in verdicts if not v.passed and v.outcome is not Outcome.UNSUPPORTED] == []


@pytest.mark.parametrize("exhibit", [e for e in EXHIBITS if e.subject in WHOLES], ids=name)
def test_a_whole_is_caught_with_its_line_and_right_without(tmp_path: Path, exhibit: Exhibit) -> None:
    file = tmp_path / exhibit.path.name
    file.write_text(mended(exhibit.path.read_text()))
    failures = FAILURES[exhibit.subject]
    assert exhibit.check in dict(failures(getattr(load(exhibit.path), exhibit.offers)))
    assert dict(failures(getattr(load(file), exhibit.offers))) == {}


def test_the_museum_covers_every_op_and_thirty_are_held_out() -> None:
    assert {*all_ops(), *WHOLES} == {exhibit.subject for exhibit in EXHIBITS}
    assert len(EXHIBITS) >= 45
    # A third of what there was when checks were tuned; what was added later has seen them.
    assert sum(exhibit.held_out for exhibit in EXHIBITS) >= 30


WHOLE = '''
"""An exhibit."""
EXHIBIT = {
    "subject": "swiglu",
    "source": "https://github.com/vllm-project/vllm/pull/1",
    "symptom": "gibberish",
    "check": "y:element",
    "tolerance": None,
}


def swiglu(gate_up):
    # right: return 1
    return 2
'''


@pytest.mark.parametrize(
    "old, new, complaint",
    [
        ('"swiglu"', '"swigloo"', "is no op"),
        ("https://github.com/vllm-project/vllm/pull/1", "vllm#1", "is no public issue"),
        ('"gibberish"', '""', "say something"),
        ('"tolerance": None', '"tolerance": (1e-2, 1e-2)', "come together"),
        ('"symptom": "gibberish",', "", "expected"),
        ("# right: return 1", "# return 1", "0 comments"),
        ("def swiglu", "def silu", "and no other op"),
        ("EXHIBIT = {", "EXHIBITS = {", "0 assignments"),
    ],
)
def test_an_exhibit_that_lacks_something_is_refused(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    file = tmp_path / "exhibit.py"
    file.write_text(WHOLE.replace(old, new))
    with pytest.raises(ValueError, match=complaint):
        read_exhibit(file)


def test_mending_changes_one_line(tmp_path: Path) -> None:
    assert mended(WHOLE).splitlines() == [
        *WHOLE.splitlines()[:-2],
        "    return 1",
    ]
