"""Examples that failed once fail for everybody who shares a database; what is no database is told."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from unittest import SkipTest

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase

from minimax_m2.harness import examples
from minimax_m2.harness.examples import ARTIFACT, SETTING, example_database

RARE = 941_083


def finds(database: ExampleDatabase, phases: tuple[Phase, ...]) -> bool:
    """Whether a test fails that fails for few numbers; where it may only repeat, it takes a known example."""

    @settings(database=database, phases=phases, max_examples=200)
    @given(st.integers(0, 10**6))
    def fails(number: int) -> None:
        assert number < RARE

    try:
        fails()
    except AssertionError:
        return True
    except SkipTest:
        # Nothing is known, so there was nothing to repeat.
        return False
    return False


SEARCH, REPEAT = (Phase.reuse, Phase.generate), (Phase.reuse,)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a Redis server that keeps nothing."""
    command = shutil.which("redis-server")
    if command is None or find_spec("redis") is None:
        pytest.skip("not here: redis-server and the Python package redis")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    running = subprocess.Popen([command, *options], stdout=subprocess.DEVNULL)
    url, until = f"redis://127.0.0.1:{port}/0", time.monotonic() + 20
    while time.monotonic() < until:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield url
    running.terminate()
    running.wait()


def elsewhere(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another checkout, with no examples of its own."""
    (folder / name).mkdir()
    monkeypatch.chdir(folder / name)


def test_what_failed_in_one_folder_fails_at_once_in_another(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path, "one", monkeypatch)
    assert finds(example_database(server), SEARCH)
    elsewhere(tmp_path, "other", monkeypatch)
    assert not finds(example_database(""), REPEAT)
    assert finds(example_database(server), REPEAT)


def test_what_ci_uploaded_fails_at_once_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path, "ci", monkeypatch)
    assert finds(DirectoryBasedExampleDatabase(examples.HERE), SEARCH)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    stamp = datetime.now(UTC).isoformat().replace(":", "_")
    with zipfile.ZipFile(downloads / f"{stamp}.zip", "w") as archive:
        for path in examples.HERE.rglob("*"):
            archive.write(path, path.relative_to(examples.HERE))
    elsewhere(tmp_path, "here", monkeypatch)
    assert finds(example_database("github:owner/repo", downloads=downloads), REPEAT)


def test_an_artifact_has_the_name_that_is_asked_for() -> None:
    assert ARTIFACT in repr(example_database("github:owner/repo"))
    assert "nightly" in repr(example_database("github:owner/repo/nightly"))


@pytest.mark.parametrize("setting", ["examples", "http://redis", "github:owner"])
def test_what_is_no_database_is_told(setting: str) -> None:
    with pytest.raises(ValueError, match="is neither redis://"):
        example_database(setting)


@pytest.mark.skipif(find_spec("redis") is None, reason="not here: the Python package redis")
def test_a_server_that_does_not_answer_is_told_before_any_test_runs(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        with pytest.raises(ValueError, match="does not answer"):
            example_database(url)


def test_pytest_says_so_in_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=os.environ | {SETTING: "nonsense"},
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"{SETTING}='nonsense' is neither" in done.stdout + done.stderr


def test_without_the_package_redis_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        example_database("redis://127.0.0.1:1/0")
