"""Gates of a gated delta net: heads around every register, both dtypes of the parameters, every branch of softplus."""

from __future__ import annotations

from typing import Any

from minimax_m2.harness.bits import Bits, regime_values, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Cost, Op
from minimax_m2.harness.ops.qkvzba_split import VALUE_HEADS
from minimax_m2.harness.ops.rms_norm import own_dtype
from minimax_m2.harness.ops.rope import dtype_of

FACTORS: dict[str, tuple[Field, ...]] = {
    "T": (2, 0, 1, 3, 17, 65),
    "Hv": VALUE_HEADS,
    # heavy and huge reach beyond +-20, where engines leave the logarithm, and exponentials that underflow.
    "regime": ("normal", "heavy", "tiny", "huge", "signed_zero"),
    "dtype": ("bfloat16", "float16", "float32"),
    "A_log": ("float32", "same"),
    "dt_bias": ("same", "float32"),
    "gap": (0, 8),
}

FLA = "SGLang:sgl-kernel/csrc/cpu/mamba/fla.cpp"


def named(fields: dict[str, Field]) -> dict[str, Field]:
    """Parameters of the activations' dtype carry its name."""
    return fields | {name: fields["dtype"] for name in ("A_log", "dt_bias") if fields[name] == "same"}


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    return projections(case, bits, case.number("T"), case.word("regime"))


def projections(case: Case, bits: Bits, T: int, regime: str) -> dict[str, Any]:
    """The gates' inputs for ``T`` tokens."""
    Hv = case.number("Hv")
    # One strength in 16 saturates in heavy. Where all are nearly 1, or nearly a half, their rounding is no noise.
    drawn = {"a": regime, "b": "normal" if regime in ("tiny", "huge") else regime}
    # Fine digits: sums of values of few digits would be exact, and so would their rounding.
    rows = {
        name: regime_values(bits, name, (T, Hv), kind) * (1 + bits.uniform(f"{name}/fine", (T, Hv)) / 64)
        for name, kind in drawn.items()
    }
    placed = {name: strided(x.to(dtype_of(case, "dtype")), case.number("gap")) for name, x in rows.items()}
    # Qwen3.5 starts from decays of 0 to 16.
    parameters = {name: bits.bell(name, (Hv,)).to(dtype_of(case, name)) for name in ("A_log", "dt_bias")}
    return {"A_log": parameters["A_log"], **placed, "dt_bias": parameters["dt_bias"]}


def cost(case: Case) -> Cost:
    gates = case.number("T") * case.number("Hv")
    return Cost(bytes=gates * (3 * dtype_of(case, "dtype").itemsize + 4), flops=5 * gates)


OP = Op(
    name="gdn_gating",
    outputs={"g": "float32", "beta": "dtype"},
    factors=FACTORS,
    settle=named,
    inputs=inputs,
    contract=lambda case: {"exp_b": None, "beta": own_dtype(case)},
    choices={"exp_b": {"dtype": FLA}, "beta": {"dtype": FLA}},
    shapes={"decode": {"T": 16, "Hv": 32}, "prefill": {"T": 256, "Hv": 32}},
    cost=cost,
    budgeted=("a", "b", "A_log"),
)
