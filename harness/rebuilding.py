"""Our CPU kernels with one line rewritten: compiled from a copy of their sources into a cache of their own.

Only the objects that hold the line are compiled, for one instruction set of one op: a *place*. The others are those of
the right library. A process whose ``MINIMAX_M2_CACHE`` is that cache loads the wrong library as if it were the right
one, so nothing in the kernels' own text, nor in what builds them, knows of it.

The same objects are compiled from the right text too. Where the compiler makes the same bytes of both, they compute the
same, and there is nothing to judge in that place.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from minimax_m2.harness.op import all_ops
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import cpu_extension, ours
from minimax_m2.harness.rewriting import Rewrite, rewrites
from minimax_m2.harness.worker import Worker, provider_in

# The order in which instruction sets are tried: first registers of eight, which leave tails where M2's sizes leave none
# of four, and which some lines are not for.
ORDER = ("avx2", "portable", "avx512", "avx512_bf16", "amx")
# Ops that are tried on one instruction set before the next.
AT_ONCE = 3
FACTORY = "minimax_m2.harness.providers.ours:ours"
# Seconds of one call: a loop that never ends is one of the defects.
DEADLINE = 10.0
# -O1 gives the same bits as -O3, contraction and fast math being off, in half the time.
LEVEL = "-O1"
# Sources in which no rewrite is wrong by what it computes: checks of arguments, choices of threads, declarations.
NO_KERNEL = re.compile(r"_binding|argument_checks|dispatch|dtype\.h|layout")


class DoesNotCompile(RuntimeError):
    """A rewrite that the compiler refuses is no defect that anybody could ship."""


class Place(NamedTuple):
    """Objects that a rewritten line can be seen in: those of an op for an instruction set."""

    stem: str
    isa: str


def all_rewrites() -> Iterator[tuple[str, Rewrite]]:
    """Every rewrite of our CPU kernels' sources, with the stem of the op that it is judged in first.

    Sources that only instruction sets reach which this machine lacks are left out.
    """
    extension = cpu_extension()
    for path in sorted([*extension.SOURCE_DIR.glob("*.cpp"), *extension.SOURCE_DIR.glob("*.h")]):
        found = [] if NO_KERNEL.search(path.name) else [place for place in places_of(path.name) if runs(place)]
        if found:
            yield from ((found[0].stem, rewrite) for rewrite in rewrites(path))


def runs(place: Place) -> bool:
    """Whether this machine can run what is compiled for a place."""
    return place.isa in ours().variants


@cache
def places_of(name: str) -> tuple[Place, ...]:
    """Where a source is compiled: the smallest ops first, fusions last, a few of each instruction set in turn."""
    fused = {op.stem or op.name for op in all_ops().values() if op.parts}
    found: list[tuple[int, int, int, Place]] = []
    for rank, isa in enumerate(ORDER):
        users = [stem for stem in cpu_extension().ops() if name in reached(stem, isa)]
        users.sort(key=lambda stem: (stem in fused, _bytes_of(stem)))
        found += [(at // AT_ONCE, rank, at, Place(stem, isa)) for at, stem in enumerate(users)]
    return tuple(place for *_, place in sorted(found))


@cache
def _bytes_of(stem: str) -> int:
    return sum(path.stat().st_size for path in cpu_extension().kernel_sources(stem))


@cache
def reached(stem: str, isa: str) -> frozenset[str]:
    """Names of the sources that an op's objects of an instruction set are made of."""
    extension = cpu_extension()
    found, queue = set[str](), [path for path, name in extension.units(stem) if name == isa]
    while queue:
        path = queue.pop()
        if path.name not in found and path.exists():
            found.add(path.name)
            named = re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE)
            queue += [extension.SOURCE_DIR / name for name in [*named, f"vector_{isa}.h"]]
    return frozenset(found)


