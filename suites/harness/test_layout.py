"""Outputs that lie on inputs, on each other or out of order have a verdict of their own, wherever a provider runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.judge import judge
from minimax_m2.harness.layout import Misplaced, demand_layout, overlap, shared
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.verdict import Outcome
from minimax_m2.harness.worker import isolated

# One row, so that a slice of qkv is contiguous; float32, so that v is qkv's slice to the bit.
QKV = find_op("qk_norm_rope").case(T=1, dtype="float32", gap=0)
SWIGLU = find_op("swiglu").case(T=5, I=64, dtype="bfloat16")


def right(name: str) -> Callable[..., Any]:
    function = plain().functions(name)
    assert function is not None
    return function


def slice_of_the_input(qkv: Tensor, *rest: Any, **sizes: Any) -> Any:
    q, k, v = right("qk_norm_rope")(qkv, *rest, **sizes)
    return q, k, qkv[:, -v.numel() :].view(v.shape)


def one_buffer(*given: Any, **sizes: Any) -> Any:
    q, k, v = right("qk_norm_rope")(*given, **sizes)
    heads = torch.cat([q, k, v], 1)
    return heads[:, : q.shape[1]], heads[:, q.shape[1] : -v.shape[1]], heads[:, -v.shape[1] :]


def heads_first(*given: Any, **sizes: Any) -> Any:
    q, k, v = right("qk_norm_rope")(*given, **sizes)
    return q, k.transpose(0, 1).contiguous().transpose(0, 1), v


def columns_first(gate_up: Tensor) -> Tensor:
    return right("swiglu")(gate_up).mT.contiguous().mT


@pytest.mark.parametrize(
    "name, function, fields, outcome, evidence",
    [
        ("qk_norm_rope", slice_of_the_input, {}, Outcome.ALIASED, "v lies on an input"),
        # Rows of one buffer share nothing, but are not contiguous from the second row on.
        ("qk_norm_rope", one_buffer, {}, Outcome.PASS, ""),
        ("qk_norm_rope", one_buffer, {"T": 2}, Outcome.WRONG_LAYOUT, "expected contiguous"),
        ("qk_norm_rope", heads_first, {"T": 2, "Hk": 2}, Outcome.WRONG_LAYOUT, "k has strides"),
        ("swiglu", columns_first, {}, Outcome.WRONG_LAYOUT, "expected a contiguous last dimension"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_misplaced_output_is_told(
    name: str, function: Callable[..., Any], fields: dict[str, int], outcome: Outcome, evidence: str
) -> None:
    case = (QKV if name == "qk_norm_rope" else SWIGLU).but(**fields)
    verdict = judge(case, from_object(SimpleNamespace(**{name: function}), name="tried"))
    assert verdict.outcome is outcome, verdict.explain()
    assert evidence in " ".join(verdict.evidence)


def test_a_provider_in_its_own_process_hides_no_view(tmp_path: Path) -> None:
    file = tmp_path / "lazy.py"
    file.write_text("def swiglu(gate_up):\n    return gate_up[:, : gate_up.shape[1] // 2]\n")
    verdict = judge(SWIGLU, isolated(str(file), name="lazy"))
    assert (verdict.outcome, verdict.evidence) == (
        Outcome.ALIASED,
        ("swiglu: y lies on an input: writing to one changes the other",),
    )


def one_result(gate_up: Tensor) -> Tensor:
    y = right("swiglu")(gate_up)
    return KEPT.setdefault(tuple(y.shape), y).copy_(y)


KEPT: dict[tuple[int, ...], Tensor] = {}


def test_a_second_call_may_not_write_over_the_first_ones_result() -> None:
    def into(gate_up: Tensor, out: Tensor) -> None:
        out.copy_(right("swiglu")(gate_up))

    tried = SimpleNamespace(swiglu=one_result, swiglu_out=into)
    verdict = judge(SWIGLU, from_object(tried, name="tried"))
    assert (verdict.outcome, verdict.evidence) == (Outcome.ALIASED, (f"swiglu: {OVERWRITTEN}",))
    assert judge(SWIGLU, from_object(SimpleNamespace(swiglu=right("swiglu"), swiglu_out=into), name="tried")).passed


OVERWRITTEN = "a second call writes over the first one's result; only swiglu_out writes where it is told"


def test_a_provider_in_its_own_process_overwrites_no_result(tmp_path: Path) -> None:
    file = tmp_path / "static.py"
    file.write_text(
        "import torch\nbuffer = torch.empty(5, 64, dtype=torch.bfloat16)\n"
        "def swiglu(gate_up):\n    gate, up = gate_up.float().chunk(2, -1)\n"
        "    return buffer.copy_(torch.nn.functional.silu(gate) * up)\n"
    )
    verdict = judge(SWIGLU, isolated(str(file), name="static"))
    assert (verdict.outcome, verdict.evidence) == (Outcome.ALIASED, (f"swiglu: {OVERWRITTEN}",))


BUFFER = torch.zeros(4, 8)


@pytest.mark.parametrize(
    "outputs, inputs, said",
    [
        ([("y", BUFFER[:, :4]), ("z", BUFFER[:, 4:])], [], None),
        ([("y", BUFFER[:, :5]), ("z", BUFFER[:, 4:])], [], "z lies on y"),
        ([("y", BUFFER[:, :4])], [BUFFER[:, 4:]], None),
        ([("y", BUFFER[1:2])], [BUFFER], "y lies on an input"),
        ([("y", BUFFER[:1].expand(3, 8))], [], "several of its elements lie in one place"),
        ([("y", BUFFER.as_strided((4, 8), (7, 1)))], [], "several of its elements lie in one place"),
        ([("y", BUFFER[:0])], [BUFFER], None),
        ([("y", BUFFER)], [BUFFER[3:]], "y lies on an input"),
        ([("y", BUFFER.view(-1)[:5])], [BUFFER.view(-1)[4:8]], "y lies on an input"),
        ([("y", BUFFER.view(-1)[4:8])], [BUFFER.view(-1)[:5]], "y lies on an input"),
        ([("y", BUFFER.view(-1)[3:4])], [BUFFER.view(-1)[3:4]], "y lies on an input"),
        # The last byte of a number.
        ([("y", BUFFER.view(-1)[1:2])], [BUFFER.view(-1).view(torch.uint8)[7:8]], "y lies on an input"),
        # One row may have any stride, and nothing lies nowhere.
        ([("y", BUFFER.as_strided((1, 8), (0, 1)))], [], None),
        ([("y", torch.zeros(1, 0).expand(3, 0))], [], None),
    ],
)
def test_bytes_in_common_are_found(outputs: list[tuple[str, Tensor]], inputs: list[Tensor], said: str | None) -> None:
    found = shared(outputs, inputs)
    assert found is None if said is None else said in str(found)


def test_equal_addresses_of_two_devices_are_two_places() -> None:
    y = torch.zeros(4)
    there = SimpleNamespace(
        device=torch.device("cuda"), numel=y.numel, data_ptr=y.data_ptr, shape=y.shape, stride=y.stride,
        element_size=y.element_size,
    )  # fmt: skip
    assert overlap(y, y)
    assert not overlap(y, there)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "returned, said",
    [
        (torch.zeros(4, 8), ""),
        (BUFFER.as_strided((4, 1), (8, 8)), ""),
        (BUFFER.as_strided((2, 2, 1), (16, 8, 8)), ""),
        (BUFFER.as_strided((0, 4), (8, 2)), ""),
        (BUFFER.as_strided((4, 2), (8, 2)), "y has strides [8, 2], expected a contiguous last dimension"),
        # What is returned beside the outputs is told by its count, not here.
        ((torch.zeros(4, 8), torch.zeros(4, 8)), ""),
    ],
)
def test_only_a_last_dimension_of_several_has_to_be_contiguous(returned: Any, said: str) -> None:
    with pytest.raises(Misplaced) if said else nullcontext() as raised:
        demand_layout(find_op("swiglu"), returned, [])
    if raised is not None:
        assert (raised.value.outcome, str(raised.value)) == (Outcome.WRONG_LAYOUT, said)
