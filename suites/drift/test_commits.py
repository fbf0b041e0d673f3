"""The search names the commit that was planted, gives a range where it cannot, and refuses ends that do not differ."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from minimax_m2.harness.drift.commits import Abort, Outcome, search
from minimax_m2.harness.drift.histories import make_history
from minimax_m2.harness.drift.sequential import Ends, EndsAlike, Pair, Sequential, is_slow, measured_ends
from minimax_m2.harness.drift.worktrees import Repository

COMMITS = [f"c{i}" for i in range(64)]
# Reads the number; a commit that does not parse cannot be tested.
CHECK = "python -m py_compile kernel.py || exit 125; python -c 'import kernel, sys; sys.exit(kernel.GAIN != 1.0)'"


def planted(step: int, broken: range = range(0)) -> dict[str, Outcome]:
    return {
        name: Outcome.UNTESTABLE if i in broken else Outcome.BAD if i >= step else Outcome.GOOD
        for i, name in enumerate(COMMITS)
    }


@pytest.mark.parametrize("step", range(1, 64))
def test_every_planted_commit_is_found_in_six_tests_and_the_ends(step: int) -> None:
    found = search(COMMITS, planted(step).__getitem__)
    assert found.commits == (COMMITS[step],)
    assert len(found.tested) <= 2 + 6


@pytest.mark.parametrize("step", range(1, 64, 7))
@pytest.mark.parametrize("start", [10, 28, 50])
def test_the_commit_behind_a_broken_range_is_never_named_alone(step: int, start: int) -> None:
    broken = range(start, start + 5)
    found = search(COMMITS, planted(step, broken).__getitem__)
    assert COMMITS[step] in found.commits
    hidden = step in range(start, start + 6)
    assert found.commits == (tuple(COMMITS[start : start + 6]) if hidden else (COMMITS[step],))


@pytest.mark.parametrize("step, told", [(0, "the good end c0 is bad"), (99, "the bad end c63 is good")])
def test_ends_that_do_not_differ_are_refused(step: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        search(COMMITS, planted(step).__getitem__)


@pytest.mark.parametrize("step, broken", [(41, ()), (20, range(18, 23))])
def test_a_history_of_git_is_searched_in_worktrees_of_its_commits(
    tmp_path: Path, step: int, broken: range | tuple[()]
) -> None:
    commits = make_history(tmp_path / "made", commits=64, step=step, broken=broken)
    with Repository(tmp_path / "made", tmp_path / "laid out") as repository:
        line = repository.between(commits[0], "main")
        found = search(line, lambda commit: repository.test(commit, CHECK))
        assert repository.subject(commits[step]).endswith(f"change {step}")
    assert line == commits
    assert found.commits == (tuple(commits[18:24]) if broken else (commits[step],))
    assert not (tmp_path / "laid out").exists()
    assert repository.git("worktree", "list").count("\n") == 0


def test_what_does_not_build_cannot_be_tested_and_a_broken_test_ends_the_search(tmp_path: Path) -> None:
    commits = make_history(tmp_path / "made", commits=3, step=1, broken=[1])
    with Repository(tmp_path / "made", tmp_path / "out", build="python -m py_compile kernel.py") as repository:
        assert repository.test(commits[1], "exit 0") is Outcome.UNTESTABLE
        assert "does not build" in repository.told[commits[1]]
        assert repository.test(commits[2], "exit 3") is Outcome.BAD
        with pytest.raises(Abort, match="ended in 128"):
            repository.test(commits[2], "exit 128")
        assert repository.number(commits[0], "echo 0.25") == 0.25
        with pytest.raises(Abort, match="printed no number"):
            repository.number(commits[0], "echo slow")


def test_a_good_end_that_is_no_ancestor_is_refused(tmp_path: Path) -> None:
    commits = make_history(tmp_path / "made", commits=3, step=1)
    with Repository(tmp_path / "made", tmp_path / "out") as repository, pytest.raises(ValueError, match="no ancestor"):
        repository.between(commits[2], commits[0])


def pair_of(ratio: float, dice: random.Random, *, noise: float = 0.02, drift: float = 0.03) -> Pair:
    """Pairs of one visit: the machine's own speed, which both share, and noise of each time."""
    speed = 1 + dice.gauss(0, drift)

    def pair() -> float:
        good, bad = (speed * x * (1 + dice.gauss(0, noise)) for x in (1.0, ratio))
        return math.log(bad / good)

    return pair


def found_by_time(seed: int, *, slowdown: float = 1.05) -> bool:
    dice = random.Random(seed)
    step = dice.randrange(1, 64)
    ends = measured_ends(pair_of(slowdown, dice))

    def test(commit: str) -> Outcome:
        slow = is_slow(pair_of(slowdown if int(commit[1:]) >= step else 1.0, dice), ends)
        return Outcome.UNTESTABLE if slow is None else Outcome.BAD if slow else Outcome.GOOD

    return search(COMMITS, test, ends_differ=True).commits == (COMMITS[step],)


HISTORIES, FOUND = 40, 0.95


def test_a_slowdown_of_five_per_cent_is_found_under_noise_and_drift() -> None:
    """2 % of noise a time, 3 % of drift between visits; all pairs of a decision within its budget of 60."""
    assert sum(found_by_time(seed) for seed in range(HISTORIES)) >= FOUND * HISTORIES


def test_ends_of_equal_speed_are_refused() -> None:
    with pytest.raises(EndsAlike, match="no slowdown is shown"):
        measured_ends(pair_of(1.0, random.Random(5)))


def test_pairs_that_do_not_decide_leave_the_commit_untested() -> None:
    ends = Ends(effect=0.05, seen=0.05, spread=0.05)
    assert is_slow(lambda: 0.025, ends) is None


def test_one_wild_pair_does_not_decide() -> None:
    test = Sequential(Ends(effect=0.05, seen=0.05, spread=0.01))
    assert test.add(3.0) is None
    assert test.add(3.0) is True
