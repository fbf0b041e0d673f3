"""Values that move results in a known way: powers of two, rows of NaN, experts and pages that nobody asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.op import Op, Pack
from minimax_m2.harness.relation import Arguments, Change, Exactness, Relation
from minimax_m2.harness.relations.labels import same
from minimax_m2.harness.relations.rows import ROWS

# The argument that an op is linear in, and the outputs that double with it.
LINEAR: dict[str, tuple[str, tuple[int, ...]]] = {
    "add_rms_norm": ("weight", (0,)),
    "attention": ("v_cache", (0,)),
    "embedding": ("weight", (0,)),
    "linear": ("weight", (0,)),
    "lm_head": ("weight", (0,)),
    "rms_norm": ("weight", (0,)),
}
# Where a row of NaN stays what it is: NaN in every output of that row, and nothing else anywhere.
CARRIES_NAN = ("add_rms_norm", "linear", "rms_norm", "router_gemm", "swiglu", "qk_sum_squares")
FIRST = {name: rows[0] for name, rows in ROWS.items()}


def doubled(op: Op, case: Case, given: Arguments) -> Change | None:
    """Twice the value gives twice the result, to the bit, where nothing overflows or is subnormal."""
    name, outputs_that_double = LINEAR[op.name]
    value = given[name]
    calm = case["dtype"] != "float16" or case.get("regime", "normal") in ("normal", "equal", "signed_zero")
    if not calm or not value.numel() or value.itemsize == 1:
        return None

    def undo(outputs: Outputs, base: Outputs) -> Outputs:
        doubles = enumerate(zip(outputs, base, strict=True))
        return tuple(halved(o, old) if i in outputs_that_double else o for i, (o, old) in doubles)

    return Change(given | {name: value * 2}, undo)


def halved(output: Tensor, base: Tensor) -> Tensor:
    """Half of a doubled output; where that is subnormal, and rounds otherwise, what was there before."""
    if not output.is_floating_point() or output.shape != base.shape:
        return output / 2
    subnormal = base.abs() < 2 * torch.finfo(base.dtype).smallest_normal
    return torch.where(subnormal, base, output / 2)


def a_row(op: Op, case: Case, given: Arguments) -> int:
    """The row that is spoilt."""
    count = len(given[FIRST[op.name]])
    return int(Bits(case).integers("relation", (1,), 0, count - 1)) if count else 0


def spoilt(op: Op, case: Case, given: Arguments) -> Change | None:
    """One row is NaN."""
    x = given[FIRST[op.name]]
    if not len(x) or not x.shape[-1]:
        return None
    row = a_row(op, case, given)
    mask = (torch.arange(len(x)) == row).view(-1, *[1] * (x.ndim - 1))

    def undo(outputs: Outputs, base: Outputs) -> Outputs:
        return tuple(torch.where(mask.view(-1, *[1] * (o.ndim - 1)), b, o) for o, b in zip(outputs, base, strict=True))

    spoiled = x.clone() if x.is_contiguous() else x.as_strided(x.shape, x.stride()).clone()
    return Change(given | {FIRST[op.name]: spoiled.masked_fill(mask, torch.nan)}, undo)


def nan_stays(op: Op, case: Case, outputs: Outputs) -> str:
    """A NaN that goes in comes out again: it never becomes a plausible number."""
    row = a_row(op, case, op.inputs(case, Bits(case)))
    for name, output in zip(op.outputs, outputs, strict=True):
        if output.is_floating_point() and len(output) and output.shape[-1] and not bool(output[row].isnan().any()):
            return f"{name} of row {row} is a number, though its input is NaN"
    return ""


def idle_experts(op: Op, case: Case, given: Arguments) -> Change | None:
    """More experts behind the last, of NaN, that no token chooses."""
    packed: Pack = given["packed"]
    if given["expert_map"] is not None:
        return None
    longer: dict[str, Any] = {}
    for name in ("w13", "w2", "w13_scale", "w2_scale"):
        value = packed.arguments.get(name)
        if isinstance(value, Tensor):
            idle = torch.full((2, *value.shape[1:]), torch.nan, dtype=torch.float32).to(value.dtype)
            longer[name] = torch.cat([value, idle])
    return Change(given | {"packed": Pack(packed.function, packed.arguments | longer)}, same)


def idle_pages(op: Op, case: Case, given: Arguments) -> Change:
    """More pages of NaN behind the last, that no sequence owns."""
    longer = {}
    for name in ("k_cache", "v_cache"):
        cache = given[name]
        idle = torch.full((3, *cache.shape[1:]), torch.nan, dtype=torch.float32).to(cache.dtype)
        longer[name] = torch.cat([cache, idle])
    return Change(given | longer, same)


RELATIONS = (
    Relation(name="doubled", ops=tuple(LINEAR), transform=doubled),
    Relation(name="a row of NaN", ops=CARRIES_NAN, transform=spoilt, demands=nan_stays),
    Relation(name="idle experts", ops=("experts",), transform=idle_experts),
    Relation(name="idle pages", ops=("attention",), transform=idle_pages, exactness=Exactness.BITS),
)
