"""Decoder layers on our CPU kernels are one graph to torch.compile, with the bits of eager execution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch.fx import GraphModule

from minimax_m2.harness.language import provider_table
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.random_weights import random_weights
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.exchange import Exchange
from minimax_m2.reference.layer import DecoderLayer, Pass
from minimax_m2.reference.paging import Batch, PagedCache
from minimax_m2.reference.rope import cos_sin_table
from minimax_m2.reference.table import OpTable
from minimax_m2.reference.weights import BLOCK, BlockQuantized

CONFIG = MiniMaxM2Config(
    vocab_size=8,
    hidden_size=40,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    rotary_dim=6,
    num_local_experts=7,
    num_experts_per_tok=3,
)
WEIGHTS = random_weights(CONFIG, seed=3, dtype=torch.bfloat16)
ALONE = Exchange.alone(CONFIG)
COS_SIN = cos_sin_table(num_positions=300, rotary_dim=CONFIG.rotary_dim, theta=CONFIG.rope_theta).to(torch.float32)
QUANTISED = ("qkv_proj", "o_proj", "w13", "w2")
BATCHES = ({0: 5, 1: 3}, {0: 1, 1: 1})  # new tokens of each sequence: a prefill, then a decode
LENGTHS = (5, 6, 7, 300)

Run = Callable[[Tensor, Batch, list[Tensor], list[Tensor]], list[Tensor]]


def e4m3(weight: Any) -> BlockQuantized:
    """Codes of a weight below 7, with the scale of every block 1/64."""
    *outer, rows, columns = weight.shape
    scale = torch.full((*outer, -(-rows // BLOCK), -(-columns // BLOCK)), 1 / 64)
    return BlockQuantized(weight=(weight.float() * 64).to(torch.float8_e4m3fn), scale=scale)


def run_of(ops: OpTable, *, quantised: bool = False) -> Run:
    """Two layers, the first without a residual stream before it, as a function of tensors."""
    layers = []
    for index, weights in enumerate(WEIGHTS.layers):
        held: dict[str, Any] = {name: e4m3(getattr(weights, name)) for name in QUANTISED} if quantised else {}
        layers.append(DecoderLayer.pack(dataclasses.replace(weights, **held), index=index, ops=ops))

    def run(hidden: Tensor, batch: Batch, k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        shared = Pass(config=CONFIG, batch=batch, cos_sin=COS_SIN, exchange=ALONE)
        residual, found = None, []
        for layer in layers:
            hidden, residual, entry = layer(hidden, residual, k[layer.index], v[layer.index], shared)
            found += [hidden, residual, entry]
        return found

    return run


def bits_after(run: Run) -> list[Tensor]:
    """The bits of what ``run`` returns for each batch, and of the caches, whose unwritten slots are NaN."""
    cache = PagedCache.empty(CONFIG, num_pages=4, page_size=4, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(5)
    found: list[Tensor] = []
    for counts in BATCHES:
        hidden = torch.randn(sum(counts.values()), CONFIG.hidden_size, generator=generator).to(torch.bfloat16)
        found += run(hidden, cache.append(counts), cache.k, cache.v)
    return [tensor.view(torch.int16) for tensor in (*found, *cache.k, *cache.v)]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Each test traces anew: graphs of one code object count against a limit that all tests share."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("quantised", [False, True], ids=["bfloat16", "e4m3"])
def test_compiled_layers_give_the_bits_of_eager_ones(quantised: bool, dynamic: bool) -> None:
    run = run_of(provider_table(ours()), quantised=quantised)
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for actual, expected in zip(bits_after(compiled), bits_after(run), strict=True):
        assert torch.equal(actual, expected)


def test_an_op_that_reads_numbers_on_the_host_is_no_graph() -> None:
    table = provider_table(ours())

    def router(x: Tensor, weight: Tensor, bias: Tensor | None, *, top_k: int) -> tuple[Tensor, Tensor]:
        weights, ids = table.router(x, weight, bias, top_k=top_k)
        return (weights if weights.sum() > 0 else weights + 1), ids

    run = run_of(dataclasses.replace(table, router=router))
    with pytest.raises(Unsupported):
        bits_after(torch.compile(run, fullgraph=True, backend="aot_eager"))


def graphs_over_lengths(run: Run) -> int:
    """How many graphs torch.compile makes of ``run`` for prefills of ``LENGTHS``, one after the other."""
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=backend)
    for length in LENGTHS:
        # Pages of one slot: no size but the length's own equals a number of the model, which compiles would share.
        cache = PagedCache.empty(CONFIG, num_pages=length, page_size=1, dtype=torch.bfloat16)
        hidden = torch.ones(length, CONFIG.hidden_size, dtype=torch.bfloat16)
        compiled(hidden, cache.append({0: length}), cache.k, cache.v)
    return len(graphs)


@pytest.mark.parametrize("quantised", [False, True], ids=["bfloat16", "e4m3"])
def test_one_graph_serves_every_length(quantised: bool) -> None:
    assert graphs_over_lengths(run_of(provider_table(ours()), quantised=quantised)) == 1


def test_an_op_that_asks_which_length_it_got_is_compiled_per_length() -> None:
    table = provider_table(ours())

    def attention(*tensors: Tensor, max_seq_len: int, **keywords: Any) -> Tensor:
        return table.attention(*tensors, max_seq_len=LENGTHS[LENGTHS.index(max_seq_len)], **keywords)

    assert graphs_over_lengths(run_of(dataclasses.replace(table, attention=attention))) == len(LENGTHS)
