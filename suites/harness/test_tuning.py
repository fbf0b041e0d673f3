"""Tuning: a wrong path is never chosen however fast it is, and a choice holds for its device and kernels only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.harness.case import Case
from minimax_m2.harness.cli import app
from minimax_m2.harness.commands_tune import chosen_paths
from minimax_m2.harness.devices import absence
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import Op, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.tuning import SHAPES, VARIED, best, cases_of, measured
from minimax_m2.harness.verdict import Outcome, Verdict
from minimax_m2.kernels.gpu import experts, fp8_linear, tuned

ABLE = ("own", "wrong but fast", "faster", "hardly faster")
TIMES = {"own": 100.0, "wrong but fast": 1.0, "faster": 90.0, "hardly faster": 99.0}
RMS_NORM = find_op("rms_norm")


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, able: tuple[str, ...] = ABLE) -> Tensor:
    """A norm of four paths, of which one doubles."""
    path = tuned.chosen("rms_norm", f"T <= {len(x)}", able, x)
    y = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps) * weight.float()
    return (y * (2 if path == "wrong but fast" else 1)).to(x.dtype)


def provider(function: Callable[..., Any] = rms_norm) -> Provider:
    return Provider(name="four paths", device="cpu", functions=lambda name: function if name == "rms_norm" else None)


def time(op: Op, case: Case, of: Provider) -> float:
    """The time of the path in force."""
    with tuned.watched():
        return TIMES[tuned.chosen("rms_norm", "", ABLE, torch.empty(0))]


def test_a_wrong_path_is_never_chosen_however_fast() -> None:
    found = measured(RMS_NORM, [RMS_NORM.case(T=4)], provider(), timed=time)

    assert [(c.path, c.us) for c in found] == [("own", 100.0), ("wrong but fast", None), ("faster", 90.0),
                                               ("hardly faster", 99.0)]  # fmt: skip
    assert "rms_norm" in found[1].wrong
    assert chosen_paths([found]) == {"rms_norm": {"T <= 4": "faster"}}


def test_a_path_must_be_faster_by_more_than_noise() -> None:
    found = measured(RMS_NORM, [RMS_NORM.case(T=4)], provider(), timed=time)

    assert best([found[0], found[3]]) is found[0]
    assert chosen_paths([[found[0], found[3]]]) == {}


def test_where_nothing_is_right_nothing_is_chosen() -> None:
    found = measured(RMS_NORM, [RMS_NORM.case(T=4)], provider(), timed=time)

    assert best(found[1:2]) is None
    assert chosen_paths([found[1:2]]) == {}


@pytest.mark.parametrize(("others", "expected"), [(1, 100.0), (0, None)], ids=["one case tells", "no case tells"])
def test_a_case_too_small_for_its_noise_tells_nothing_of_a_path(others: int, expected: float | None) -> None:
    small = RMS_NORM.case(T=4)
    cases = [small, RMS_NORM.case(T=4, seed=1)][: 1 + others]

    def judged(case: Case, of: Provider) -> Verdict:
        verdict = judge(case, of)
        return replace(verdict, outcome=Outcome.UNSUPPORTED) if case == small else verdict

    found = measured(RMS_NORM, cases, provider(), judged=judged, timed=time)

    assert [found[0].us, found[1].us] == [expected, None]


def test_cases_of_several_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="buckets"):
        measured(RMS_NORM, [RMS_NORM.case(T=4), RMS_NORM.case(T=5)], provider(), timed=time)


def test_a_forced_path_that_cannot_run_is_refused() -> None:
    with tuned.forced("rms_norm", "of another device"), pytest.raises(ValueError, match="cannot run"):
        rms_norm(torch.ones(2, 4), torch.ones(4), eps=1e-6)


@pytest.mark.parametrize("op", SHAPES)
def test_what_is_judged_lies_in_the_bucket_of_what_is_timed(op: str) -> None:
    buckets = {"experts": lambda c: experts.bucket(c.number("T") * c.number("K"), c.number("E")),
               "fp8_linear": lambda c: fp8_linear.bucket(c.number("T"), c.number("N"), c.number("H"))}  # fmt: skip

    for fields in SHAPES[op]:
        cases = cases_of(find_op(op), fields)
        assert len({buckets[op](case) for case in cases}) == 1
        assert len(cases) == 1 + len(VARIED[op])


def test_choices_are_kept_and_read(tmp_path: Path) -> None:
    file = tmp_path / "choices.json"
    tuned.write(file, "some GPU", {"experts": {"slots <= 8": "rows"}})

    assert tuned.read(file, "some GPU") == {"experts": {"slots <= 8": "rows"}}
    with pytest.raises(ValueError, match="tuned for device 'some GPU', here is 'another'"):
        tuned.read(file, "another")


def test_choices_of_other_kernels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "choices.json"
    tuned.write(file, "some GPU", {})
    monkeypatch.setattr(tuned, "kernels_hash", lambda: "another")

    with pytest.raises(ValueError, match="tuned for kernels"):
        tuned.read(file, "some GPU")
    assert "another" in tuned.place("some GPU").name


@pytest.fixture
def read_anew() -> None:
    """Choices are read once a process."""
    tuned.choices.cache_clear()


@pytest.mark.usefixtures("read_anew")
def test_one_setting_names_the_file_or_turns_choices_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "choices.json"
    tuned.write(file, "some GPU", {"experts": {"slots <= 8": "rows"}})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    monkeypatch.setenv(tuned.SETTING, str(file))

    assert tuned.choices(0) == {"experts": {"slots <= 8": "rows"}}
    tuned.choices.cache_clear()
    monkeypatch.setenv(tuned.SETTING, "off")
    assert tuned.choices(0) == {}
    tuned.choices.cache_clear()


@pytest.mark.skipif(absence("gpu") is None, reason="a GPU is here")
def test_without_a_gpu_nothing_is_measured() -> None:
    done = CliRunner().invoke(app, ["tune"])

    assert done.exit_code == 5
    assert "nothing was measured" in done.output


def test_an_op_of_one_path_is_refused() -> None:
    done = CliRunner().invoke(app, ["tune", "--op", "rms_norm"])

    assert "one code path only" in f"{done.output} {done.exception}"
    assert done.exit_code != 0
