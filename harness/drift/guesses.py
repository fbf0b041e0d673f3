"""What a wrong output would be right for: other arguments than those that the step was called with.

Each guess changes what the step is told (a position, two experts, a bias left out) and is believed where the judge
accepts the outputs as right for the changed call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.drift.calls import Call, described, only_active
from minimax_m2.harness.expectation import Expectation, Outputs, Tensors, expectation
from minimax_m2.harness.judge import malformed
from minimax_m2.harness.op import Pack
from minimax_m2.harness.shrink import CANNOT_BE_BUILT, given
from minimax_m2.reference import contract as reference

MOST_PAIRS = 12
# Formats that a step may round to without saying so.
SITES = ("bfloat16", "float16", "float8_e4m3fn")
Contracted = Mapping[str, Any]
Changed = Iterator[tuple[str, dict[str, Any]]]


def guessed(call: Call, contract: Contracted, right: Expectation, outputs: Outputs) -> str:
    """The first guess under which a call's outputs are right, in words; empty where none is."""
    for told, arguments in _GUESSES.get(call.op.name, _nothing)(call, right, outputs):
        if _fits(replace(call, arguments=call.arguments | arguments), contract, outputs):
            return f"equals the reference {told}"
    for name, site in contract.items():
        if name != "arithmetic" and site in (None, *reference.SITES):
            for other in SITES:
                if other != site and _fits(call, {**contract, name: other}, outputs):
                    return f"is right for a kernel that rounds {name} to {other}"
    return ""


def _fits(guess: Call, contract: Contracted, outputs: Outputs) -> bool:
    """Whether outputs are right for a changed call or contract."""
    small = only_active(guess)
    try:
        right = expectation(given(small.op, small.arguments), described(small), contract)
        return malformed(right, outputs) is None and all(c.passed for c in right.judge(outputs))
    except CANNOT_BE_BUILT:
        return False


def _nothing(call: Call, right: Expectation, outputs: Outputs) -> Changed:
    yield from ()


def _rotary(call: Call, right: Expectation, outputs: Outputs) -> Changed:
    a = call.arguments
    positions, table = a["positions"], a["cos_sin"]
    for step in (1, -1):
        moved = (positions + step).clamp(0, len(table) - 1)
        yield f"with every position {'ahead' if step > 0 else 'behind'} by one", {"positions": moved}
    cos, sin = table.chunk(2, -1)
    yield "rotated the other way", {"cos_sin": torch.cat([cos, -sin], -1)}
    yield "with cosines and sines exchanged", {"cos_sin": torch.cat([sin, cos], -1)}
    yield "not rotated", {"cos_sin": torch.cat([torch.ones_like(cos), torch.zeros_like(sin)], -1)}
    if len(a.get("slots", ())):
        yield "with the last token not stored", {"slots": torch.cat([a["slots"][:-1], a["slots"].new_tensor([-1])])}


def _experts(call: Call, right: Expectation, outputs: Outputs) -> Changed:
    a = call.arguments
    ids: Tensor = a["ids"]
    expected = right.expected["y"] if isinstance(right, Tensors) else None
    if not isinstance(expected, Budgeted):
        return
    stray = (outputs[0].double() - expected.value).abs() > torch.minimum(6 * expected.sigma, expected.bound)
    wrong = stray.any(-1)
    chosen = ids[ids >= 0].long().unique().tolist()
    takes = {e: (ids == e).any(-1) for e in chosen}
    for e in chosen:
        if bool((takes[e] >= wrong).all()):
            yield f"without expert {e}", {"ids": ids.masked_fill(ids == e, -1)}
    # Those that fewest other tokens chose come first: what they compute is wrong for nobody else.
    pairs = [(i, j) for i, j in combinations(chosen, 2) if bool(((takes[i] | takes[j]) >= wrong).all())]
    pairs.sort(key=lambda pair: int((takes[pair[0]] | takes[pair[1]]).sum()))
    for i, j in pairs[:MOST_PAIRS]:
        swapped = torch.where(ids == i, j, torch.where(ids == j, i, ids))
        yield f"after swapping experts {i} and {j}", {"ids": swapped}
    packed: Pack = a["packed"]
    gate, up = packed.arguments["w13"].chunk(2, 1)
    if packed.arguments.get("w13_scale") is None:
        other = packed._replace(arguments=packed.arguments | {"w13": torch.cat([up, gate], 1)})
        yield "with gate and up exchanged", {"packed": other}
    weights: Tensor = a["weights"]
    yield "with every weight 1", {"weights": torch.ones_like(weights)}
    yield "with its weights in the next token's place", {"weights": weights.roll(1, 0)}


def _router(call: Call, right: Expectation, outputs: Outputs) -> Changed:
    a = call.arguments
    if a.get("bias") is not None:
        yield "without its bias", {"bias": None}
        yield "with the bias subtracted", {"bias": -a["bias"]}
    yield "not renormalised", {"renormalize": False}


def _norm(call: Call, right: Expectation, outputs: Outputs) -> Changed:
    a = call.arguments
    for eps in (1e-3, 1e-5, 1e-8):
        yield f"with eps={eps:g}", {"eps": eps}
    yield "with 1 + weight", {"weight": 1 + a["weight"].double()}
    if "residual" in a:
        yield "without the residual", {"residual": torch.zeros_like(a["residual"])}


def _attention(call: Call, right: Expectation, outputs: Outputs) -> Changed:
    a = call.arguments
    dim = a["q"].shape[-1]
    for told, scale in (("unscaled", 1.0), ("scaled twice", a["scale"] ** 2), ("scaled by 1/D", 1 / dim)):
        yield told, {"scale": scale}
    for name in ("k_cache", "v_cache"):
        narrow = a[name].to(torch.float8_e4m3fn).to(a[name].dtype)
        yield f"with {name} in e4m3", {name: narrow}


_GUESSES: dict[str, Callable[[Call, Expectation, Outputs], Changed]] = {
    "rms_norm": _norm,
    "add_rms_norm": _norm,
    "qk_norm_rope": _rotary,
    "qk_norm_rope_cache": _rotary,
    "rope": _rotary,
    "attention": _attention,
    "router": _router,
    "routing": _router,
    "experts": _experts,
}
