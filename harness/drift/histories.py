"""A git history with a step planted in it: a module whose number changes, some commits that do not run."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path


def make_history(
    folder: Path, *, commits: int, step: int, broken: Collection[int] = (), beside: Mapping[str, str] | None = None
) -> list[str]:
    """A repository of so many commits, ``step`` the first of which ``kernel.py`` is wrong; their hashes in order.

    Those in ``broken`` do not even parse. ``beside`` it every commit holds these files.
    """
    subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)
    stream = []
    for index in range(commits):
        files = {} if index else dict(beside or {})
        files["kernel.py"] = (
            "def gain(:" if index in broken else f"# change {index}\nGAIN = {1.02 if index >= step else 1.0}\n"
        )
        title = f"change {index}"
        stream.append(
            f"commit refs/heads/main\nmark :{index + 1}\ncommitter a <a@b> {1_700_000_000 + index} +0000\n"
            f"data {len(title)}\n{title}\n"
            + (f"from :{index}\n" if index else "")
            + "".join(f"M 100644 inline {name}\ndata {len(text)}\n{text}\n" for name, text in files.items())
        )
    subprocess.run(["git", "-C", str(folder), "fast-import", "--quiet"], input="".join(stream), text=True, check=True)
    listed = subprocess.run(
        ["git", "-C", str(folder), "rev-list", "--reverse", "main"], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()
