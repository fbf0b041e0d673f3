"""Which files a run over many collects.

Suites that CI runs as lanes of their own, beside `make test`, are collected where their folder is named. `-m gpu`
reads the files alone that hold tests of a GPU: the others would take minutes to import and build CPU kernels.
"""

from __future__ import annotations

from pathlib import Path

import pytest

LANES = ("drift", "history", "npu", "parallel")
# How a file says that some of its tests run on a GPU: by marker, or by taking the cells of what is shipped.
ON_A_GPU = ("mark.gpu", "minimax_m2.harness.conformance", "minimax_m2.harness.bench ")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a lane out of a run over all suites: `pytest suites/parallel` asks for it. A file that is named is kept."""
    if config.option.markexpr == "gpu" and collection_path.suffix == ".py" and not on_a_gpu(collection_path):
        return True
    place = collection_path.relative_to(Path(__file__).parent).parts[:1]
    if place not in {(lane,) for lane in LANES}:
        return None
    lane = Path(__file__).with_name(place[0])
    asked = (config.invocation_params.dir / str(argument).partition("::")[0] for argument in config.args)
    return None if any(lane == path.resolve() or lane in path.resolve().parents for path in asked) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test of a GPU in a file that `-m gpu` would not read."""
    unread = sorted({item.path.name for item in items if item.get_closest_marker("gpu") and not on_a_gpu(item.path)})
    if unread:
        raise pytest.UsageError(f"{', '.join(unread)}: `-m gpu` reads files that hold one of {', '.join(ON_A_GPU)}")


def on_a_gpu(path: Path) -> bool:
    return any(words in path.read_text() for words in ON_A_GPU)
