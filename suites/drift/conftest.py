"""tiny-m2 beside the reference, and the faults that are planted in it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from minimax_m2.harness import cli
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import Fault, read_faults
from minimax_m2.harness.drift.running import Beside
from minimax_m2.harness.drift.subjects import checkpoint_subject
from minimax_m2.harness.drift.trajectory import Subject, Trajectory
from minimax_m2.harness.providers.plain import plain


@pytest.fixture(scope="session")
def tiny() -> Subject:
    """tiny-m2 on four pages of its text."""
    return checkpoint_subject(None, None, length=64)


@pytest.fixture(scope="session")
def clean() -> Candidate:
    """A right candidate: plain torch in float32, every step rounded once."""
    return Candidate(provider=plain())


@pytest.fixture(scope="session")
def trajectory(tiny: Subject, clean: Candidate) -> Trajectory:
    return Trajectory(tiny, offered=clean.offered())


@pytest.fixture(scope="session")
def beside(tiny: Subject) -> Beside:
    return Beside(tiny)


@pytest.fixture(scope="session")
def faults() -> dict[str, Fault]:
    """Every kind of fault, by name."""
    return {fault.name: fault for fault in read_faults(Path(__file__).with_name("faults"))}


M2Check = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="session")
def m2check() -> M2Check:
    """The command line in a folder, in this process: a start takes longer than what is asked here."""

    def run(folder: Path, *words: str) -> CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["m2check", *words])
            with pytest.raises(SystemExit) as left:
                cli.main()
        return CompletedProcess(words, int(left.value.code or 0), out.getvalue(), err.getvalue())

    return run
