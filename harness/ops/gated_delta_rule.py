"""The gated delta rule: decode and prefill in one batch, states in any slot, heads of every width and grouping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

# Registers the rule of the recurrence.
import minimax_m2.harness.budget_delta_rule  # noqa: F401
from minimax_m2.harness.bits import Bits, regime_values, strided
from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.expectation import Tensors
from minimax_m2.harness.op import Cost, Op
from minimax_m2.harness.ops.qkvzba_split import VALUE_HEADS, divided
from minimax_m2.harness.ops.rms_norm import own_dtype
from minimax_m2.harness.ops.rope import dtype_of
from minimax_m2.reference.contract import Contract
from minimax_m2.reference.gated_delta_rule import recurrences

FACTORS: dict[str, tuple[Field, ...]] = {
    "B": (1, 0, 2, 3, 5),
    # The first sequence is that long, others up to it: around chunks of 4 and of 64 tokens.
    "S": (1, 2, 3, 4, 5, 9, 63, 64, 65, 130),
    "queries": ("decode", "prefill", "mixed"),  # one token each, whole prompts, both and a sequence without tokens
    "Hv": VALUE_HEADS,
    "Hk": (16, 1, 2, 11, 31, 33),  # the largest divisor of Hv up to this
    "Dk": (128, 64, 16, 20),
    "Dv": (128, 64, 16, 24, 33, 7),  # some are no multiple of a vector
    "regime": ("normal", "heavy", "tiny", "equal", "signed_zero", "zero_rows"),
    "dtype": ("bfloat16", "float16", "float32"),
    "beta": ("same", "float32"),
    "decay": ("normal", "none", "fast"),
    "index": ("all", "some", "none"),  # some: every other sequence is padding, and names no slot
    "ids": ("int32", "int64"),
    "l2norm": (1, 0),
    "pad": (0, 3),  # rows outside query_start, behind and one in front
    "gap": (0, 8),
}

FLA = "SGLang:sgl-kernel/csrc/cpu/mamba/fla.cpp"
TRITON = "SGLang:python/sglang/srt/layers/attention/fla/fused_sigmoid_gating_recurrent.py"
# Elements of all states, and these times tokens of the longest sequence: what a case may cost the reference.
LARGEST_STATES, LARGEST_WORK = 2**19, 2**23
# Elements of the states that are judged at once where a call is timed: what a budget keeps of each is 0.2 GB.
PIECE = 2**21
# Arguments with a row for each token.
BY_TOKEN = ("q", "k", "v", "g", "beta", "a", "b")


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    """Many heads have short keys, large states short sequences; where keys keep their length, it is near 1."""
    states = int(fields["Hv"]) * int(fields["Dv"]) * max(1, int(fields["B"]))
    width = int(fields["Dk"]) if states * int(fields["Dk"]) <= LARGEST_STATES else 16
    longest = max(1, LARGEST_WORK // (states * width))
    beta = fields["dtype"] if fields["beta"] == "same" else fields["beta"]
    shorter = {"Dk": width, "S": min(int(fields["S"]), longest), "beta": beta}
    return divided(fields) | shorter | ({} if fields["l2norm"] else {"regime": "normal"})


def lengths(case: Case, bits: Bits) -> list[int]:
    """Tokens of each sequence."""
    B, S, queries = case.number("B"), case.number("S"), case.word("queries")
    prompts = [S, *bits.integers("lengths", (max(0, B - 1),), 1, S).tolist()][:B]
    if queries == "mixed":
        return [(n, 1, 0)[b % 3] for b, n in enumerate(prompts)]
    return [1] * B if queries == "decode" else prompts


def tokens(case: Case, bits: Bits) -> int:
    """Rows of the batch, padding included."""
    return sum(lengths(case, bits)) + case.number("pad")


def rows(case: Case, bits: Bits, name: str, heads: int, width: int) -> Tensor:
    """``[T, heads, width]`` with more digits than a 16-bit format keeps, tokens ``gap`` elements apart."""
    T, regime = tokens(case, bits), case.word("regime")
    kind = "normal" if regime == "zero_rows" or name == "v" else regime
    x = regime_values(bits, name, (T, heads * width), kind) * (1 + bits.uniform(f"{name}/fine", (T, 1)) / 64)
    if regime == "zero_rows" and name != "v":
        x = x * (torch.arange(T)[:, None] % 3 != 0)
    if not case.number("l2norm") and name != "v":
        x = x * (0.75 * width**-0.5)
    return strided(x.to(dtype_of(case, "dtype")), case.number("gap")).unflatten(-1, (heads, width))


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    heads, gates = recurrent(case, bits), (tokens(case, bits), case.number("Hv"))
    fastest = {"normal": 2.0, "none": 0.0, "fast": 120.0}[case.word("decay")]
    return {
        **{name: heads.pop(name) for name in ("q", "k", "v")},
        "g": strided((-fastest * bits.uniform("g", gates)).to(torch.float32), case.number("gap")),
        "beta": strided(bits.uniform("beta", gates).to(dtype_of(case, "beta")), case.number("gap")),
        **heads,
    }


def recurrent(case: Case, bits: Bits) -> dict[str, Any]:
    """All inputs but the gates."""
    B, Hk, Hv, Dk, Dv = (case.number(name) for name in ("B", "Hk", "Hv", "Dk", "Dv"))
    counts, first, slots = lengths(case, bits), case.number("pad") // 3, 2 * B + 1
    index = bits.shuffled("slots", slots)[:B]
    padded = 2 if case.word("index") == "some" else 1
    if case.word("index") != "all":
        index = index.masked_fill(torch.arange(B) % padded == padded - 1, -1)
    # Slots that nobody names hold numbers too: they stay as they are, to the bit.
    state = bits.bell("state", (slots, Hv, Dk, Dv)) * (1 + bits.uniform("state/fine", (slots, Hv, Dk, Dv)) / 64)
    ids = dtype_of(case, "ids")
    return {
        "q": rows(case, bits, "q", Hk, Dk),
        "k": rows(case, bits, "k", Hk, Dk),
        "v": rows(case, bits, "v", Hv, Dv),
        "state": state.to(torch.float32),
        "state_index": index.to(ids),
        "query_start": torch.tensor([first, *(first + sum(counts[: b + 1]) for b in range(B))], dtype=ids),
        "scale": Dk**-0.5,
        "l2norm": bool(case.number("l2norm")),
    }


def expect(
    op: Op, case: Case, arguments: dict[str, Any], contract: Contract, dtypes: dict[str, torch.dtype]
) -> Tensors:
    o, final = recurrences(**arguments, contract=contract)
    state, index = arguments["state"], arguments["state_index"]
    kept = index >= 0
    slots = index[kept].long()

    def in_slots(t: Tensor, others: Tensor | None = None) -> Tensor:
        into = t.new_zeros(state.shape) if others is None else others.clone()
        return into.index_copy_(0, slots, t[kept].to(into.dtype))

    if not isinstance(final, Budgeted):
        return Tensors(op, {"o": o, "state": in_slots(final, state)}, dtypes)
    # Moved part by part and not joined with the other slots: states are by far the largest that is judged here.
    written = replace(final.moved(in_slots), value=in_slots(final.value, state))
    return Tensors(op, {"o": o, "state": written}, dtypes)


def pieces(
    arguments: dict[str, Any], outputs: tuple[Tensor, ...]
) -> Iterator[tuple[dict[str, Any], tuple[Tensor, ...]]]:
    """Some sequences at a time with their tokens and states; at last the tokens and the slots that are nobody's."""
    o, after = outputs
    state, index, starts = (arguments[name] for name in ("state", "state_index", "query_start"))
    at_once = max(1, PIECE // state[0].numel())
    named = torch.zeros(len(state), dtype=torch.bool).index_fill_(0, index[index >= 0].long(), True)

    def piece(
        tokens: Tensor, slots: Tensor, sequences: Tensor, bounds: Tensor
    ) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        own = {name: arguments[name][tokens] for name in BY_TOKEN if name in arguments}
        rest = {"state": state[slots], "state_index": sequences, "query_start": bounds - bounds[0]}
        return arguments | own | rest, (o[tokens], after[slots])

    for first in range(0, len(index), at_once):
        chosen, bounds = index[first : first + at_once], starts[first : first + at_once + 1]
        kept = chosen >= 0
        place = torch.where(kept, kept.cumsum(0) - 1, -1).to(index.dtype)
        yield piece(torch.arange(int(bounds[0]), int(bounds[-1])), chosen[kept].long(), place, bounds)
    outside = torch.cat([torch.arange(int(starts[0])), torch.arange(int(starts[-1]), len(arguments["v"]))])
    yield piece(outside, (~named).nonzero()[:, 0], index[:0], starts[:1])


def cost(case: Case) -> Cost:
    return recurrence_cost(case, gate_bytes=4 + dtype_of(case, "beta").itemsize)


def recurrence_cost(case: Case, gate_bytes: int) -> Cost:
    """What states, heads and ``gate_bytes`` a token and value head cost."""
    B, Hk, Hv, Dk, Dv = (case.number(name) for name in ("B", "Hk", "Hv", "Dk", "Dv"))
    T = sum(lengths(case, Bits(case)))
    token = (2 * Hk * Dk + 2 * Hv * Dv) * dtype_of(case, "dtype").itemsize + Hv * gate_bytes
    return Cost(bytes=2 * B * Hv * Dk * Dv * 4 + T * token, flops=7 * T * Hv * Dk * Dv)


OP = Op(
    name="gated_delta_rule",
    outputs={"o": "dtype", "state": "float32"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=lambda case: {"l2norm_eps": 1e-6, "eps_place": None, "out": own_dtype(case)},
    choices={"l2norm_eps": {1e-5: FLA}, "eps_place": {"root": TRITON}},
    shapes={"decode": {"B": 1, "S": 1}, "prefill": {"B": 1, "S": 64, "queries": "prefill", "Hv": 8, "Hk": 4}},
    cost=cost,
    budgeted=("q", "k", "v", "g"),
    mutates=("state",),
    expect=expect,
    pieces=pieces,
    narrow_from={"B": 2},
)
