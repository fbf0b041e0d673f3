"""The exact lane: calls in which every intermediate is exactly representable, so that only one result is right.

Inputs are small integers and powers of two; sums stay below 2^8, which bfloat16 holds; sigmoids are drawn where they
are 0 or 1, softmaxes where one key has all the weight, norms over rows of one magnitude with eps 0. No order of
summation, instruction set or device can tell apart what follows, so equality needs no budget and forgives no index.
What is expected is computed here in integers, from other formulas than the references'.

The lane says nothing about rounding: that is the budgets' part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Field
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.judge import call
from minimax_m2.harness.op import Op, Pack, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.relation import placed
from minimax_m2.harness.returned import outputs_of

T = 5
# exp(-LARGE) is 0 in float32, sigmoid(LARGE) is 1; its square is no infinity in float16.
LARGE = 128


class ExactCall(NamedTuple):
    """Arguments, the only right outputs, and the fields of the cases that a provider may refuse."""

    arguments: dict[str, Any]
    expected: Outputs
    fields: Mapping[str, Field] = {}


Recipe = Callable[[Bits, torch.dtype], ExactCall]


def mismatch(op_name: str, provider: Provider, bits: Bits, dtype: torch.dtype, variant: str = "") -> str:
    """Say which output of an op's exact calls has other values, or nothing."""
    calls = (recipe(bits, dtype) for recipe in RECIPES[op_name])
    return next((told for made in calls if (told := _mismatch(op_name, provider, made, variant))), "")


def _mismatch(op_name: str, provider: Provider, made: ExactCall, variant: str) -> str:
    op = find_op(op_name)
    if made.fields and provider.refuses(op, op.case(**made.fields)) is not None:
        return ""
    arguments = placed(made.arguments, provider)
    with provider.enter(variant):
        outputs = outputs_of(op, call(op, provider.function(op_name), arguments), arguments)
    return next((told for told in map(_difference, op.outputs, outputs, made.expected) if told), "")


def _difference(name: str, actual: Tensor, expected: Tensor) -> str:
    found, right = actual.detach().cpu().double(), expected.double()
    if name == "ids":
        # The order of a token's experts is free.
        found, right = found.sort(-1).values, right.sort(-1).values
    if found.shape != right.shape:
        return f"{name} has shape {list(found.shape)}, expected {list(right.shape)}"
    wrong = (found != right).nonzero()
    if not len(wrong):
        return ""
    at = tuple(int(i) for i in wrong[0])
    return f"{name} at {list(at)}: actual {float(found[at])}, expected {float(right[at])}, {len(wrong)} differ"


def _sparse(bits: Bits, name: str, shape: tuple[int, ...], low: int, high: int, one_in: int) -> Tensor:
    """int64, one element in ``one_in`` not 0."""
    kept = bits.integers(f"{name}/kept", shape, 0, one_in - 1) == 0
    return bits.integers(name, shape, low, high) * kept


def _signs(bits: Bits, name: str, shape: tuple[int, ...]) -> Tensor:
    return bits.integers(name, shape, 0, 1) * 2 - 1


