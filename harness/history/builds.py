"""Another build of ours beside this one: its kernels taken out of git, and run in a process of their own."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from minimax_m2.harness.contenders import Side
from minimax_m2.harness.provenance import ROOT
from minimax_m2.harness.providers.ours import BUILD
from minimax_m2.harness.worker import Worker, provider_in


def resolved(revision: str) -> str:
    """The commit that a name stands for. Raises ValueError where the checkout does not know it."""
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"--against {revision!r} is no commit of this checkout") from error
    return found.stdout.strip()


def taken_out(commit: str, folder: Path) -> Path:
    """The kernels of a commit below ``folder``, whole or not at all: a name is given when all is there."""
    place = folder / commit[:12]
    if place.is_dir():
        return place
    packed = subprocess.run(["git", "archive", commit, "kernels"], cwd=ROOT, capture_output=True, check=True)
    part = folder / f".{commit[:12]}.part"
    part.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(part, filter="data")
    part.rename(place)
    return place


@contextmanager
def side_of(build: Path) -> Iterator[Side]:
    """A build's kernels as one side of a comparison. Raises ``Ended`` or what the build raised where it cannot run."""
    worker = Worker("minimax_m2.harness.providers.ours:of_build", environment={BUILD: str(build.resolve())})
    with closing(worker):
        yield Side(provider_in(worker, name="ours"), "", worker)
