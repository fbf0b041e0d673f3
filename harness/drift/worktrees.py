"""Commits of a repository, each checked out and built in a folder and with a cache of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from minimax_m2.harness.drift.commits import Abort, Outcome

# As git bisect run reads them.
GOOD, UNTESTABLE, ABORTED = 0, 125, 128
LAST_WORDS = 3


class Repository:
    """A checkout, and the folder in which its commits are laid out; both ends with the block."""

    def __init__(self, path: Path, folder: Path, *, build: str = "", seconds: float = 600.0) -> None:
        self.path, self._folder, self._build, self._seconds = path, folder, build, seconds
        self._laid_out: dict[str, Path | None] = {}
        self.told: dict[str, str] = {}

    def __enter__(self) -> Repository:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for where in self._laid_out.values():
            if where is not None:
                self.git("worktree", "remove", "--force", str(where))
        shutil.rmtree(self._folder, ignore_errors=True)

    def git(self, *words: str) -> str:
        """What git prints. Raises ValueError with its last line where it fails."""
        done = subprocess.run(["git", "-C", str(self.path), *words], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"git {' '.join(words)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        return done.stdout.strip()

    def between(self, good: str, bad: str) -> list[str]:
        """Commits from ``good`` to ``bad`` along first parents, both included. ValueError where good is no ancestor."""
        ends = [self.git("rev-parse", "--verify", f"{name}^{{commit}}") for name in (good, bad)]
        line = self.git("rev-list", "--reverse", "--first-parent", f"{ends[0]}..{ends[1]}").split()
        merged = self.git("merge-base", ends[0], ends[1])
        if merged != ends[0] or not line:
            raise ValueError(f"good {good!r} is no ancestor of bad {bad!r}: name an older commit that is good")
        return [ends[0], *line]

    def subject(self, commit: str) -> str:
        """A commit's short name and title."""
        return self.git("log", "-1", "--format=%h %s", commit)

    def built(self, commit: str) -> Path | None:
        """The commit's folder, built; None where it does not build, and ``told`` says what was said."""
        if commit not in self._laid_out:
            where = self._folder / commit[:12]
            self.git("worktree", "add", "--detach", "--force", str(where), commit)
            self._laid_out[commit] = where
            if self._build:
                done = self._run(commit, self._build)
                if done is None or done.returncode:
                    self.told[commit] = f"does not build: {_last_words(done)}"
                    self.git("worktree", "remove", "--force", str(where))
                    self._laid_out[commit] = None
        return self._laid_out[commit]

    def test(self, commit: str, command: str) -> Outcome:
        """Run a command in the commit's folder: 0 good, 125 or too long untestable, 128 and above ends the search."""
        if self.built(commit) is None:
            return Outcome.UNTESTABLE
        done = self._run(commit, command)
        if done is None:
            self.told[commit] = f"took longer than {self._seconds:.0f} s"
            return Outcome.UNTESTABLE
        if done.returncode < 0 or done.returncode >= ABORTED:
            raise Abort(f"the test of {commit[:12]} ended in {done.returncode}: {_last_words(done)}")
        self.told[commit] = _last_words(done)
        if done.returncode == UNTESTABLE:
            return Outcome.UNTESTABLE
        return Outcome.GOOD if done.returncode == GOOD else Outcome.BAD

    def number(self, commit: str, command: str) -> float | None:
        """The number that a command prints on its last line; None where it fails."""
        if self.built(commit) is None:
            return None
        done = self._run(commit, command)
        try:
            return float(done.stdout.strip().splitlines()[-1]) if done is not None and done.returncode == 0 else None
        except (IndexError, ValueError):
            raise Abort(f"{command!r} printed no number on its last line: {_last_words(done)}") from None

    def _run(self, commit: str, command: str) -> subprocess.CompletedProcess[str] | None:
        """Run in a shell, as its author wrote it; None where it took too long."""
        where = self._folder / commit[:12]
        environment = os.environ | {"MINIMAX_M2_CACHE": str(self._folder / "caches" / commit[:12]), "COMMIT": commit}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
        if (where / "ci" / "typing").is_dir():
            environment["PYTHONPATH"] = str(where / "ci" / "typing")
        try:
            return subprocess.run(
                command, cwd=where, env=environment, shell=True, capture_output=True, text=True, timeout=self._seconds
            )
        except subprocess.TimeoutExpired:
            return None


def _last_words(done: subprocess.CompletedProcess[str] | None) -> str:
    if done is None:
        return "it took too long"
    return " | ".join([*done.stdout.strip().splitlines(), *done.stderr.strip().splitlines()][-LAST_WORDS:])
