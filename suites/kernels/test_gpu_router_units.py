"""The router's kernels of CUDA C++: which tokens each takes, their machine code, and what they give."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.harness.case import Case
from minimax_m2.harness.devices import absence
from minimax_m2.harness.graph_capture import capture_failures
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import ours
from minimax_m2.kernels.gpu import router_rows, router_tiles, router_wide, toolkit
from minimax_m2.kernels.gpu.router_gemm import by_cuda
from minimax_m2.kernels.gpu.router_rows import aligned

M2: dict[str, Any] = {"num_tokens": 32, "num_experts": 256, "hidden": 3072, "dtype": torch.bfloat16, "capability": 90,
      "compiler": "nvcc", "aligned": True, "copied": True}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "unit"),
    [
        ({"num_tokens": 2}, None), ({"num_tokens": 3}, router_rows), ({"num_tokens": 8}, router_rows),
        ({"num_tokens": 9}, router_tiles), ({"num_tokens": 96}, router_tiles), ({"num_tokens": 97}, None),
        ({"num_experts": 2}, router_rows), ({"num_experts": 24}, router_rows), ({"num_experts": 255}, None),
        ({"num_experts": 2, "num_tokens": 33}, None), ({"hidden": 1024}, router_tiles), ({"hidden": 2048}, None),
        ({"num_tokens": 128}, None), ({"num_tokens": 129}, router_wide),
        ({"num_tokens": 129, "hidden": 2048}, router_wide),
        ({"num_tokens": 129, "num_experts": 255}, None), ({"num_tokens": 129, "hidden": 96}, None),
        ({"num_tokens": 129, "copied": False}, None), ({"num_tokens": 129, "capability": 100}, None),
        ({"num_tokens": 129, "compiler": None}, None), ({"num_tokens": 129, "dtype": torch.float32}, None),
        ({"capability": 100}, router_tiles), ({"capability": 89}, None), ({"dtype": torch.float16}, None),
        ({"dtype": torch.float32}, None), ({"compiler": None}, None), ({"aligned": False}, None),
    ],
    ids=str,
)  # fmt: skip
def test_tokens_choose_a_unit_or_triton(change: dict[str, Any], unit: ModuleType | None) -> None:
    assert by_cuda(**{**M2, **change}) is unit


@pytest.mark.parametrize(
    ("x_gap", "weight_gap", "expected"), [(0, 0, True), (4, 4, True), (2, 0, False), (0, 2, False)]
)
def test_rows_must_begin_where_a_thread_reads(x_gap: int, weight_gap: int, expected: bool) -> None:
    x = torch.zeros(3, 1024 + x_gap, dtype=torch.bfloat16)[:, :1024]
    weight = torch.zeros(4, 1024 + weight_gap)[:, :1024]

    assert aligned(x, weight) is expected


@pytest.mark.parametrize(
    ("tokens", "hidden", "expected"),
    [(129, 3072, (64, 8)), (384, 3072, (64, 8)), (512, 3072, (64, 6)), (768, 3072, (64, 4)), (896, 3072, (64, 4)),
     (897, 3072, (128, 6)), (1024, 3072, (128, 6)), (1536, 3072, (128, 4)), (2048, 3072, (128, 3)),
     (4096, 3072, (128, 2)), (16384, 3072, (128, 1)), (129, 128, (64, 2)), (129, 64, (64, 1))],
)  # fmt: skip
def test_many_tokens_fill_the_machine_once(tokens: int, hidden: int, expected: tuple[int, int]) -> None:
    assert router_wide.cut(tokens, 256, hidden) == expected


@pytest.mark.gpu
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("stem", "kernels", "architecture"),
    [
        (stem, kernels, architecture)
        for stem, kernels in (("router_rows", 8), ("router_tiles", 4), ("router_wide", 2))
        for architecture in toolkit.ARCHITECTURES[stem]
    ],
)
def test_machine_code_keeps_everything_in_registers(stem: str, kernels: int, architecture: str, tmp_path: Path) -> None:
    if toolkit.compiler() is None:
        pytest.skip("nvcc is not here")
    import triton

    library = tmp_path / f"{stem}.so"
    subprocess.run(toolkit.command(stem, architecture, library), capture_output=True, text=True, check=True)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", library], capture_output=True, text=True, check=True).stdout

    assert usage.count("REG:") == kernels
    assert usage.count("STACK:0 ") == kernels, usage


def _cases() -> Iterator[Case]:
    """Every tile of tokens and both ends of it, few and odd numbers of experts, a bias, rows that lie apart."""
    op = find_op("router_gemm")
    for T in (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 64, 95, 96, 97):
        yield op.case(T=T, E=256, H=3072, seed=T)
        yield op.case(T=T, E=16, H=1024, bias=1, gap=8, seed=T)
    for regime in ("heavy", "tiny", "huge", "equal", "signed_zero"):
        yield op.case(T=7, E=48, H=1024, regime=regime)
        yield op.case(T=20, E=48, H=1024, regime=regime)
    yield op.case(T=20, E=24, H=3072)
    # Tiles of many tokens: both ends of each cut, experts and channels that fill no tile, rows that lie apart.
    for T in (128, 129, 192, 193, 512, 1024, 1025, 2049):
        yield op.case(T=T, E=256, H=1024, seed=T)
    for T, E, H, gap in ((130, 48, 192, 8), (200, 384, 64, 0), (1100, 16, 192, 8), (300, 256, 3072, 0)):
        yield op.case(T=T, E=E, H=H, gap=gap, bias=1, weight_milli=100)
    for regime in ("heavy", "tiny", "huge", "equal", "signed_zero"):
        yield op.case(T=150, E=48, H=192, regime=regime)


@pytest.mark.gpu
@pytest.mark.skipif(absence("gpu") is not None, reason=f"{absence('gpu')}")
@pytest.mark.parametrize("case", [pytest.param(case, id=f"G2-{case.id}") for case in _cases()])
def test_logits_are_right_in_every_tile(case: Case) -> None:
    verdict = judge(case, ours("gpu"))

    assert verdict.passed, verdict.explain()


@pytest.mark.gpu
@pytest.mark.skipif(absence("gpu") is not None, reason=f"{absence('gpu')}")
@pytest.mark.parametrize("op", ["router_gemm", "router"])
def test_captured_changed_and_compiled_calls_agree(op: str) -> None:
    cases = [find_op(op).case(T=T, E=256, H=1024) for T in (1, 8, 9, 16, 17, 33, 96, 97, 128, 129, 1025)]

    assert list(capture_failures(find_op(op), cases, ours("gpu"), backend="aot_eager")) == []
