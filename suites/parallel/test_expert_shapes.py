"""Experts at the widths that deployments cut: both ways of handing over routing, both 16-bit dtypes, a given output."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.formats import name_of
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.sampling import sampled

# M2's experts are 1536 wide. A rank of TP8 holds a block of 128 and a half: its scales stand for blocks of 64, which
# the cases have as two of 32. EP4 and TEP4 keep experts whole, a quarter of them on a rank; a map says which.
SHAPES: dict[str, dict[str, Field]] = {
    "TP4": {"I": 384, "block": 128, "map": 0},
    "TP8": {"I": 192, "block": 32, "map": 0},
    "EP4": {"I": 1536, "block": 128, "map": 1},
    "TEP4": {"I": 1536, "block": 128, "map": 1, "load": "holes"},
}
WAYS = {"plain": "int32", "routed": "packed"}


@lru_cache(maxsize=1)
def providers() -> tuple[Provider, ...]:
    return ours(), plain()


def case(shape: str, way: str, dtype: str) -> Case:
    first = sampled(find_op("experts"), 1)[0]
    fields: dict[str, Field] = {
        **first, "T": 5, "E": 8, "active": 4, "K": 2, "H": 64, "load": "even", "regime": "normal", "quant": "weights",
        "weights": "0.02", "gap": 0, "seed": 3, **SHAPES[shape], "ids": WAYS[way], "dtype": dtype, "out": dtype,
    }  # fmt: skip
    return Case(fields)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_experts_of_deployed_widths_keep_their_budget(shape: str, way: str, dtype: str) -> None:
    verdicts = [
        judge(case(shape, way, dtype), provider, variant) for provider in providers() for variant in provider.variants
    ]
    assert [verdict.explain() for verdict in verdicts if not verdict.passed] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_output_that_is_given_is_the_memory_written(dtype: torch.dtype) -> None:
    drawn = case("TP8", "plain", name_of(dtype))
    arguments = find_op("experts").inputs(drawn, Bits(drawn))
    provider = ours()
    pack, run, into = (provider.functions(name) for name in ("pack_experts", "experts", "experts_out"))
    assert pack is not None
    assert run is not None
    assert into is not None
    packed = pack(**arguments.pop("packed").arguments)
    arguments.pop("out_dtype")
    given = [arguments.pop(name) for name in ("x", "weights", "ids")]
    out = torch.full_like(given[0], torch.nan)
    address = out.data_ptr()
    into(given[0], packed, *given[1:], out, **arguments)
    assert out.data_ptr() == address
    assert out.dtype == dtype
    assert torch.equal(out, run(given[0], packed, *given[1:], **arguments))


@pytest.mark.parametrize("option", ["block", "w13_scale"])
def test_a_scale_that_is_none_is_an_error_and_no_default(option: str) -> None:
    drawn = case("TP4", "plain", "bfloat16")
    arguments = find_op("experts").inputs(drawn, Bits(drawn))
    pack = ours().functions("pack_experts")
    assert pack is not None
    given = arguments["packed"].arguments | {"w13_scale": None, option: None}
    with pytest.raises((ValueError, TypeError), match="w13_scale"):
        pack(**given)
