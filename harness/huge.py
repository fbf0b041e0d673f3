"""Offsets past 2^31 with a few touched pages: rows laid so far apart that an int32 cannot reach the last.

Nothing but the distance changes, so a kernel must give what it gives on rows that lie together.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import build, call, expected, malformed
from minimax_m2.harness.op import Op, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.returned import outputs_of
from minimax_m2.harness.verdict import describe

# Arguments whose leading index a kernel multiplies by a stride, by op.
SPREAD = {
    "embedding": ("weight",),
    "attention": ("k_cache", "v_cache"),
    "kv_cache": ("k_cache", "v_cache"),
    "qk_norm_rope_cache": ("k_cache", "v_cache"),
    "routing": ("logits",),
    "rms_norm": ("x",),
    "add_rms_norm": ("x", "residual"),
    "linear": ("x",),
    "swiglu": ("gate_up",),
    "experts": ("x",),
}
PAST = 2**31
# Linux' MAP_NORESERVE: addresses without a promise of memory.
NO_RESERVE = 0x4000


def spread(x: Tensor, multiple: int = 1) -> Tensor:
    """The same rows, each where nobody has touched a page, the last more than 2^31 elements behind the first.

    multiple   rows begin at multiples of so many elements, as kernels that copy many at once demand

    On a GPU what lies between is memory that nobody wrote. ValueError for a tensor of fewer than two rows.
    """
    if x.ndim < 2 or x.shape[0] < 2:
        raise ValueError(f"x has shape {list(x.shape)}: two rows at least can lie apart")
    row = 1 + sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    # A page and a vector more than needed, so that no row begins where another kind of error would hide.
    apart = -(-PAST // (x.shape[0] - 1)) + 64
    apart += -apart % multiple
    count = (x.shape[0] - 1) * apart + row
    far = _untouched(count, x).as_strided(x.shape, (apart, *x.stride()[1:]))
    far.copy_(x)
    return far


def spread_experts(packed: Any, count: int) -> Any:
    """Packed experts among ``count``, of which nobody touched the others; what holds no expert stays as it is."""
    experts = max(len(part) for part in packed)

    def among(part: Tensor) -> Tensor:
        if part.numel() == 0 or len(part) != experts:
            return part
        far = _untouched(count * part[0].numel(), part).view(count, *part.shape[1:])
        # Written one by one: not every device can scatter 8-bit floats.
        for place, one in zip(places(experts, count).tolist(), part, strict=True):
            far[place].copy_(one)
        return far

    return type(packed)(*(among(part) for part in packed))


def places(experts: int, count: int) -> Tensor:
    """Where experts lie among ``count``, int64: evenly, from the first to the last."""
    return torch.arange(experts) * (count - 1) // max(1, experts - 1)


def far_experts(case: Case, provider: Provider, variant: str = "") -> str:
    """Call experts so many that each of their weights, as packed, passes 2^31 elements; say what is wrong, if anything.

    The case has several experts of bfloat16, e4m3 or int8, ids that are no words, and no map. They lie among others
    that nobody calls.
    """
    op = find_op("experts")
    arguments = build(op, case, provider)
    packed, ids, experts = arguments["packed"], arguments["ids"], case.number("E")
    count = PAST // min(packed.w13[0].numel(), packed.w2[0].numel()) + 2
    arguments["packed"] = spread_experts(packed, count)
    arguments["ids"] = torch.where(ids < 0, ids, places(experts, count).to(ids)[ids.clamp(min=0).long()])
    return _wrong(op, case, provider, arguments, variant)


def far_case(op: Op, provider: Provider, drawn: Iterable[Case]) -> Case:
    """The first case that a provider takes and whose rows can lie apart."""
    return next(
        case
        for case in drawn
        if provider.refuses(op, case) is None
        for arguments in [build(op, case, provider)]
        if all(len(arguments[name]) > 1 for name in SPREAD[op.name])
    )


def far_call(op: Op, case: Case, provider: Provider, variant: str = "", *, multiple: int = 1) -> str:
    """Call a provider on a case whose rows lie far apart and say what is wrong with its result, if anything.

    multiple   rows begin at multiples of so many elements
    """
    arguments = build(op, case, provider)
    arguments |= {name: spread(arguments[name], multiple) for name in SPREAD[op.name]}
    return _wrong(op, case, provider, arguments, variant)


def _untouched(count: int, like: Tensor) -> Tensor:
    """So many elements on the device of ``like``: addresses alone on a CPU."""
    if like.is_cuda:
        return torch.empty(count, dtype=like.dtype, device=like.device)
    memory = mmap.mmap(-1, count * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return torch.frombuffer(memory, dtype=like.dtype)


def _wrong(op: Op, case: Case, provider: Provider, arguments: dict[str, Any], variant: str) -> str:
    function = provider.function(op.name)
    with provider.enter(variant):
        outputs = outputs_of(op, call(op, function, arguments), arguments)
    right, _ = expected(op, case, provider.contract.get(op.name, {}))
    off = malformed(right, outputs)
    if off is not None:
        return off[1]
    # Written rows come back together: a copy of what lies between would fill all the memory there is.
    host = tuple(o.detach().cpu().clone(memory_format=torch.contiguous_format) for o in outputs)
    return "; ".join(describe(found) for found in right.judge(host) if not found.passed)
