"""A change of the harness that no test notices is told; what is excused must be one that nobody notices."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from minimax_m2.harness import self_mutation
from minimax_m2.harness.self_mutation import (
    GOAL,
    KILLED,
    SURVIVED,
    Change,
    Kept,
    changes,
    judged,
    main,
    outcome,
    rate,
    record,
    settings,
    table,
)
from minimax_m2.harness.shards import sharded

HERE = pytest.mark.skipif(find_spec("cosmic_ray") is None, reason="not here: cosmic-ray, the extra `mutation`")
LIMIT = "def is_near(a, b):\n    return abs(a - b) < 2\n"
TEST = "from toy.limit import is_near\n\n\ndef test_near():\n    assert is_near(1, 2)\n    assert not is_near(1, 4)\n"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with one module, and the path of its test."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").touch()
    (tmp_path / "toy" / "limit.py").write_text(LIMIT)
    (tmp_path / "test_limit.py").write_text(TEST)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield str(tmp_path / "test_limit.py")
    for name in ("toy", "toy.limit"):
        sys.modules.pop(name, None)


def changed(before: str, after: str) -> Change:
    return Change("limit", 2, before, after, LIMIT.replace(before, after))


def test_a_change_that_a_test_notices_is_killed_and_another_survives(toy: str) -> None:
    assert outcome(changed("a - b", "a + b"), [toy], package="toy", seconds=60) == KILLED
    assert outcome(changed("< 2", "< 3"), [toy], package="toy", seconds=60) == SURVIVED


def test_a_change_that_never_ends_or_does_not_load_is_killed(toy: str) -> None:
    endless = changed("return abs", "while True: pass\n    return abs")
    assert outcome(endless, [toy], package="toy", seconds=3) == KILLED
    assert outcome(changed("def ", "dfe "), [toy], package="toy", seconds=60) == KILLED


def test_the_quickest_tests_come_first_and_new_ones_last(toy: str, tmp_path: Path) -> None:
    file, times = Path(toy), tmp_path / "seconds.json"
    slow = "import time\n\n\ndef test_a_slow_one():\n    time.sleep(0.2)\n\n\n"
    file.write_text(slow + TEST)
    unchanged = changed("def", "def")
    assert outcome(unchanged, [toy], package="toy", seconds=60, times=times) == SURVIVED
    seconds = json.loads(times.read_text())
    file.write_text(f"def test_a_new_one(): open({str(tmp_path / 'new')!r}, 'w')\n" + slow + TEST)
    assert outcome(changed("a - b", "a + b"), [toy], package="toy", seconds=60, times=times) == KILLED
    assert not (tmp_path / "new").exists(), "a quicker test has noticed the change before"
    assert json.loads(times.read_text()) == seconds
    slow_one, quick_one = (seconds[f"{name}"] for name in sorted(seconds))
    assert slow_one > 0.2 > quick_one


@HERE
def test_changes_are_named_by_their_lines_and_what_only_declares_is_passed_over() -> None:
    text = (
        "if near := 2: pass\n@cache(maxsize=2)\n"
        + LIMIT.replace("a, b", "a, *, b")
        + "pairs = zip((), (), strict=True)\n"
    )
    found = {change.name for change in changes("limit", text)}
    assert "limit: return abs(a - b) < 2 -> return abs(a + b) < 2" in found
    assert "limit: return abs(a - b) < 2 -> return abs(a - b) <= 2" in found
    assert not any("maxsize" in name or "a, /" in name or "strict" in name for name in found)
    # `if not near := 2` is no Python.
    assert not any("if not" in name for name in found)


@HERE
def test_survivors_are_told_but_for_those_with_a_reason(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = judged("limit", [toy], {}, every=1, package="toy")
    assert first["survivors"]
    excused = dict.fromkeys([*first["survivors"], "limit: return abs(a - b) < 2 -> return abs(a + b) < 2"], "a reason")
    second = judged("limit", [toy], excused, every=1, package="toy")
    assert second["survivors"] == []
    assert second["excused"] == first["survived"]
    # An excuse for what a test does notice is none.
    assert second["caught though excused"] == ["limit: return abs(a - b) < 2 -> return abs(a + b) < 2"]


@HERE
def test_parts_share_a_file_and_nothing_that_it_holds_is_tried_again(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.jsonl"

    def found(part: str) -> dict[str, object]:
        return judged("limit", [toy], {}, part=sharded(part), kept=Kept(path), package="toy")

    parts = [found("1/2"), found("2/2")]
    assert all(part["tried"] == part["changes"] for part in parts)
    tried = list[Change]()

    def again(change: Change, *tests: object, **more: object) -> str:
        tried.append(change)
        return KILLED

    monkeypatch.setattr(self_mutation, "outcome", again)
    whole = found("1/1")
    assert tried == []
    assert whole["survivors"] == [*parts[0]["survivors"], *parts[1]["survivors"]]  # type: ignore[misc]
    assert whole[KILLED] == sum(int(str(one[KILLED])) for one in parts) > 0
    # A test more may catch what survived; what was caught stays so.
    monkeypatch.setattr(self_mutation, "_patience", lambda *given: 1.0)
    Path(toy).write_text(TEST + "    assert not is_near(1, 3)\n")
    assert found("1/1")["survivors"] == []
    assert [change.name for change in tried] == whole["survivors"]


@HERE
def test_what_was_not_tried_is_counted_as_such_where_nothing_new_is_tried(toy: str, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    part = judged("limit", [toy], {}, part=sharded("1/2"), kept=Kept(path), package="toy")
    told = judged("limit", [toy], {}, kept=Kept(path), tries=False, package="toy")
    assert told["tried"] == part["tried"] < told["changes"]
    assert (told[KILLED], told["survivors"]) == (part[KILLED], part["survivors"])
    # Other tests may catch what survived, so nobody knows.
    Path(toy).write_text(TEST + "    assert not is_near(1, 3)\n")
    again = judged("limit", [toy], {}, kept=Kept(path), tries=False, package="toy")
    assert (again["tried"], again[SURVIVED]) == (part[KILLED], 0)


def test_what_only_explains_makes_no_other_change() -> None:
    def key(text: str) -> str:
        return Change("limit", 2, "", "", text).key

    told = '"""About it."""\n\n# Why.\n' + LIMIT.replace(
        "    return", '    """Whether.\n\n    Really.\n    """\n    return'
    )
    assert key(told) == key(LIMIT) != key(LIMIT.replace("2", "3"))


@HERE
def test_tests_that_fail_without_a_change_judge_nothing(toy: str) -> None:
    Path(toy).write_text("def test_near():\n    assert False\n")
    with pytest.raises(ValueError, match="fail without a change"):
        judged("limit", [toy], {}, every=1, package="toy")


@pytest.mark.parametrize("more", [[], ["--kept", "nowhere.jsonl"]])
def test_nothing_is_told_of_outcomes_that_are_not_there(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--module", "verdict", "--told", *more])
    assert ended.value.code == 2
    assert "--told counts what --kept holds" in capsys.readouterr().err


def test_a_record_keeps_the_modules_that_were_not_judged_again(tmp_path: Path) -> None:
    one, other = {"killed": 97, "survived": 3}, {"killed": 1, "survived": 1}
    record(tmp_path / "found.json", {"ties": one, "limits": one})
    record(tmp_path / "found.json", {"limits": other})
    told = json.loads((tmp_path / "found.json").read_text())
    assert told["modules"] == {"limits": other, "ties": one}
    assert told["rate"] == 98 / 102


@pytest.mark.parametrize(("killed", "code"), [(97, 0), (96, 1)])
def test_more_survivors_than_the_goal_allows_end_in_one(
    killed: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"changes": 100, "tried": 100, "killed": killed, "survived": 100 - killed, "excused": 0, "survivors": []}
    found |= {"caught though excused": []}
    monkeypatch.setattr(self_mutation, "judged", lambda *arguments, **options: found)
    assert main(["--module", "limits"]) == code
    assert f"the goal is {GOAL:.0%}" in capsys.readouterr().out
    assert rate({"limits": found}) == killed / 100


def test_modules_and_tests_that_are_named_exist_and_every_excuse_has_a_reason() -> None:
    tests, excused = settings()
    root = self_mutation.ROOT
    assert all((root / "harness" / f"{module}.py").is_file() for module in tests)
    assert all((root / path).is_file() for paths in tests.values() for path in paths)
    assert all(change.partition(":")[0] in tests and reason for change, reason in excused.items())


def test_the_table_of_the_docs_is_that_of_the_record() -> None:
    text = (self_mutation.ROOT / "docs" / "trust.md").read_text()
    (named,) = set(re.findall(r"ci/results/mutation-[\w.-]+\.json", text))
    recorded = json.loads((self_mutation.ROOT / named).read_text())
    assert table(recorded["modules"]) in text
    assert rate(recorded["modules"]) == recorded["rate"] >= GOAL
    assert set(recorded["modules"]) == set(settings()[0])
    changed = {name: {**counts, "tried": counts["tried"] + 1} for name, counts in recorded["modules"].items()}
    assert table(changed) not in text
