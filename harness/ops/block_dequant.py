"""Weights from e4m3 and block scales: blocks of several shapes, sizes that leave the last ones short."""

from __future__ import annotations

from typing import Any

import torch

from minimax_m2.harness.bits import Bits, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Cost, Op
from minimax_m2.harness.ops import rms_norm

FACTORS: dict[str, tuple[Field, ...]] = {
    "N": (8, 0, 1, 64, 127, 128, 129, 300),
    "H": (16, 1, 15, 17, 127, 128, 129, 192, 300),
    "experts": (0, 1, 3),  # 0: a dense weight of two dimensions
    "block": ("128x128", "64x128", "1x32", "3x7"),
    "scale": ("normal", "power", "tiny", "zero"),
    "dtype": ("bfloat16", "float16", "float32"),
    "gap": (0, 8, 3),
}


def block_of(case: Case) -> tuple[int, int]:
    rows, columns = case.word("block").split("x")
    return int(rows), int(columns)


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    (rows, columns), N, H = block_of(case), case.number("N"), case.number("H")
    lead = (case.number("experts"),) if case.number("experts") else ()
    # Every code but the two NaNs (0x7f, 0xff).
    magnitude, sign = bits.integers("q", (*lead, N, H), 0, 126), bits.integers("sign", (*lead, N, H), 0, 1)
    grid = (*lead, -(-N // rows), -(-H // columns))
    scale = {
        # As trained weights have them: near 1e-4, 24 significant bits.
        "normal": (1 + bits.uniform("scale", grid)) * 1.1e-4,
        "power": torch.ldexp(torch.ones(grid, dtype=torch.float64), bits.integers("scale", grid, -12, -8)),
        "tiny": (1 + bits.uniform("scale", grid)) * 2.0**-30,
        "zero": (bits.integers("scale", grid, 0, 1) * 2.0**-10).double(),
    }[case.word("scale")]
    q = (magnitude + 128 * sign).to(torch.uint8).view(torch.float8_e4m3fn)
    return {
        "q": strided(q, case.number("gap")),
        "scale": scale.to(torch.float32),
        "block": (rows, columns),
        "dtype": getattr(torch, case.word("dtype")),
    }


def cost(case: Case) -> Cost:
    (rows, columns), N, H = block_of(case), case.number("N"), case.number("H")
    grid = -(-N // rows) * -(-H // columns)
    many = max(1, case.number("experts"))
    return Cost(bytes=many * (N * H * (1 + rms_norm.element_bytes(case)) + 4 * grid), flops=many * N * H)


OP = Op(
    name="block_dequant",
    outputs={"w": "dtype"},
    factors=FACTORS,
    inputs=inputs,
    contract=lambda case: {"out": rms_norm.own_dtype(case)},
    choices={"out": {"dtype": "vllm-ascend:vllm_ascend/patch/worker/patch_minimax_m2.py"}},
    shapes={"decode": {"N": 384, "H": 3072}, "prefill": {"N": 768, "H": 3072}},
    cost=cost,
    budgeted=("q",),
)
