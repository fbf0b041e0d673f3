"""Experts: drawn loads around every tile edge, weights at three scales, plain, e4m3 in blocks or int8 by channel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits, regime_values, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, Pack, by_row, narrowed
from minimax_m2.harness.ops import fp8_linear, swiglu, swiglu_quant
from minimax_m2.reference.routing import pack_routing

# Half-widths of uniform weights, dyadic, whose standard deviation is the scale's name.
HALF_WIDTHS = {"0.02": 9 * 2.0**-8, "0.005": 9 * 2.0**-10, "0.1": 11 * 2.0**-6}
LARGEST_E4M3 = 448.0
# Bytes of an operand's weights that are drawn; experts beyond repeat them with rows moved, whatever the seed: gigabytes
# take long to draw, and whoever times M2's 256 experts wants them once. Scales are every expert's own.
DRAWN_WEIGHTS = 1 << 28
ROWS_MOVED = 41

FACTORS: dict[str, tuple[Field, ...]] = {
    # Around strips of 2 and 6 rows, two of them, and blocks of 16, 32 and 64 rows.
    "T": (1, 0, 2, 3, 5, 6, 7, 12, 13, 17, 33, 65, MANY_ROWS),
    "E": (8, 1, 2, 3, 16, 64, 300),
    "K": (2, 1, 3, 4, 8),
    # One, a pair, around one and two vectors, a block of 64 columns, and an e4m3 block of 128.
    "H": (64, 1, 2, 17, 31, 33, 63, 65, 96, 128, 130, 257),
    # One, a pair, around a vector, a block of 32; 96 and 192 cut e4m3 blocks between gate and up, as TP8 does.
    "I": (32, 1, 2, 15, 17, 31, 33, 48, 64, 96, 192),
    # Tokens choose among so many experts only: the reference costs about a millisecond an active expert.
    "active": (8, 32),
    "load": ("even", "hot", "same", "holes", "none"),
    "regime": ("normal", "heavy", "tiny", "huge", "equal", "signed_zero"),
    "weights": ("0.02", "0.005", "0.1"),
    "dtype": ("bfloat16", "float16", "float32"),
    # weights: e4m3; both: x is e4m3 too; int8: weights with a scale a channel
    "quant": ("none", "weights", "both", "int8"),
    "block": (128, 32),
    "ids": ("int32", "int64", "packed"),  # packed: words of pack_routing
    "map": (0, 1),  # 1: expert_map keeps the odd experts
    "out": ("same", "float32"),
    "gap": (0, 8, 3),
}


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    """K fits the experts in use; ``out`` becomes a dtype.

    One column of one expert may cancel for every token alike, which leaves nothing to judge by.
    """
    fields = narrowed(fields, E=8, K=2, H=33, I=17)
    active = min(int(fields["active"]), int(fields["E"]))
    K = min(int(fields["K"]), active)
    out = fields["dtype"] if fields["out"] == "same" else fields["out"]
    H = 2 if fields["H"] == K == 1 else fields["H"]
    # A scale a channel knows no blocks.
    block = 128 if fields["quant"] == "int8" else fields["block"]
    # Act would leave float16's range below or above, where nobody can see an error of 1 %.
    unseen = fields["regime"] in ("tiny", "huge") and fields["dtype"] == "float16"
    regime = "normal" if unseen else fields["regime"]
    return fields | {"active": active, "K": K, "H": H, "out": out, "block": block, "regime": regime}


def ids_of(case: Case, bits: Bits) -> Tensor:
    """int64 ids ``[T, K]``, distinct in a row, -1 = none. The last expert is always among those in use."""
    T, E, K, load = case.number("T"), case.number("E"), case.number("K"), case.word("load")
    active = case.number("active")
    others = bits.shuffled("experts", E - 1)
    pool = torch.cat([torch.tensor([E - 1]), others])[:active]
    place = bits.subsets("ids", T, K, len(pool))
    if load == "hot":
        # One expert takes every token, the others nearly none.
        first = torch.zeros(T, 1, dtype=torch.int64)
        rest = 1 + bits.subsets("rest", T, K - 1, len(pool) - 1)
        return pool[torch.cat([first, rest], 1)].masked_fill(_spared(T, K), -1)
    if load == "same":
        place = place[:1].expand(T, K) if T else place
    ids = pool[place]
    if load == "holes":
        ids = ids.masked_fill(bits.integers("holes", (T, K), 0, 1) == 0, -1)
    return torch.full_like(ids, -1) if load == "none" else ids


def _spared(T: int, K: int) -> Tensor:
    """All but the first choice, in three rows of four."""
    return (torch.arange(T)[:, None] % 4 > 0) & (torch.arange(K)[None, :] > 0)


def map_of(case: Case) -> Tensor | None:
    """int32 ``[E]``: odd experts are local, in order; the others are -1."""
    if not case.number("map"):
        return None
    expert = torch.arange(case.number("E"), dtype=torch.int32)
    return torch.where(expert % 2 == 1, expert // 2, torch.tensor(-1, dtype=torch.int32))


def weight_of(case: Case, bits: Bits, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """A weight ``[E, N, M]`` and its scales: one random byte an element, so that M2's width costs seconds."""
    half_width, quant = HALF_WIDTHS[case.word("weights")], case.word("quant")
    plain = quant == "none"
    factor = half_width / 128 if plain else 1.0
    dtype = {"none": getattr(torch, case.word("dtype")), "int8": torch.int8}.get(quant, torch.float8_e4m3fn)
    if torch.Size(shape).numel() > DRAWN_WEIGHTS:
        weight = _repeated(name, shape, factor, dtype)
    else:
        weight = _drawn(bits, name, shape, factor, dtype)
    if plain:
        return weight, None
    block = case.number("block")
    grid = (*shape[:2], 1) if quant == "int8" else (shape[0], -(-shape[1] // block), -(-shape[2] // block))
    return weight, fp8_linear.scales(bits, f"{name}/scale", grid, half_width / 128)


def _drawn(bits: Bits, name: str, shape: tuple[int, ...], factor: float, dtype: torch.dtype) -> Tensor:
    count = int(torch.Size(shape).numel())
    raw = torch.from_numpy(bits.words(name, -(-count // 8)).view("int8")[:count]).reshape(shape)
    return (raw.to(torch.float32) * factor).to(dtype)


@lru_cache(maxsize=2)
def _repeated(name: str, shape: tuple[int, ...], factor: float, dtype: torch.dtype) -> Tensor:
    """A weight too large to draw whole; whoever gets it must not write to it."""
    first = min(shape[0], max(1, DRAWN_WEIGHTS // (shape[1] * shape[2])))
    drawn = _drawn(Bits(Case({"op": "experts", "seed": 0})), name, (first, *shape[1:]), factor, dtype)
    weight = torch.empty(shape, dtype=dtype)
    # float8 has no roll, so bytes are moved.
    source, target = drawn.view(torch.uint8), weight.view(torch.uint8)
    for expert in range(shape[0]):
        target[expert] = source[expert % first].roll(ROWS_MOVED * (expert // first), 0)
    return weight


def x_of(case: Case, bits: Bits) -> tuple[Tensor, Tensor | None]:
    """Activations ``[T, H]`` and, for e4m3 ones, their scales ``[T, ceil(H/block)]``."""
    T, H = case.number("T"), case.number("H")
    values = regime_values(bits, "x", (T, H), case.word("regime"))
    if case.word("quant") != "both":
        return values.to(getattr(torch, case.word("dtype"))), None
    codes = (values * 64).clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float32).to(torch.float8_e4m3fn)
    groups = -(-H // case.number("block"))
    return codes, fp8_linear.scales(bits, "x/scale", (T, groups), 1 / 64)


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    T, E, K, H, I = (case.number(name) for name in ("T", "E", "K", "H", "I"))
    x, x_scale = x_of(case, bits)
    local = max(1, E // 2) if case.number("map") else E
    w13, w13_scale = weight_of(case, bits, "w13", (local, 2 * I, H))
    w2, w2_scale = weight_of(case, bits, "w2", (local, H, I))
    block = None if case.word("quant") == "int8" else (case.number("block"), case.number("block"))
    packed = {"w13": w13, "w2": w2, "w13_scale": w13_scale, "w2_scale": w2_scale, "block": block}
    ids = ids_of(case, bits)
    # A slot without expert may hold anything: captured graphs leave old weights there.
    weights = (1 + bits.integers("weights", (T, K), 0, 2**16 - 1)).to(torch.float32) / 2**17
    weights = weights.masked_fill(ids < 0, torch.nan)
    words = case.word("ids") == "packed"
    return {
        "x": strided(x, case.number("gap")),
        "packed": Pack("pack_experts", packed),
        "weights": None if words else weights,
        "ids": pack_routing(weights, ids) if words else ids.to(getattr(torch, case.word("ids"))),
        "expert_map": map_of(case),
        "x_scale": x_scale,
        "out_dtype": getattr(torch, case.word("out")),
    }


def rows(arguments: dict[str, Any], chosen: Tensor) -> dict[str, Any]:
    """The arguments of some tokens, with the weights of those experts only that they need."""
    taken = by_row("x", "weights", "ids", "x_scale")(arguments, chosen)
    pack, ids, expert_map = taken["packed"], taken["ids"], taken["expert_map"]
    if taken["weights"] is None or expert_map is not None:
        return taken
    used = ids[ids >= 0].unique().long()
    names = ("w13", "w2", "w13_scale", "w2_scale")
    kept = {name: pack.arguments[name][used] for name in names if pack.arguments[name] is not None}
    place = torch.zeros(int(ids.max()) + 2, dtype=ids.dtype, device=ids.device)
    place[used] = torch.arange(len(used), dtype=ids.dtype, device=ids.device)
    return taken | {
        "packed": Pack(pack.function, pack.arguments | kept),
        "ids": torch.where(ids < 0, ids, place[ids.long().clamp(min=0)]),
    }


def contract(case: Case) -> dict[str, Any]:
    """SGLang's CPU sites: gate and up stay float32, act has the model's dtype, the sum over K is float32.

    An e4m3 x does not tell the model's dtype: then it is that of the result.
    """
    return {
        "dequantised": None,
        "routing_weights": None,
        "activation": "none",
        "scale": "float32",
        "reciprocal": None,
        "scale_format": "float32",
        "smallest": None,
        "ties": "even",
        "gate_up": "float32",
        "silu": None,
        "act": case.word("out" if case.word("quant") == "both" else "dtype"),
        "down": None,
        "weighted": "float32",
        "combine": "float32",
        "out": case.word("out"),
    }


TRITON = "vLLM:vllm/model_executor/layers/fused_moe/fused_moe.py"
SGLANG_CPU = "SGLang:sgl-kernel/csrc/cpu/moe.cpp"
TRANSFORMERS = "transformers:src/transformers/models/minimax_m2/modeling_minimax_m2.py"

SGLANG_INT8 = "SGLang:sgl-kernel/csrc/cpu/moe_int8.cpp"

CHOICES: dict[str, Mapping[Any, str]] = {
    **fp8_linear.OP.choices,
    "activation": {**fp8_linear.OP.choices["activation"], "int8": SGLANG_INT8},
    "smallest": {1e-7: "SGLang:sgl-kernel/csrc/cpu/vec.h"},
    "ties": swiglu_quant.OP.choices["ties"],
    "routing_weights": {"bfloat16": "SGLang:python/sglang/srt/layers/moe/moe_runner/flashinfer_trtllm.py"},
    "gate_up": {"dtype": TRITON, None: SGLANG_CPU},
    "silu": swiglu.OP.choices["silu"],
    # Unrounded where the kernel that gates also quantises.
    "act": {"dtype": TRITON, "float32": "vLLM:vllm/model_executor/layers/fused_moe/batched_deep_gemm_moe.py"},
    "down": {"dtype": TRANSFORMERS},
    "weighted": {"dtype": TRITON, None: SGLANG_CPU},
    "combine": {"dtype": TRANSFORMERS, None: SGLANG_CPU},
}


def cost(case: Case) -> Cost:
    """Every active expert is read once."""
    T, K, H, I = (case.number(name) for name in ("T", "K", "H", "I"))
    ids = ids_of(case, Bits(case))
    expert_map = map_of(case)
    local = ids if expert_map is None else expert_map[ids.clamp(min=0)].long().masked_fill(ids < 0, -1)
    active, slots = len(local[local >= 0].unique()), int((local >= 0).sum())
    wide, out = (torch.empty(0, dtype=getattr(torch, case.word(n))).element_size() for n in ("dtype", "out"))
    weight = wide if case.word("quant") == "none" else 1
    x = 1 if case.word("quant") == "both" else wide
    index = {"int32": 8, "int64": 12, "packed": 4}[case.word("ids")]
    return Cost(bytes=active * 3 * H * I * weight + T * H * (x + out) + T * K * index, flops=slots * 6 * H * I)


# M2 has 256 experts of 28 MB in bf16: too many to draw and to judge. Timed are 4 of that width, 113 MB, which no cache
# holds: at T=4 an expert has 2 tokens, as M2's have at T=64; at T=64 it has 32, as at T=1024.
M2_WIDTH: dict[str, Field] = {"H": 3072, "I": 1536}

# Judged once each at full width; value and budget cost 0.1 to 0.5 s an active expert.
WIDE_CASES: tuple[dict[str, Field], ...] = (
    {**M2_WIDTH, "E": 8, "K": 8, "seed": 1},
    {**M2_WIDTH, "E": 8, "K": 8, "weights": "0.1", "ids": "packed", "regime": "heavy", "seed": 2},
    {**M2_WIDTH, "E": 8, "K": 8, "weights": "0.005", "quant": "weights", "ids": "int64", "seed": 3},
    {**M2_WIDTH, "E": 8, "K": 8, "quant": "int8", "seed": 4},
)

OP = Op(
    name="experts",
    outputs={"y": "out"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=contract,
    choices=CHOICES,
    shapes={"decode": {**M2_WIDTH, "E": 4, "T": 4}, "prefill": {**M2_WIDTH, "E": 4, "T": 64}},
    cost=cost,
    budgeted=("x",),
    rows=rows,
)
