"""Values that move results in a known way: powers of two, rows of NaN, experts and pages that nobody asks for."""

from __future__ import annotations

from collections.abc import Callable
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

CALM = ("normal", "equal", "signed_zero")
"""Regimes in which nothing overflows, nor is subnormal in 16 bits."""


def twice(*names: str) -> Callable[[Arguments], Arguments]:
    """Doubles arguments; an absent one stays absent, one of e4m3 leaves the call as it was."""

    def change(given: Arguments) -> Arguments:
        found = {name: given[name] for name in names if isinstance(given[name], Tensor)}
        if any(not value.numel() or value.itemsize == 1 for value in found.values()):
            return given
        return given | {name: value * 2 for name, value in found.items()}

    return change


def twice_the_weight(name: str, scale: str) -> Callable[[Arguments], Arguments]:
    """Doubles a packed weight, by its scale where it has one."""

    def change(given: Arguments) -> Arguments:
        pack: Pack = given["packed"]
        own = scale if isinstance(pack.arguments.get(scale), Tensor) else name
        return given | {"packed": Pack(pack.function, pack.arguments | {own: pack.arguments[own] * 2})}

    return change


def twice_up(given: Arguments) -> Arguments:
    """Doubles the half that is gated."""
    gate, up = given["gate_up"].chunk(2, -1)
    return given | {"gate_up": torch.cat([gate, up * 2], -1)}


# What an op is linear in, and the outputs that double with it.
LINEAR: dict[str, tuple[Callable[[Arguments], Arguments], tuple[int, ...]]] = {
    "add_rms_norm": (twice("weight"), (0,)),
    "attention": (twice("v_cache"), (0,)),
    "block_dequant": (twice("scale"), (0,)),
    "embedding": (twice("weight"), (0,)),
    "experts": (twice_the_weight("w2", "w2_scale"), (0,)),
    "fp8_linear": (twice_the_weight("weight", "scale"), (0,)),
    "gated_delta_rule": (twice("v", "state"), (0, 1)),
    "gdn_update": (twice("v", "state"), (0, 1)),
    "linear": (twice("weight"), (0,)),
    "lm_head": (twice("weight"), (0,)),
    "rms_norm": (twice("weight"), (0,)),
    "router_gemm": (twice("weight", "bias"), (0,)),
    "swiglu": (twice_up, (0,)),
}
# Where a row of NaN stays what it is: NaN in every output of that row, and nothing else anywhere.
CARRIES_NAN = ("add_rms_norm", "linear", "rms_norm", "router_gemm", "swiglu", "qk_sum_squares")
FIRST = {name: rows[0] for name, rows in ROWS.items()}


def doubled(op: Op, case: Case, given: Arguments) -> Change | None:
    """Twice the value gives twice the result, to the bit, where nothing overflows or is subnormal."""
    change, outputs_that_double = LINEAR[op.name]
    twofold = change(given) if case.get("regime", "normal") in CALM else given
    if twofold is given:
        return None

    def undo(outputs: Outputs, base: Outputs) -> Outputs:
        doubles = enumerate(zip(outputs, base, strict=True))
        return tuple(halved(o, old) if i in outputs_that_double else o for i, (o, old) in doubles)

    return Change(twofold, undo)


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


def spoilt_by(number: float) -> Callable[[Op, Case, Arguments], Change | None]:
    """One row is no number, or infinite."""

    def change(op: Op, case: Case, given: Arguments) -> Change | None:
        x = given[FIRST[op.name]]
        if not len(x) or not x.shape[-1]:
            return None
        row = a_row(op, case, given)
        mask = (torch.arange(len(x)) == row).view(-1, *[1] * (x.ndim - 1))

        def undo(outputs: Outputs, base: Outputs) -> Outputs:
            pairs = zip(outputs, base, strict=True)
            return tuple(torch.where(mask.view(-1, *[1] * (o.ndim - 1)), b, o) for o, b in pairs)

        spoiled = x.clone() if x.is_contiguous() else x.as_strided(x.shape, x.stride()).clone()
        return Change(given | {FIRST[op.name]: spoiled.masked_fill(mask, number)}, undo)

    return change


def stays(op: Op, case: Case, outputs: Outputs) -> str:
    """What is no finite number comes out again as none: it never becomes plausible."""
    row = a_row(op, case, op.inputs(case, Bits(case)))
    for name, output in zip(op.outputs, outputs, strict=True):
        if output.is_floating_point() and len(output) and output.shape[-1] and bool(output[row].isfinite().all()):
            return f"{name} of row {row} is finite, though its input is not"
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
            # Of int8 weights the scales are NaN.
            spoilt = torch.nan if value.is_floating_point() else torch.iinfo(value.dtype).max
            idle = torch.full((2, *value.shape[1:]), spoilt, dtype=torch.float32).to(value.dtype)
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
    Relation(name="a row of NaN", ops=CARRIES_NAN, transform=spoilt_by(torch.nan), demands=stays),
    Relation(name="a row of infinities", ops=CARRIES_NAN, transform=spoilt_by(torch.inf), demands=stays),
    Relation(name="idle experts", ops=("experts",), transform=idle_experts),
    Relation(name="idle pages", ops=("attention",), transform=idle_pages, exactness=Exactness.BITS),
)