def _product(bits: Bits, N: int, H: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and their product, all int64; the product stays below 2^8."""
    x, weight = _sparse(bits, "x", (T, H), -3, 3, 4), _sparse(bits, "weight", (N, H), -1, 1, 4)
    return x, weight, (x[:, None] * weight).sum(-1)


def linear(bits: Bits, dtype: torch.dtype) -> ExactCall:
    x, weight, y = _product(bits, 19, 77)
    return ExactCall({"x": x.to(dtype), "weight": weight.to(dtype), "out_dtype": None}, (y,))


def router_gemm(bits: Bits, dtype: torch.dtype) -> ExactCall:
    x, weight, y = _product(bits, 19, 77)
    bias = bits.integers("bias", (19,), -9, 9)
    return ExactCall({"x": x.to(dtype), "weight": weight.float(), "bias": bias.float()}, (y + bias,))


def lm_head(bits: Bits, dtype: torch.dtype) -> ExactCall:
    x, weight, y = _product(bits, 19, 77)
    rows = torch.tensor([3, 0, 3])
    given = {"x": x.to(dtype), "weight": weight.to(dtype), "rows": rows, "vocab_size": 17}
    return ExactCall(given, (y[rows, :17],))


def fp8_linear(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """Scales are powers of two, another for every block of 32 x 32.

    The largest x of a group is 7, so that a kernel which quantises it finds the scale 7 / 448, a power of two, and
    codes that hold every x.
    """
    x, weight, _ = _product(bits, 70, 77)
    x[:, ::32] = 7 * _signs(bits, "signs", (T, 3))
    power = bits.integers("power", (3, 3), 0, 1)
    scaled = weight << power.repeat_interleave(32, 0)[:70].repeat_interleave(32, 1)[:, :77]
    packed = {"weight": weight.float().to(torch.float8_e4m3fn), "scale": 2.0**power, "block": (32, 32)}
    given = {"x": x.to(dtype), "packed": Pack("pack_fp8_linear", packed), "x_scale": None, "out_dtype": None}
    return ExactCall(given, ((x[:, None] * scaled).sum(-1),))


def experts(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """Gates of +-128, of which SiLU leaves 128 or nothing; every routing weight is 1/8."""
    E, K, H, width = 7, 4, 33, 21
    first = torch.arange(H) == 0
    x = _sparse(bits, "x", (T, H), -1, 1, 5) * ~first + first
    # The first channel of x is 1, so that it alone sets the gate.
    sign = _signs(bits, "gate", (E, width))
    gate = sign[..., None] * LARGE * first
    up, w2 = _sparse(bits, "up", (E, width, H), -1, 1, 8), _sparse(bits, "w2", (E, H, width), -1, 1, 6)
    ids = bits.subsets("ids", T, K, E)
    open_gate = (sign > 0) * LARGE
    y = torch.zeros(T, H, dtype=torch.int64)
    for t in range(T):
        for e in ids[t].tolist():
            y[t] += w2[e] @ (open_gate[e] * (up[e] @ x[t])) // 8
    packed = {"w13": torch.cat([gate, up], 1).to(dtype), "w2": w2.to(dtype)}
    given = {"x": x.to(dtype), "packed": Pack("pack_experts", packed), "weights": torch.full((T, K), 0.125)}
    return ExactCall(given | {"ids": ids.to(torch.int32)}, (y,))


def experts_int8(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """Rows with a largest magnitude of 127, whose scale is 1; act is 0 or +-254, and its scale 2.

    Gates are +-254 and ups a channel of x. Scales of the weights are powers of two, another for every channel.
    """
    E, K, H, width = 7, 4, 33, 21
    x = _sparse(bits, "x", (T, H), -1, 1, 2)
    x[:, 0], x[:, 1] = 127, 1
    sign, channel = _signs(bits, "gate", (E, width)), bits.integers("channel", (E, width), 1, H - 1)
    sign[:, 0], channel[:, 0] = 1, 1
    power13, power2 = bits.integers("power13", (E, 2 * width), 0, 1), bits.integers("power2", (E, H), 0, 1)
    one_hot = torch.arange(H) == torch.cat([torch.zeros_like(channel), channel], 1)[..., None]
    w13 = one_hot * (torch.cat([sign, torch.ones_like(sign)], 1) * (2 >> power13))[..., None]
    w2, ids = _sparse(bits, "w2", (E, H, width), -1, 1, 6), bits.subsets("ids", T, K, E)
    y = torch.zeros(T, H, dtype=torch.int64)
    for t in range(T):
        for e in ids[t].tolist():
            y[t] += (w2[e] @ ((sign[e] > 0) * 127 * x[t, channel[e]])) << power2[e]
    halved = torch.cat([torch.ones(width), torch.full((width,), 0.5)])
    packed = {
        "w13": w13.to(torch.int8), "w2": w2.to(torch.int8), "w13_scale": (halved * 2**power13)[..., None],
        "w2_scale": (2.0**power2)[..., None],
    }  # fmt: skip
    given = {"x": x.to(dtype), "packed": Pack("pack_experts", packed), "weights": torch.full((T, K), 0.5)}
    return ExactCall(given | {"ids": ids.to(torch.int32), "out_dtype": torch.float32}, (y,), {"quant": "int8"})


def routing(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """Eight logits of 0 a row, the others so low that nobody takes them: every weight is 1/8."""
    E, K = 40, 8
    ids = bits.subsets("ids", T, K, E).sort(-1).values
    logits = torch.full((T, E), -64.0).scatter(1, ids, 0.0).to(dtype)
    given = {"logits": logits, "bias": None, "top_k": K, "indices_dtype": torch.int64}
    return ExactCall(given, (torch.full((T, K), 0.125), ids))


def _norm(bits: Bits, H: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of one magnitude, a power of two; weights; what the norm makes of them with eps 0."""
    signs, weight = _signs(bits, "signs", (T, H)), bits.integers("weight", (H,), -9, 9)
    power = 2.0 ** bits.integers("power", (T, 1), -3, 3)
    return signs * power, weight, signs * weight


def rms_norm(bits: Bits, dtype: torch.dtype) -> ExactCall:
    x, weight, y = _norm(bits, 64)
    return ExactCall({"x": x.to(dtype), "weight": weight.to(dtype), "eps": 0.0}, (y,))


def add_rms_norm(bits: Bits, dtype: torch.dtype) -> ExactCall:
    total, weight, y = _norm(bits, 64)
    x = bits.integers("x", (T, 64), -4, 4) / 8
    given = {"x": x.to(dtype), "residual": (total - x).to(dtype), "weight": weight.to(dtype), "eps": 0.0}
    return ExactCall(given, (y, total))


def swiglu(bits: Bits, dtype: torch.dtype) -> ExactCall:
    sign, up = _signs(bits, "gate", (T, 37)), bits.integers("up", (T, 37), -9, 9)
    gate_up = torch.cat([sign * LARGE, up], -1)
    return ExactCall({"gate_up": gate_up.to(dtype)}, ((sign > 0) * LARGE * up,))


def _quarter_turns(bits: Bits, positions: int, R: int) -> Tensor:
    """``[P, R]``: angles of 0, 90, 180 and 270 degrees, whose cosines and sines are integers."""
    quarter = bits.integers("quarter", (positions, R // 2), 0, 3)
    cos = torch.tensor([1, 0, -1, 0])[quarter]
    sin = torch.tensor([0, 1, 0, -1])[quarter]
    return torch.cat([cos, sin], -1)


def _turned(x: Tensor, rows: Tensor, R: int) -> Tensor:
    """Turn the pairs (j, j + R/2) one by one."""
    y = x.clone()
    for j in range(R // 2):
        cos, sin = rows[:, None, j], rows[:, None, R // 2 + j]
        y[..., j] = x[..., j] * cos - x[..., j + R // 2] * sin
        y[..., j + R // 2] = x[..., j + R // 2] * cos + x[..., j] * sin
    return y


def rope(bits: Bits, dtype: torch.dtype) -> ExactCall:
    q, k = (bits.integers(name, (T, heads, 24), -99, 99) for name, heads in (("q", 3), ("k", 2)))
    table, positions = _quarter_turns(bits, 9, 10), bits.integers("positions", (T,), 0, 8)
    given = {"q": q.to(dtype), "k": k.to(dtype), "cos_sin": table.float(), "positions": positions, "rotary_dim": 10}
    return ExactCall(given, (_turned(q, table[positions], 10), _turned(k, table[positions], 10)))


def qk_sum_squares(bits: Bits, dtype: torch.dtype) -> ExactCall:
    qkv = bits.integers("qkv", (T, 7 * 16), -30, 30)
    given = {"qkv": qkv.to(dtype), "num_heads": 3, "num_kv_heads": 2, "head_dim": 16, "counted_kv_heads": 1}
    return ExactCall(given, (torch.stack([qkv[:, :48].square().sum(-1), qkv[:, 48:64].square().sum(-1)], -1),))


def qk_norm_rope(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """Heads of one magnitude, then quarter turns."""
    Hq, Hk, D, R = 4, 2, 24, 10
    signs = _signs(bits, "signs", (T, (Hq + Hk) * D))
    v = bits.integers("v", (T, Hk * D), -99, 99)
    weight = bits.integers("weight", ((Hq + Hk) * D,), -9, 9)
    table, positions = _quarter_turns(bits, 9, R), bits.integers("positions", (T,), 0, 8)
    y = (signs * weight).unflatten(-1, (Hq + Hk, D))
    q, k = (_turned(x, table[positions], R) for x in y.split([Hq, Hk], 1))
    given = {
        "qkv": torch.cat([signs * 2, v], -1).to(dtype), "stats": None, "q_weight": weight[: Hq * D].float(),
        "k_weight": weight[Hq * D :].float(), "cos_sin": table.float(), "positions": positions, "num_heads": Hq,
        "num_kv_heads": Hk, "head_dim": D, "rotary_dim": R, "q_width": Hq * D, "k_width": Hk * D, "eps": 0.0,
    }  # fmt: skip
    return ExactCall(given, (q, k, v.unflatten(-1, (Hk, D))))


def attention(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """Every query asks for one key by name and gets its value: its score is 256, all others are 0."""
    S, page, Hk, group, D = 21, 4, 2, 3, 24
    pages = -(-S // page)
    place = bits.shuffled("pages", pages + 2)[:pages]
    names = torch.eye(D, dtype=torch.int64)[:S] * 16
    values = bits.integers("v", (S, Hk, D), -99, 99)
    k_cache, v_cache = (torch.full((pages + 2, page, Hk, D), torch.nan, dtype=dtype) for _ in range(2))
    for s in range(S):
        k_cache[place[s // page], s % page] = names[s].to(dtype)
        v_cache[place[s // page], s % page] = values[s].to(dtype)
    # Query i stands at key S - T + i and may ask for any before it.
    asked = torch.stack([bits.integers(f"asked/{i}", (Hk * group,), 0, S - T + i) for i in range(T)])
    heads = torch.arange(Hk * group) // group
    given = {
        "q": names[asked].to(dtype), "k_cache": k_cache, "v_cache": v_cache, "block_table": place[None].to(torch.int32),
        "seq_lens": torch.tensor([S], dtype=torch.int32), "query_start": torch.tensor([0, T], dtype=torch.int32),
        "scale": 1.0, "max_query_len": T, "max_seq_len": S,
    }  # fmt: skip
    return ExactCall(given, (values[asked, heads],))


def block_quant(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """Groups whose largest magnitude is 448 times a power of two: that power is the scale."""
    codes = bits.integers("codes", (T, 50), -15, 15)
    codes[:, ::16] = 448
    power = 2.0 ** bits.integers("power", (T, 4), -3, 3)
    x = codes * power.repeat_interleave(16, -1)[:, :50]
    return ExactCall({"x": x.to(dtype), "group": 16}, (codes, power))


def add_rms_norm_quant(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """Weights of at most 14 in magnitude, 14 in every group: the scale is 14 / 448, a power of two."""
    made = add_rms_norm(bits, dtype)
    weight = bits.integers("small", (64,), -13, 13)
    weight[::16] = 14
    signs = made.expected[1].sign()
    given = made.arguments | {"weight": weight.to(dtype), "group": 16}
    return ExactCall(given, (signs * weight * 32, torch.full((T, 4), 2.0**-5), made.expected[1]))


def swiglu_quant(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """Ups of at most 14 in magnitude, an open gate on 14 in every group: the scale is 128 * 14 / 448 = 4."""
    sign, up = _signs(bits, "gate", (T, 40)), bits.integers("up", (T, 40), -13, 13)
    sign[:, ::8], up[:, ::8] = 1, 14
    gate_up = torch.cat([sign * LARGE, up], -1)
    given = {"gate_up": gate_up.to(dtype), "group": 8}
    fields = {"q": "float8_e4m3fn", "dtype": str(dtype).removeprefix("torch.")}
    return ExactCall(given, ((sign > 0) * up * 32, torch.full((T, 5), 4.0)), fields)


def router(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """Each row of x asks for eight experts by -64 to all others."""
    E, K = 40, 8
    ids = bits.subsets("ids", T, K, E).sort(-1).values
    x = torch.ones(T, E, dtype=torch.int64).scatter(1, ids, 0)
    given = {"x": x.to(dtype), "weight": torch.eye(E) * -64, "bias": None, "top_k": K, "indices_dtype": torch.int64}
    return ExactCall(given, (torch.full((T, K), 0.125), ids))


def qk_norm_rope_cache(bits: Bits, dtype: torch.dtype) -> ExactCall:
    """The keys and values of qk_norm_rope in slots of caches that were 0."""
    made = qk_norm_rope(bits, dtype)
    q, k, v = made.expected
    slots = bits.shuffled("slots", 12)[:T]
    slots[2] = -1
    caches = {}
    for name, x in (("k_cache", k), ("v_cache", v)):
        cache = torch.zeros(12, *x.shape[1:], dtype=x.dtype)
        cache[slots[slots >= 0]] = x[slots >= 0]
        caches[name] = cache.view(3, 4, *x.shape[1:])
    empty = {name: torch.zeros(cache.shape, dtype=dtype) for name, cache in caches.items()}
    return ExactCall(made.arguments | empty | {"slots": slots}, (q, caches["k_cache"], caches["v_cache"]))


def block_dequant(bits: Bits, dtype: torch.dtype) -> ExactCall:
    codes, power = bits.integers("codes", (37, 50), -15, 15), 2.0 ** bits.integers("power", (3, 4), -3, 3)
    w = codes * power.repeat_interleave(16, 0)[:37].repeat_interleave(16, 1)[:, :50]
    q = codes.float().to(torch.float8_e4m3fn)
    return ExactCall({"q": q, "scale": power.float(), "block": (16, 16), "dtype": dtype}, (w,))


RECIPES: dict[str, tuple[Recipe, ...]] = {
    recipe.__name__: (recipe,)
    for recipe in (
        add_rms_norm, add_rms_norm_quant, attention, block_dequant, block_quant, experts, fp8_linear, linear, lm_head,
        qk_norm_rope, qk_norm_rope_cache, qk_sum_squares, rms_norm, rope, router, router_gemm, routing, swiglu,
        swiglu_quant,
    )
} | {"experts": (experts, experts_int8)}  # fmt: skip

COPIES = ("embedding", "kv_cache", "moe_align", "pack_routing", "qkvzba_split", "unpack_routing")
"""Ops whose every sampled case is judged by equality: they need no lane of their own."""


def lacking(ops: dict[str, Op]) -> list[str]:
    """Ops without an exact call, because what they compute is nowhere a rational number."""
    return [name for name in ops if name not in RECIPES and name not in COPIES]
