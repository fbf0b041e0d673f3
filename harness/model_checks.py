"""What an exhibit that is a whole model, a loader or a sharding is held against: the reference, to the last bit.

An exhibit differs from the reference in one line and computes in float64 as it does, so nothing but equality is right.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minimax_m2.harness.random_weights import random_weights
from minimax_m2.reference.communicator import Communicator, Threads
from minimax_m2.reference.config import MiniMaxM2Config, QuantizationConfig
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_weights import shard
from minimax_m2.reference.weights import BLOCK, Checkpoint, ModelWeights, expected_shapes

Build = Callable[..., MiniMaxM2]
Load = Callable[[Path], ModelWeights]
Cut = Callable[[ModelWeights, MiniMaxM2Config, Layout], ModelWeights]

# Heads rotate in part, groups of three query heads share a key, and no width is a multiple of another by accident.
SMALL = MiniMaxM2Config(
    vocab_size=31,
    hidden_size=40,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    rotary_dim=6,
    num_local_experts=5,
    num_experts_per_tok=2,
)
# Beyond 256 positions bfloat16 no longer tells neighbours apart.
LONG = 300

# Eleven layers: layer 1 and layer 10 have names that begin alike. 160 rows leave a partial block of 128.
STORED = dataclasses.replace(
    SMALL, hidden_size=160, num_hidden_layers=11, quantization_config=QuantizationConfig(), num_local_experts=2
)

# Two key/value heads: a rank each, more ranks than groups divide into, and replicas on two or three ranks.
LAYOUTS = [Layout(tp=tp, rank=rank) for tp in (2, 3, 4, 5) for rank in range(tp)] + [
    Layout(tp=2, ep=2, rank=rank) for rank in range(2)
]


def model_failures(build: Build) -> Iterator[tuple[str, str]]:
    """Yield ``(check, evidence)`` of every check that a model fails.

    logits       of one long sequence
    chunks       two sequences of different lengths, prefilled in pieces and decoded side by side
    capture      the stream at every layer's entry
    collectives  as many on each of two ranks without tokens as with them
    """
    for check, run in (("logits", _logits), ("chunks", _chunks), ("capture", _capture), ("collectives", _collectives)):
        try:
            same = all(torch.equal(a, b) for a, b in zip(run(build), _expected(run), strict=True))
        except Exception as error:
            yield check, f"raised {type(error).__name__}: {error}"
        else:
            if not same:
                yield check, "differs from the reference"


def loader_failures(load: Load) -> Iterator[tuple[str, str]]:
    """Yield ``(check, evidence)`` of every check that a loader fails.

    weights                   all tensors of a checkpoint with FP8 projections, dequantised to float64
    refuses a missing tensor  a checkpoint that lacks one is an error, never a default
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = _stored()
        _write(folder, stored)
        try:
            read, expected = _tensors(load(folder)), _tensors(Checkpoint(folder).load(torch.float64))
            wrong = [i for i, (a, b) in enumerate(zip(read, expected, strict=True)) if not torch.equal(a, b)]
        except Exception as error:
            yield "weights", f"raised {type(error).__name__}: {error}"
        else:
            if wrong:
                yield "weights", f"{len(wrong)} of {len(expected)} tensors differ from the checkpoint's"
        lacking = {key: value for key, value in stored.items() if not key.endswith("layers.1.self_attn.q_norm.weight")}
        _write(folder, lacking)
        try:
            load(folder)
        except ValueError:
            return
        yield "refuses a missing tensor", "a checkpoint without a norm's weight was loaded"


def sharding_failures(cut: Cut) -> Iterator[tuple[str, str]]:
    """Yield ``(check, evidence)`` of the check that a sharding fails.

    shares  every tensor of every rank, split evenly, with zero heads, with replicated keys, and by experts
    """
    for layout in LAYOUTS:
        try:
            found = _tensors(cut(_weights(), SMALL, layout))
            expected = _tensors(shard(_weights(), SMALL, layout))
        except Exception as error:
            yield "shares", f"{layout} raised {type(error).__name__}: {error}"
            return
        wrong = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not torch.equal(a, b)]
        if wrong:
            yield "shares", f"{len(wrong)} of {len(expected)} tensors of {layout} differ from the reference's"
            return


FAILURES: dict[str, Callable[[Any], Iterator[tuple[str, str]]]] = {
    "model": model_failures,
    "loader": loader_failures,
    "sharding": sharding_failures,
}
"""What holds each whole against the reference."""


@lru_cache(maxsize=1)
def _weights() -> ModelWeights:
    return random_weights(SMALL, seed=9)


@lru_cache(maxsize=8)
def _expected(run: Callable[[Build], list[Tensor]]) -> list[Tensor]:
    return run(MiniMaxM2)


def _logits(build: Build) -> list[Tensor]:
    return [build(SMALL, _weights())(torch.arange(LONG) % SMALL.vocab_size)]


def _chunks(build: Build) -> list[Tensor]:
    model = build(SMALL, _weights())
    cache = model.new_cache(tokens=[9, 6], page_size=4)
    first = model.prefill({0: torch.arange(5), 1: torch.arange(7, 10)}, cache)
    second = model.prefill({0: torch.arange(11, 14), 1: torch.arange(20, 22)}, cache)
    return [first, second, model.decode(torch.tensor([3, 4]), cache, sequences=[1, 0])]


def _capture(build: Build) -> list[Tensor]:
    model = build(SMALL, _weights())
    _, states = model(torch.arange(7), capture=range(SMALL.num_hidden_layers + 1))
    return [states[key] for key in range(SMALL.num_hidden_layers + 1)]


def _collectives(build: Build) -> list[Tensor]:
    counts = []
    for tokens in (0, 3):
        group = Threads(2, timeout_s=10)
        group.run(partial(_rank_main, build, tokens))
        counts += [torch.tensor(sorted(count.values())) for count in group.counts]
    return counts


def _rank_main(build: Build, tokens: int, rank: Communicator) -> None:
    layout = Layout(tp=rank.size, rank=rank.rank)
    build(SMALL, shard(_weights(), SMALL, layout), communicator=rank)(torch.arange(tokens))


def _stored() -> dict[str, Tensor]:
    """A checkpoint's tensors in float32, its projections and experts in e4m3 with a distinct scale a block."""
    generator = torch.Generator().manual_seed(7)
    stored = {}
    for name, shape in expected_shapes(STORED).items():
        stored[name] = torch.randn(shape, generator=generator)
        if "_proj" in name or ".experts." in name:
            grid = [-(-size // BLOCK) for size in shape]
            stored[name] = stored[name].to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = torch.arange(1.0, 1 + grid[0] * grid[1]).reshape(grid)
    return stored


def _write(folder: Path, stored: dict[str, Tensor]) -> None:
    raw = {**dataclasses.asdict(STORED), "attn_type_list": [1] * STORED.num_hidden_layers}
    raw["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(stored, folder / "model.safetensors")


def _tensors(weights: ModelWeights) -> list[Any]:
    found: list[Any] = [weights.embed_tokens, weights.norm, weights.lm_head]
    for layer in weights.layers:
        found += [getattr(layer, field.name) for field in dataclasses.fields(layer)]
    return found
