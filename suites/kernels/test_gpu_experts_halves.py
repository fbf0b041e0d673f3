"""The kernel of sm_90 for experts of 16-bit weights: what it takes, its machine code, and what it gives."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.devices import absence
from minimax_m2.harness.graph_capture import capture_failures
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import ours
from minimax_m2.kernels.gpu import toolkit, tuned
from minimax_m2.kernels.gpu.experts import bucket, experts, pack_experts, paths
from minimax_m2.kernels.gpu.experts_halves import FEWEST_SLOTS, by_halves, halves_win

M2: dict[str, Any] = {
    "hidden": 3072, "width": 1536, "capability": 90, "compiler": "nvcc", "halves": True, "aligned": True
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"hidden": 3040}, {"width": 96}, {"capability": 89}, {"capability": 100}, {"compiler": None}, {"halves": False},
     {"aligned": False}],
    ids=str,
)  # fmt: skip
def test_experts_take_it_where_it_can_run(change: dict[str, Any]) -> None:
    assert by_halves(**M2)
    assert not by_halves(**{**M2, **change})


@pytest.mark.parametrize(
    ("slots", "expected"),
    [(32, ("tiles",)), (33, ("tiles", "halves")), (256 * FEWEST_SLOTS - 1, ("tiles", "halves")),
     (256 * FEWEST_SLOTS, ("halves", "tiles")), (131072, ("halves", "tiles"))],
)  # fmt: skip
def test_many_slots_an_expert_take_it_first(slots: int, expected: tuple[str, ...]) -> None:
    assert paths(slots, 256, block=(128, 128), scaled=False, **M2) == expected


@pytest.mark.parametrize(
    ("slots", "experts", "width", "expected"),
    [(256 * 64, 256, 1536, True), (256 * 64 - 1, 256, 1536, False), (32 * 64, 32, 1536, True), (6 * 64, 6, 1536, True),
     (5 * 64, 5, 1536, False), (64, 1, 1536, False), (1024, 1, 1536, True), (8 * 64, 8, 768, False),
     (11 * 64, 11, 768, True)],
)  # fmt: skip
def test_few_experts_of_few_slots_would_leave_most_of_a_gpu_idle(
    slots: int, experts: int, width: int, expected: bool
) -> None:
    assert halves_win(slots, experts, width) == expected


def test_16_bit_weights_share_no_tuned_choice_with_others() -> None:
    assert bucket(64, 16, halves=True) != bucket(64, 16)
    assert bucket(4, 16, halves=True) != bucket(4, 16)


@pytest.mark.gpu
@pytest.mark.nightly
def test_machine_code_has_tensor_cores_and_the_copy_engine_and_spills_nothing(tmp_path: Path) -> None:
    if toolkit.compiler() is None:
        pytest.skip("nvcc is not here")
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    library = tmp_path / "experts_halves.so"
    command = toolkit.command("experts_halves", "90a", library)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    usage, code = (
        subprocess.run([tools / tool, option, library], capture_output=True, text=True, check=True).stdout
        for tool, option in (("cuobjdump", "--dump-resource-usage"), ("cuobjdump", "--dump-sass"))
    )
    kernels = re.split(r"\n\s*Function : ", code)[1:]

    # The compiler says so where it would make products wait for each other.
    assert "serialized" not in done.stderr
    assert usage.count("STACK:0 ") == usage.count("REG:") == len(kernels) == 2, usage
    assert [kernel for kernel in kernels if "HGMMA" not in kernel or "UTMALDG" not in kernel] == []
    # A release to the cluster would fence all memory at every step, in each of ten loops.
    assert [kernel.count("MEMBAR.ALL.GPU") >= 10 for kernel in kernels] == [False, False]


def _cases() -> Iterator[Case]:
    """Slots of an expert around every width of a tile and beyond the widest, skewed loads, all kinds of ids."""
    op = find_op("experts")
    small: dict[str, Field] = {"H": 192, "I": 128, "E": 2, "K": 1, "active": 32}
    for T in (64, 65, 200, 318, 320, 321, 380, 384, 385, 700):
        yield op.case(**small, T=T, seed=T)
    small |= {"E": 16, "K": 2}
    for load in ("hot", "same", "holes", "none"):
        for T, ids, mapped in ((50, "int64", 0), (100, "packed", 1), (300, "int32", 0), (400, "packed", 0),
                               (400, "int64", 1)):  # fmt: skip
            yield op.case(**small, T=T, load=load, ids=ids, map=mapped, seed=T)
    for regime in ("heavy", "tiny", "huge", "equal", "signed_zero"):
        yield op.case(**{**small, "I": 64, "H": 320}, T=400, regime=regime)
    # One expert has all slots: dealt evenly to four pairs, they leave the last program none.
    for T in (641, 770):
        yield op.case(H=192, I=128, E=2, K=1, active=32, T=T, load="same")
    # More tiles of a product than programs run at once, so that each takes several.
    for T, load, H, I in (
        (100, "even", 2560, 64),
        (300, "hot", 2560, 64),
        (100, "even", 64, 1280),
        (300, "hot", 64, 1280),
    ):
        yield op.case(E=32, active=32, K=2, H=H, I=I, T=T, load=load)
    for T in (100, 400):
        yield op.case(**small, T=T, dtype="float16", gap=16)
        yield op.case(**small, T=T, out="float32", gap=3)


def test_every_case_can_take_it() -> None:
    kind: dict[str, Any] = {"capability": 90, "compiler": "nvcc", "halves": True, "aligned": True}
    assert [case for case in _cases() if not by_halves(case.number("H"), case.number("I"), **kind)] == []


@pytest.mark.gpu
@pytest.mark.skipif(absence("gpu") is not None, reason=f"{absence('gpu')}")
@pytest.mark.parametrize("case", [pytest.param(case, id=f"G2-{case.op}-{case.id}") for case in _cases()])
def test_outputs_are_right_at_every_width(case: Case) -> None:
    with tuned.forced("experts", "halves"):
        verdict = judge(case, ours("gpu"))

    assert verdict.passed, verdict.explain()


@pytest.mark.gpu
@pytest.mark.skipif(absence("gpu") is not None, reason=f"{absence('gpu')}")
def test_rows_are_right_where_every_program_takes_many_tiles() -> None:
    T, E, H, I = 500, 8, 3072, 1536
    draw = torch.Generator("cuda").manual_seed(0)
    x, w13, w2 = (
        (torch.randn(shape, device="cuda", generator=draw) * scale).bfloat16()
        for shape, scale in (((T, H), 1.0), ((E, 2 * I, H), 0.02), ((E, H, I), 0.02))
    )
    weights = torch.rand(T, E, device="cuda", generator=draw)
    ids = torch.arange(E, device="cuda", dtype=torch.int32).repeat(T, 1)
    rows = [0, 1, 159, 160, 255, 256, 257, 499]
    h = torch.einsum("th,enh->ten", x[rows].double(), w13.double())
    act = (torch.nn.functional.silu(h[..., :I]) * h[..., I:]).bfloat16().double()
    expected = torch.einsum("ten,ehn,te->th", act, w2.double(), weights[rows].double())

    with tuned.forced("experts", "halves"):
        actual = experts(x, pack_experts(w13, w2), weights, ids)

    off = (actual[rows].double() - expected).abs().max() / expected.square().mean().sqrt()
    # derived: 8 rows of 1/sqrt(8) of the sum, at most 6 times that, each off by 2^-9, and the sum's own rounding.
    assert off <= 8 * 6 / 8**0.5 * 2**-9 + 6 * 2**-9


@pytest.mark.gpu
@pytest.mark.skipif(absence("gpu") is not None, reason=f"{absence('gpu')}")
def test_captured_changed_and_compiled_calls_agree() -> None:
    op = find_op("experts")
    cases = [op.case(H=192, I=128, E=4, K=2, T=T) for T in (32, 64, 100, 400)]

    with tuned.forced("experts", "halves"):
        assert list(capture_failures(op, cases, ours("gpu"), backend="aot_eager")) == []
