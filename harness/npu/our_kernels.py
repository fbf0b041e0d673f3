"""Our NPU kernels as a provider of tensors on this CPU, which ops they are, and their shapes at M2's widths."""

from __future__ import annotations

from dataclasses import replace

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.provider import Provider, from_file
from minimax_m2.harness.providers.ours import function_of, ours

# Shapes as Ascend's engines call an op where it differs: a token at a time is quantised, and to int8.
AS_CALLED: dict[str, dict[str, Field]] = {"swiglu_quant": {"q": "int8", "group": 2048}}


def provider(file: str = "") -> Provider:
    """Our NPU kernels, or somebody's in a file; their launches must be taken over."""
    return from_file(file) if file else replace(ours("npu"), device="cpu")


def built() -> list[str]:
    """Ops that have an NPU kernel."""
    return [name for name in all_ops() if function_of("npu", name) is not None]


def shapes_of(name: str) -> list[Case]:
    """An op's shapes at M2's widths."""
    op = find_op(name)
    return [op.shape(shape).but(**AS_CALLED.get(name, {})) for shape in op.shapes]
