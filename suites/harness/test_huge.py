"""Offsets past 2^31 elements are reached with a few touched pages, and a kernel that wraps them is caught."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.huge import PAST, SPREAD, far_call, far_experts, spread
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.providers.ours import cpu_extension, ours
from minimax_m2.harness.providers.plain import function_of, plain
from minimax_m2.harness.rebuilding import places_of, rebuilt, runs
from minimax_m2.harness.rewriting import Rewrite

pytestmark = pytest.mark.huge

CASES: dict[str, Case] = {
    "embedding": find_op("embedding").case(T=65, V=17, H=64),
    "attention": find_op("attention").case(B=2, S=65, page=16, D=64),
    "kv_cache": find_op("kv_cache").case(T=17),
    "qk_norm_rope_cache": find_op("qk_norm_rope_cache").case(T=17),
    "routing": find_op("routing").case(T=8, E=16, K=4),
    **{name: find_op(name).case(T=5) for name in ("rms_norm", "add_rms_norm", "linear", "swiglu", "experts")},
}


@pytest.mark.parametrize("provider", [plain(), ours()], ids=("plain", "ours"))
@pytest.mark.parametrize("name", SPREAD)
def test_rows_past_two_gigaelements_are_found(name: str, provider: Provider) -> None:
    assert far_call(find_op(name), CASES[name], provider, provider.variants_of(name)[-1]) == ""


@pytest.mark.parametrize("name", SPREAD)
def test_an_offset_that_wraps_is_caught(name: str) -> None:
    op, right = find_op(name), function_of(name)
    assert right is not None
    wrapped = SPREAD[name]

    def wraps(*positional: Any, **keywords: Any) -> Any:
        names = op.positional()
        given = dict(zip(names, positional, strict=False)) | keywords
        near = {n: within_int32(given[n]) for n in wrapped}
        ordered = [near.get(n, v) for n, v in zip(names, positional, strict=False)]
        returned = right(*ordered, **{n: near.get(n, v) for n, v in keywords.items()})
        for n in set(wrapped) & set(op.mutates):
            reached = offsets(given[n]) < PAST
            given[n][reached] = near[n][reached]
        return returned

    packs = {"pack_experts": function_of("pack_experts")}
    told = far_call(op, CASES[name], from_object(SimpleNamespace(**{name: wraps}, **packs), name="wraps"))
    assert told


def offsets(x: Tensor) -> Tensor:
    """Of every row, in elements."""
    return torch.arange(len(x)) * x.stride(0)


def within_int32(x: Tensor) -> Tensor:
    """Rows as a kernel sees them that counts in int32: beyond, it is in memory that nobody wrote."""
    near = x.clone(memory_format=torch.contiguous_format)
    near[offsets(x) >= PAST] = 0
    return near


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float32])
def test_a_spread_tensor_takes_addresses_and_no_memory(dtype: torch.dtype) -> None:
    x = torch.arange(12.0).view(3, 4).to(dtype)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    far = spread(x)
    assert torch.equal(far.clone().float(), x.float())
    assert 2 * far.stride(0) >= PAST
    # Kilobytes; three rows touch three pages, huge ones at most.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15


def test_one_row_cannot_lie_apart() -> None:
    with pytest.raises(ValueError, match="two rows at least"):
        spread(torch.zeros(1, 4))


def experts_case(quant: str) -> Case:
    return find_op("experts").case(T=3, E=3, K=2, H=128, I=64, quant=quant)


@pytest.mark.parametrize("quant", ["none", "weights", "int8"])
def test_packed_experts_past_two_gigaelements_are_found(quant: str) -> None:
    provider = ours()
    told = {name: far_experts(experts_case(quant), provider, name) for name in provider.variants_of("experts")}
    assert set(told.values()) == {""}


FAR_EXPERTS = """
import sys
from minimax_m2.harness.huge import far_experts
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import ours

for quant in sys.argv[2:]:
    case = find_op("experts").case(T=3, E=3, K=2, H=128, I=64, quant=quant)
    print(quant, far_experts(case, ours(), sys.argv[1]) or "found", flush=True)
"""


@pytest.mark.parametrize(
    ("file", "offset", "quants"),
    [("experts_mixture.h", "index * padded * COLUMNS", ("none", "weights")),
     ("experts_int8.cpp", "index * bytes", ("int8",))],
)  # fmt: skip
def test_an_offset_of_a_packed_expert_that_wraps_is_caught(file: str, offset: str, quants: tuple[str, ...]) -> None:
    """Our own kernel whose offset into the weights is an int32: it reads other memory, or none that is there."""
    source = cpu_extension().SOURCE_DIR / file
    line = next(line for line in source.read_text().splitlines() if f".values = first + {offset}" in line)
    number = source.read_text().splitlines().index(line) + 1
    wraps = Rewrite(file, number, "an int32", line, line.replace(offset, f"static_cast<int32_t>({offset})"))
    place = next(place for place in places_of(file) if place.stem == "experts" and runs(place))
    folder = rebuilt(place, wraps)
    assert folder is not None
    for quant in quants:
        done = subprocess.run(
            [sys.executable, "-c", FAR_EXPERTS, place.isa, quant],
            capture_output=True, text=True, env=os.environ | {"MINIMAX_M2_CACHE": str(folder)},
        )  # fmt: skip
        assert done.returncode == -signal.SIGSEGV or "y at [" in done.stdout, done.stdout + done.stderr
