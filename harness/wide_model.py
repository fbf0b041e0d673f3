"""A model of MiniMax-M2's widths on a device: what it weighs, what a token must read, and whether its logits are right.

Its weights are drawn (``random_fp8``), so what it says is noise; what its steps cost is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.fused_sums import FusedSums
from minimax_m2.harness.graph_decode import GraphDecoder, StaticStep
from minimax_m2.harness.language import provider_table
from minimax_m2.harness.model_verdict import DEFECTS, ModelJudge, defective, widened
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.random_fp8 import NAMES, random_fp8, tensors_of
from minimax_m2.harness.verdict import Verdict
from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.table import OpTable
from minimax_m2.reference.weights import ModelWeights

# Sequences and tokens of the proof: draws of equally many sequences, each of a prompt and one decoded token.
DRAWS, SEQUENCES, PROMPT = 2, 2, 32
# Ranks that compile what meets its sizes for the first time are not missing.
COMPILING_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WideModel:
    """A rank's share of the drawn model, and the model on a provider's ops."""

    case: Case
    config: MiniMaxM2Config
    weights: ModelWeights
    ops: OpTable
    model: MiniMaxM2
    voice: Communicator
    provider: Provider
    raise_if_missing: Callable[[], None] = lambda: None  # Hang, where an op that sums itself gave a rank up


def wide_model(
    case: Case, config: MiniMaxM2Config, provider: Provider, voice: Communicator, device: str
) -> WideModel:  # fmt: skip
    """Draw the case's model and lay it over the ranks, every one of which holds a part of every layer."""
    layout = Layout(tp=voice.size, rank=voice.rank)
    weights = random_fp8(config, seed=case.number("seed"), layout=layout, device=device)
    ops, more = provider_table(provider), dict[str, Any]()
    if case.get("sums") == "fused":
        fused = FusedSums(ops, voice, config, patience_s=COMPILING_S)
        ops, more = fused.table, {"raise_if_missing": fused.raise_if_missing}
    model = _laid_out(config, weights, ops, voice)
    return WideModel(
        case=case, config=config, weights=weights, ops=ops, model=model, voice=voice, provider=provider, **more
    )


def first_layers(wide: WideModel, count: int) -> WideModel:
    """The model of the first layers alone, on the same weights and ops."""
    config = replace(wide.config, num_hidden_layers=count)
    weights = replace(wide.weights, layers=wide.weights.layers[:count])
    return replace(wide, config=config, weights=weights, model=_laid_out(config, weights, wide.ops, wide.voice))


def _laid_out(config: MiniMaxM2Config, weights: ModelWeights, ops: OpTable, voice: Communicator) -> MiniMaxM2:
    layout = Layout(tp=voice.size, rank=voice.rank)
    return MiniMaxM2(config, weights, ops=ops, communicator=voice, layout=layout)


def drawn_bytes(config: MiniMaxM2Config, ranks: int) -> int:
    """What a rank's share of a drawn model takes, and the whole layer and the float32 rows that are there meanwhile."""
    experts = config.num_local_experts * 3 * config.hidden_size * config.intermediate_size
    layer = experts + 2 * config.hidden_size * (config.q_width + config.kv_width) + 4 * config.num_local_experts
    rows = 2 * config.vocab_size * config.hidden_size
    # Embedding and head are bfloat16, and float32 beside it for the reference.
    return (config.num_hidden_layers * layer + 6 * rows) // ranks + (2 * layer if ranks > 1 else 0)


class Bytes(NamedTuple):
    """What a step reads at least, on one rank: every weight that its tokens need, and every cached key, once."""

    dense: int
    expert: int  # one expert of all layers
    keys: int  # of a cached token, all layers

    def of(self, *, active: float, cached: int) -> int:
        """The bytes of a step with so many active experts a layer and cached tokens, all sequences together."""
        return int(self.dense + active * self.expert + cached * self.keys)


def bytes_of(weights: ModelWeights, config: MiniMaxM2Config) -> Bytes:
    """Count a rank's weights; the embedding, of which a step reads a few rows, is left out."""
    experts, dense = 0, weights.lm_head.nbytes + weights.norm.nbytes
    for layer in weights.layers:
        for name in NAMES:
            size = sum(x.nbytes for x in tensors_of(getattr(layer, name)))
            if name in ("w13", "w2"):
                experts += size
            else:
                dense += size
    held = tensors_of(weights.layers[0].w13)[0].shape[0]
    keys = 2 * weights.layers[0].k_norm.numel() * weights.norm.element_size() * config.num_hidden_layers
    return Bytes(dense, experts // held, keys)


def active_experts(static: StaticStep) -> float:
    """How many experts a layer's tokens of a step choose between them, averaged over layers; runs the step again."""
    counts: list[int] = []

    def tap(step: str, layer: int, x: Tensor) -> None:
        if step == "routing_ids":
            counts.append(x.unique().numel())

    static.model.unchecked_step(static.ids, static.batch, static.cache, rows=None, tap=tap)
    return sum(counts) / len(counts)


def judge_of(wide: WideModel, *, known: Collection[str] = tuple(DEFECTS)) -> ModelJudge:
    """The reference in float32 on the very weights, quantised activations left out, over the same ranks.

    ``known`` names the defects that logits must not be nearer to; logits of 0 and another draw's always are among them.
    """
    weights, ids = widened(wide.weights), _ids(wide)

    def logits(ops: OpTable | None) -> Tensor:
        model = MiniMaxM2(wide.config, weights, ops=ops, communicator=wide.voice, layout=wide.model.layout)
        flat = ids.flatten(0, 1)
        cache = model.new_cache(tokens=[ids.shape[2]] * len(flat))
        found = model.prefill(dict(enumerate(flat)), cache)
        return found.reshape(*ids.shape[:2], -1).to(torch.float64)

    expected = logits(None)
    defects = {"logits are 0": torch.zeros_like(expected), "draws are exchanged": expected.roll(1, 0)}
    tables = dict(defective())
    return ModelJudge(wide.case, expected, defects | {name: logits(tables[name]) for name in known})


def proof(wide: WideModel, judge: ModelJudge, *, is_captured: bool = True) -> list[Verdict]:
    """The verdicts on a prefill and on a decode of the last token, which a graph replays: all ranks call it."""
    flat = _ids(wide).flatten(0, 1)
    whole, cache = (wide.model.new_cache(tokens=[PROMPT + 1] * len(flat)) for _ in range(2))
    prefill = wide.model.prefill(dict(enumerate(flat)), whole)
    static = (GraphDecoder if is_captured else StaticStep)(
        wide.model, cache, sequences=len(flat), max_seq_len=PROMPT + 1
    )
    wide.model.prefill(dict(enumerate(flat[:, :-1])), cache)
    decode = static.step(flat[:, -1], cache.append(dict.fromkeys(range(len(flat)), 1)))
    wide.raise_if_missing()
    return [
        replace(judge, case=wide.case.but(phase=phase)).judge(
            list(logits.to(torch.float64).reshape(DRAWS, SEQUENCES, -1)), wide.provider, ""
        )
        for phase, logits in (("prefill", prefill), ("decode", decode))
    ]


def _ids(wide: WideModel) -> Tensor:
    """The tokens of the proof, ``[draws, B, T]``."""
    generator = torch.Generator().manual_seed(wide.case.number("seed"))
    shape = (DRAWS, SEQUENCES, PROMPT + 1)
    return torch.randint(wide.config.vocab_size, shape, generator=generator).to(wide.model.device)
