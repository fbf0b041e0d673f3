"""A dense layer over an e4m3 weight: every block has a scale of its own, partial blocks too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import REGIMES, Bits, regime_values, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, Pack, by_row, narrowed
from minimax_m2.harness.ops import block_quant

FACTORS: dict[str, tuple[Field, ...]] = {
    # Around register blocks of 1 and 3 rows, a 64-token tile and a slab of 120 rows.
    "T": (1, 0, 2, 3, 4, 6, 7, 17, 64, 121, MANY_ROWS),
    # Around one and two blocks of 128, and the 192-wide shards of TP8.
    "N": (128, 1, 9, 127, 129, 192, 255, 257),
    "H": (256, 16, 33, 127, 128, 129, 192, 255, 384, 3072),
    "block": (128, 32),
    "x": ("float", "e4m3"),
    "regime": REGIMES,
    "weight_milli": (20, 5, 100),  # the weight's standard deviation in thousandths, nearly
    "dtype": ("bfloat16", "float16", "float32"),
    "out": ("same", "float32"),
    "gap": (0, 16, 3),
}


DIGITS = 2**16


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    """An e4m3 x does not tell the model's dtype: what the op returns is float32 unless asked for another."""
    fields = narrowed(fields, N=9, H=129)
    same = "float32" if fields["x"] == "e4m3" else fields["dtype"]
    return fields | {"out": same if fields["out"] == "same" else fields["dtype" if fields["x"] == "e4m3" else "out"]}


def scales(bits: Bits, name: str, shape: tuple[int, ...], factor: float) -> Tensor:
    """Neighbours differ by up to 2.3 times: one block off is a gross error. No 16-bit format holds their digits."""
    return (bits.integers(name, shape, 10 * DIGITS, 23 * DIGITS) * (factor / 16 / DIGITS)).to(torch.float32)


def activations(case: Case, bits: Bits) -> tuple[Tensor, Tensor | None]:
    T, H = case.number("T"), case.number("H")
    values = regime_values(bits, "x", (T, H), case.word("regime"))
    if case.word("x") == "float":
        return values.to(getattr(torch, case.word("dtype"))), None
    codes = (values * 64).clamp(-448, 448).to(torch.float32).to(torch.float8_e4m3fn)
    return codes, scales(bits, "x/scale", (T, -(-H // case.number("block"))), 1 / 64)


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    N, H, block = (case.number(name) for name in ("N", "H", "block"))
    x, x_scale = activations(case, bits)
    raw = torch.from_numpy(bits.words("weight", -(-N * H // 8)).view("int8")[: N * H]).reshape(N, H)
    grid = (-(-N // block), -(-H // block))
    # A random byte has a standard deviation of 74.
    weight_scale = scales(bits, "weight/scale", grid, case.number("weight_milli") * 1e-3 / 74)
    dtype, out = (getattr(torch, case.word(name)) for name in ("dtype", "out"))
    same = torch.float32 if x_scale is not None else dtype
    weight = strided(raw.to(torch.float32).to(torch.float8_e4m3fn), case.number("gap"))
    return {
        "x": strided(x, case.number("gap")),
        "packed": Pack("pack_fp8_linear", {"weight": weight, "scale": weight_scale, "block": (block, block)}),
        "x_scale": x_scale,
        "out_dtype": None if out == same else out,
    }


def contract(case: Case) -> dict[str, Any]:
    """Use the activations as they come, scale the sums, round once; a float32 sum is the result."""
    return {
        "dequantised": None,
        "activation": "none",
        "scale": "float32",
        "reciprocal": None,
        "scale_format": "float32",
        "out": None if case.word("out") == "float32" else case.word("out"),
    }


def cost(case: Case) -> Cost:
    T, N, H, block = (case.number(name) for name in ("T", "N", "H", "block"))
    model, out = (torch.empty(0, dtype=getattr(torch, case.word(n))).element_size() for n in ("dtype", "out"))
    x = T * H * model if case.word("x") == "float" else T * H + 4 * T * -(-H // block)
    return Cost(bytes=x + N * H + 4 * -(-N // block) * -(-H // block) + T * N * out, flops=2 * T * N * H)


OP = Op(
    name="fp8_linear",
    outputs={"y": "out"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=contract,
    choices={
        # At load.
        "dequantised": {"bfloat16": "vllm-ascend:vllm_ascend/patch/worker/patch_minimax_m2.py"},
        "activation": {"e4m3": "SGLang:python/sglang/srt/layers/quantization/fp8_kernel.py"},
        "reciprocal": block_quant.OP.choices["reciprocal"],
        # On SM100.
        "scale_format": {"ue8m0": "DeepGEMM:deep_gemm/utils/math.py"},
    },
    # One rank's share of the qkv projection at TP8.
    shapes={"decode": {"T": 4, "N": 1024, "H": 3072}, "prefill": {"T": 256, "N": 1024, "H": 3072}},
    cost=cost,
    budgeted=("x",),
    rows=by_row("x", "x_scale"),
)
