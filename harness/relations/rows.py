"""Rows are independent: where a token stands, and how many others there are, changes nothing about it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.op import Op
from minimax_m2.harness.relation import Arguments, Change, Relation

# Arguments that have a row a token, by op; all outputs have one, too. Caches are told apart by their slots.
ROWS: dict[str, tuple[str, ...]] = {
    "add_rms_norm": ("x", "residual"),
    "add_rms_norm_quant": ("x", "residual"),
    "block_quant": ("x",),
    "embedding": ("ids",),
    "experts": ("x", "weights", "ids", "x_scale"),
    "fp8_linear": ("x", "x_scale"),
    "gdn_gating": ("a", "b"),
    "linear": ("x",),
    "pack_routing": ("weights", "ids"),
    "qk_norm_rope": ("qkv", "stats", "positions"),
    "qk_sum_squares": ("qkv",),
    "qkvzba_split": ("qkvz", "ba"),
    "rms_norm": ("x",),
    "rope": ("q", "k", "positions"),
    "router": ("x",),
    "router_gemm": ("x",),
    "routing": ("logits",),
    "swiglu": ("gate_up",),
    "swiglu_quant": ("gate_up",),
    "unpack_routing": ("packed",),
}
# A row alone may be an op's whole input, whose scale or sum is then another; these take none from other rows.
CACHED = {"kv_cache": ("k", "v", "slots"), "qk_norm_rope_cache": ("qkv", "stats", "positions", "slots")}

# Above every size at which an engine is known to switch kernels: 1408 rows (kvcache-ai/sglang#68), 10240 heads
# (vllm#51049); 2049 is one past a grid of 2048.
MANY_ROWS, MANY_HEADS = 2049, 10240
MANY_BYTES = 2**27


def picked(x: Any, order: Tensor) -> Any:
    """Rows in another order. Gaps between rows are kept, so that a strided input stays one."""
    if not isinstance(x, Tensor):
        return x
    gap = x.stride(0) - x[0].numel() if x.ndim > 1 and len(x) > 1 and x[0].is_contiguous() else 0
    rows = x[order]
    if gap <= 0 or not len(order):
        return rows
    flat = rows.reshape(len(order), -1)
    store = torch.full((len(order), flat.shape[1] + gap), torch.nan).to(x.dtype)
    store[:, : flat.shape[1]] = flat
    return store[:, : flat.shape[1]].unflatten(1, x.shape[1:])


def _rows_of(op: Op, given: Arguments, order: Tensor) -> Arguments | None:
    if given.get("num_valid") is not None:
        return None
    names = (ROWS | CACHED)[op.name]
    return given | {name: picked(given.get(name), order) for name in names if name in given}


def _count(op: Op, given: Arguments) -> int:
    return len(given[(ROWS | CACHED)[op.name][0]])


def permuted(op: Op, case: Case, given: Arguments) -> Change | None:
    """Tokens in another order."""
    count = _count(op, given)
    order = Bits(case).shuffled("relation", count)
    arguments = _rows_of(op, given, order) if count > 1 else None
    back = order.argsort()
    mutated = len(op.mutates)

    def undo(outputs: Outputs, base: Outputs) -> Outputs:
        returned, caches = outputs[: len(outputs) - mutated], outputs[len(outputs) - mutated :]
        return (*(o[back] for o in returned), *caches)

    return None if arguments is None else Change(arguments, undo)


def alone(op: Op, case: Case, given: Arguments) -> Change | None:
    """One token without the others."""
    count = _count(op, given)
    if count < 2:
        return None
    row = int(Bits(case).integers("relation", (1,), 0, count - 1))
    arguments = _rows_of(op, given, torch.tensor([row]))

    def undo(outputs: Outputs, base: Outputs) -> Outputs:
        return tuple(torch.cat([b[:row], o, b[row + 1 :]]) for o, b in zip(outputs, base, strict=True))

    return None if arguments is None else Change(arguments, undo)


def repeated(op: Op, case: Case, given: Arguments) -> Change | None:
    """The same tokens again and again, until there are more than any kernel's grid or tile takes at once."""
    count = _count(op, given)
    if count == 0:
        return None
    tensors = [given[name] for name in ROWS[op.name] if isinstance(given.get(name), Tensor)]
    heads = sum(t.shape[1] for t in tensors if t.ndim == 3)
    wanted = max(MANY_ROWS, -(-MANY_HEADS // heads) if heads else 0)
    copies = max(2, -(-wanted // count))
    if copies * sum(t.numel() * t.element_size() for t in tensors) > MANY_BYTES:
        return None
    arguments = _rows_of(op, given, torch.arange(count).repeat(copies))

    def undo(outputs: Outputs, base: Outputs) -> list[Outputs]:
        places = (0, copies // 2, copies - 2, copies - 1)
        return [tuple(o[p * count : (p + 1) * count] for o in outputs) for p in places]

    return None if arguments is None else Change(arguments, undo)


# Arguments whose rows may lie apart, and how far they are laid: no case draws that gap.
FREE_ROWS = ("x", "residual", "q", "k", "qkv", "qkvz", "ba", "a", "b", "logits", "gate_up")
APART = 24


def apart(op: Op, case: Case, given: Arguments) -> Change | None:
    """Rows further apart, NaN in between."""
    wider = {}
    for name in ROWS[op.name]:
        x = given.get(name)
        if name in FREE_ROWS and isinstance(x, Tensor) and len(x) > 1 and x[0].numel():
            store = torch.full((len(x), x[0].numel() + APART), torch.nan).to(x.dtype)
            store[:, :-APART] = x.reshape(len(x), -1)
            wider[name] = store[:, :-APART].unflatten(1, x.shape[1:])
    return Change(given | wider, lambda outputs, base: outputs) if wider else None


# Arguments of heads beside each other, [T, heads, D], of which only the last dimension must be contiguous.
HEADS = {"kv_cache": ("k", "v"), "rope": ("q", "k"), "attention": ("q",)}


def heads_apart(op: Op, case: Case, given: Arguments) -> Change | None:
    """Heads further apart, NaN in between."""
    wider = {}
    for name in HEADS[op.name]:
        x = given[name]
        if x.numel() and x.shape[1] > 1:
            store = torch.full((*x.shape[:2], x.shape[2] + APART), torch.nan).to(x.dtype)
            store[..., :-APART] = x
            wider[name] = store[..., :-APART]
    return Change(given | wider, lambda outputs, base: outputs) if wider else None


STRIDED = tuple(name for name, rows in ROWS.items() if rows[0] in FREE_ROWS)

RELATIONS = (
    Relation(name="tokens permuted", ops=(*ROWS, *CACHED), transform=permuted),
    Relation(name="a token alone", ops=tuple(ROWS), transform=alone),
    Relation(name="rows apart", ops=STRIDED, transform=apart),
    Relation(name="heads apart", ops=tuple(HEADS), transform=heads_apart),
    Relation(name="tokens repeated", ops=tuple(ROWS), transform=repeated),
)