def rebuilt(place: Place, rewrite: Rewrite) -> Path | None:
    """The cache that holds an op's library with one line rewritten; None where its objects are those of the right one.

    Raises DoesNotCompile with the compiler's words.
    """
    extension = cpu_extension()
    text = rewrite.apply((extension.SOURCE_DIR / rewrite.file).read_text())
    folder = _folder(place, rewrite.file, text)
    if not folder.exists():
        _filled(folder, lambda scratch: _rebuild(place, rewrite.file, text, scratch))
    return folder if (folder / extension.build(place.stem).parent.name).exists() else None


def _folder(place: Place, *changed: str) -> Path:
    extension = cpu_extension()
    digest = hashlib.sha256(repr((extension.build_key(place.stem), LEVEL, place, changed)).encode()).hexdigest()[:16]
    return Path(extension.cache_dir()) / "rewritten" / f"{place.stem}-{place.isa}-{digest}"


def _filled(folder: Path, fill: Callable[[Path], object]) -> None:
    """A folder whole or not at all; another process may fill it meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        fill(scratch)
        with suppress(OSError):
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rebuild(place: Place, file: str, text: str, scratch: Path) -> None:
    """The library with ``file`` of another text, or nothing where that makes the same objects."""
    extension = cpu_extension()
    library = extension.build(place.stem)
    made, right = _objects(place, scratch, {file: text}), _right_objects(place)
    if all(path.read_bytes() == (right / path.name).read_bytes() for path in made):
        for path in made:
            path.unlink()
        return
    target = scratch / library.parent.name
    target.mkdir()
    units = [f"{source.stem}.{isa}.o" for source, isa in extension.units(place.stem)]
    wrong = {path.name: path for path in made}
    objects = [wrong.get(name, library.parent / name) for name in (*units, f"{place.stem}_binding.o")]
    flags = (*extension.LINK_FLAGS, "-o", str(target / library.name))
    _run([extension.compiler(), *extension.common_flags(), *map(str, objects), *flags])


def _right_objects(place: Place) -> Path:
    """The folder of a place's objects, compiled as rewritten ones are."""
    folder = _folder(place)
    if not folder.exists():
        _filled(folder, lambda scratch: _objects(place, scratch, {}))
    return folder


def _objects(place: Place, scratch: Path, changed: Mapping[str, str]) -> list[Path]:
    """Compile a place's objects into ``scratch``, with the texts of some files ``changed``."""
    extension = cpu_extension()
    sources = scratch / "sources"
    sources.mkdir()
    for path in [*extension.SOURCE_DIR.glob("*.cpp"), *extension.SOURCE_DIR.glob("*.h")]:
        if path.name in changed:
            (sources / path.name).write_text(changed[path.name])
        else:
            (sources / path.name).symlink_to(path)
    made = []
    for source, isa in extension.units(place.stem):
        if isa == place.isa:
            made.append(scratch / f"{source.stem}.{isa}.o")
            command = extension.kernel_command(sources / source.name, isa, made[-1])
            included = [part.replace(f"-I{extension.SOURCE_DIR}", f"-I{sources}") for part in command]
            _run([LEVEL if part == "-O3" else part for part in included])
    shutil.rmtree(sources)
    return made


def _run(command: list[str]) -> None:
    done = subprocess.run([*command, "-w"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        told = [line for line in done.stderr.splitlines() if "error" in line]
        raise DoesNotCompile(told[0] if told else f"status {done.returncode} of {' '.join(command)}")


def provider_of(cache_folder: Path, name: str, isa: str) -> Provider:
    """Our CPU kernels out of a cache, in a process of their own and on the instruction set that was rewritten alone."""
    worker = Worker(FACTORY, deadline=DEADLINE, environment={"MINIMAX_M2_CACHE": str(cache_folder)})
    found = provider_in(worker, name=name)
    worker.variant = isa
    return replace(found, variants=("",), enter=lambda variant: nullcontext(), lacks=lambda op, variant: False)
