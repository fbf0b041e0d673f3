"""Our CPU kernels with one line rewritten: compiled from a copy of their sources into a cache of their own.

Only the objects that hold the line are compiled, for one ISA: ``avx2``, whose registers of eight leave tails where M2's
sizes leave none of four, or ``portable`` where a machine has no other. The others are those of the right library. A
process whose ``MINIMAX_M2_CACHE`` is that cache loads the wrong library as if it were the right one, so nothing in the
kernels' own text, nor in what builds them, knows of it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

from minimax_m2.harness.op import all_ops
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import cpu_extension, ours
from minimax_m2.harness.rewriting import Rewrite, rewrites
from minimax_m2.harness.worker import Worker, provider_in

WANTED = "avx2"
FACTORY = "minimax_m2.harness.providers.ours:ours"
# Seconds of one call: a loop that never ends is one of the defects.
DEADLINE = 10.0
# -O1 gives the same bits as -O3, contraction and fast math being off, in half the time.
LEVEL = "-O1"
# Sources in which no rewrite is wrong by what it computes: checks of arguments, choices of threads, declarations.
NO_KERNEL = re.compile(r"_binding|argument_checks|dispatch|dtype\.h|layout")


class DoesNotCompile(RuntimeError):
    """A rewrite that the compiler refuses is no defect that anybody could ship."""


def all_rewrites() -> Iterator[tuple[str, Rewrite]]:
    """Every rewrite of our CPU kernels' sources, with the stem of an op that it can be seen in.

    A header's is seen in the smallest op that includes it and is no fusion.
    """
    extension = cpu_extension()
    for path in sorted([*extension.SOURCE_DIR.glob("*.cpp"), *extension.SOURCE_DIR.glob("*.h")]):
        users = [] if NO_KERNEL.search(path.name) else users_of(path.name)
        if users:
            yield from ((users[0], rewrite) for rewrite in rewrites(path))


@cache
def rewritten_isa() -> str:
    """The variant whose objects are rewritten."""
    return WANTED if WANTED in ours().variants else "portable"


@cache
def users_of(name: str) -> list[str]:
    """Stems of ops whose kernels reach a source: fusions last, the smallest first."""
    extension = cpu_extension()
    fused = {op.stem or op.name for op in all_ops().values() if op.parts}

    def rank(stem: str) -> tuple[bool, int]:
        return stem in fused, sum(path.stat().st_size for path in extension.kernel_sources(stem))

    return sorted((stem for stem in extension.ops() if name in reached(stem)), key=rank)


@cache
def reached(stem: str) -> frozenset[str]:
    """Names of the sources that an op's objects of that variant are made of."""
    extension = cpu_extension()
    found, queue = set[str](), [path for path, isa in extension.units(stem) if isa == rewritten_isa()]
    while queue:
        path = queue.pop()
        if path.name not in found and path.exists():
            found.add(path.name)
            named = re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE)
            queue += [extension.SOURCE_DIR / name for name in [*named, f"vector_{rewritten_isa()}.h"]]
    return frozenset(found)


def rebuilt(stem: str, rewrite: Rewrite) -> Path:
    """The cache that holds an op's library with one line rewritten; DoesNotCompile with the compiler's words."""
    extension = cpu_extension()
    right, text = extension.build(stem), rewrite.apply((extension.SOURCE_DIR / rewrite.file).read_text())
    decisive = (extension.build_key(stem), LEVEL, rewritten_isa(), rewrite.file, text)
    digest = hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]
    folder = extension.cache_dir() / "rewritten" / f"{stem}-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            _compile(stem, rewrite.file, text, right.parent, scratch)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _compile(stem: str, file: str, text: str, right: Path, scratch: Path) -> None:
    extension = cpu_extension()
    sources, library = scratch / "sources", scratch / right.name
    sources.mkdir()
    library.mkdir()
    for path in [*extension.SOURCE_DIR.glob("*.cpp"), *extension.SOURCE_DIR.glob("*.h")]:
        (sources / path.name).symlink_to(path)
    (sources / file).unlink()
    (sources / file).write_text(text)
    objects = []
    for source, isa in extension.units(stem):
        name = f"{source.stem}.{isa}.o"
        objects.append(right / name)
        if isa == rewritten_isa():
            objects[-1] = scratch / name
            given = extension.kernel_command(source, isa, scratch / name)
            command = [part.replace(str(extension.SOURCE_DIR), str(sources)) for part in given]
            _run([LEVEL if part == "-O3" else part for part in command])
    binding = right / f"{stem}_binding.o"
    flags = (*extension.LINK_FLAGS, "-o", str(library / f"{stem}.so"))
    _run([extension.compiler(), *extension.common_flags(), *map(str, objects), str(binding), *flags])
    shutil.rmtree(sources)


def _run(command: list[str]) -> None:
    done = subprocess.run([*command, "-w"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        told = [line for line in done.stderr.splitlines() if "error" in line]
        raise DoesNotCompile(told[0] if told else f"status {done.returncode} of {' '.join(command)}")


def provider_of(cache_folder: Path, name: str) -> Provider:
    """Our CPU kernels out of a cache, in a process of their own and on the ISA that was rewritten alone."""
    worker = Worker(FACTORY, deadline=DEADLINE, environment={"MINIMAX_M2_CACHE": str(cache_folder)})
    found = provider_in(worker, name=name)
    worker.variant = rewritten_isa()
    return replace(found, variants=("",), enter=lambda variant: nullcontext(), lacks=lambda op, variant: False)
