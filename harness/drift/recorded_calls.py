"""The steps of a recorded pass as calls: a step's input is what the engine itself had before it.

Nothing can be fed to an engine that only left a record, so each step is judged on the engine's own input: the error of
one step does not count for the next one's, as in lock-step. A step of which not all was recorded is not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.drift.calls import EMBEDDING, Call, bound
from minimax_m2.harness.drift.lockstep import ABSENT, Cell, Judge
from minimax_m2.harness.drift.recording import Recording
from minimax_m2.harness.drift.running import Run
from minimax_m2.harness.drift.trajectory import PAGE, Subject, Tell, table_of
from minimax_m2.harness.op import Pack, find_op
from minimax_m2.reference.paging import PagedCache
from minimax_m2.reference.weights import BlockQuantized, LayerWeights, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a recorded pass.

    outputs, needs   the taps that hold what it returned, and what it was called with
    given, keywords  the call's arguments; not to be asked for where a tap is missing
    """

    layer: int
    name: str
    op: str
    outputs: tuple[str, ...]
    needs: tuple[str, ...]
    given: Callable[[], tuple[Any, ...]]
    keywords: dict[str, Any] = field(default_factory=dict)

    def call(self) -> Call:
        op = find_op(self.op)
        return Call(layer=self.layer, step=self.name, op=op, arguments=bound(op, self.given(), self.keywords))


def recorded_cells(subject: Subject, recording: Recording, tell: Tell, *, explain: int = 0) -> Iterator[Cell]:
    """Judge every step of which input and output were recorded; the first ``explain`` wrong ones are explained."""
    judge, told, layers = Judge(), 0, subject.config.num_hidden_layers
    for step in recorded_steps(subject, recording):
        tell(f"layer {step.layer}, {step.name}", max(step.layer, 0) / layers)
        if reason := unjudged(recording, step):
            yield Cell(
                layer=step.layer, step=step.name, op=step.op, phase="prefill", outcome=ABSENT, evidence=(reason,)
            )
            continue
        call, outputs = step.call(), left(subject, recording, step)
        contract = recording.naming.contract.get(step.op, {})
        with torch.inference_mode():
            cell = judge.found(call, contract, outputs)
            if cell.is_wrong and told < explain:
                told += 1
                cell = replace(cell, explanation=judge.reason(call, contract, outputs))
        judge.forget()
        yield cell


def unjudged(recording: Recording, step: Step) -> str:
    """Why a step cannot be judged, empty where it can: it must not be, or not all of it was recorded."""
    lacking = [tap for tap in (*step.needs, *step.outputs) if not recording.has(tap)]
    told = f"not recorded: {', '.join(lacking)}" if lacking else ""
    return recording.naming.unjudged.get(step.name, told)


def left(subject: Subject, recording: Recording, step: Step) -> tuple[Tensor, ...]:
    """What the engine's step gave."""
    inside = 0 <= step.layer < subject.config.num_hidden_layers
    return tuple(recording.at(tap, step.layer if inside else 0) for tap in step.outputs)


WHOLE_RUN = ("entry", "routing_ids", "logits")


def recorded_run(subject: Subject, recording: Recording) -> Run:
    """The recorded pass as a whole run. Raises ValueError where a tap of ``WHOLE_RUN`` was not recorded."""
    lacking = [tap for tap in WHOLE_RUN if not recording.has(tap)]
    if lacking:
        raise ValueError(f"{recording.name}: not recorded: {', '.join(lacking)}; a whole run is judged by these")
    layers = range(subject.config.num_hidden_layers)
    return Run(
        entry=[recording.at("entry", layer).double() for layer in layers],
        ids={layer: recording.at("routing_ids", layer) for layer in layers},
        logits=recording.at("logits").double(),
    )


def recorded_steps(subject: Subject, recording: Recording) -> Iterator[Step]:
    """Every step of the model, in order, at the grain at which it was recorded."""
    weights, at, last = subject.weights, recording.at, subject.config.num_hidden_layers
    yield Step(
        layer=EMBEDDING, name="embedding", op="embedding", outputs=("embedding",), needs=(),
        given=lambda: (subject.ids, weights.embed_tokens),
    )  # fmt: skip
    for layer in range(last):
        yield from _Layer(subject, recording, layer, weights.layers[layer]).steps()
    yield Step(
        layer=last, name="final_norm", op="add_rms_norm", outputs=("final_norm", "stream"), needs=("experts", "middle"),
        given=lambda: (at("experts", last - 1), at("middle", last - 1), weights.norm),
        keywords={"eps": subject.config.rms_norm_eps},
    )  # fmt: skip
    yield Step(
        layer=last, name="lm_head", op="lm_head", outputs=("logits",), needs=("final_norm",),
        given=lambda: (at("final_norm"), weights.lm_head),
        keywords={"rows": None, "vocab_size": len(weights.lm_head)},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Layer:
    subject: Subject
    recording: Recording
    index: int
    weights: LayerWeights

    def at(self, tap: str) -> Tensor:
        return self.recording.at(tap, self.index)

    def step(
        self, name: str, op: str, given: Callable[[], tuple[Any, ...]], *, of: tuple[str, ...], gives: tuple[str, ...],
        **keywords: Any,
    ) -> Step:  # fmt: skip
        return Step(layer=self.index, name=name, op=op, outputs=gives, needs=of, given=given, keywords=keywords)

    def steps(self) -> Iterator[Step]:
        yield from self._attention_half()
        yield from self._experts_half()

    def _attention_half(self) -> Iterator[Step]:
        at, w, eps = self.at, self.weights, self.subject.config.rms_norm_eps
        if self.index == 0:
            yield self.step(
                "input_norm", "rms_norm", lambda: (at("entry"), w.input_layernorm), of=("entry",),
                gives=("input_norm",), eps=eps,
            )  # fmt: skip
        else:
            before = self.recording.at
            yield self.step(
                "input_norm", "add_rms_norm",
                lambda: (before("experts", self.index - 1), before("middle", self.index - 1), w.input_layernorm),
                of=("experts", "middle"), gives=("input_norm", "entry"), eps=eps,
            )  # fmt: skip
        yield self._projection("qkv", w.qkv_proj, of="input_norm")
        yield from self._rotation()
        yield self.step(
            "attention", "attention", self._attended, of=("query", "key", "value"), gives=("attention",),
            scale=self.subject.config.head_dim**-0.5, max_query_len=len(self.subject.ids),
            max_seq_len=len(self.subject.ids),
        )  # fmt: skip
        yield self._projection("o_proj", w.o_proj, of="attention")

    def _rotation(self) -> Iterator[Step]:
        """The norms and the rotation apart where somebody saw what lies between them, else as one step."""
        at, w, c, subject = self.at, self.weights, self.subject.config, self.subject
        table, places = table_of(subject), torch.arange(len(subject.ids))
        if not self.recording.has("q_norm", "k_norm"):
            yield self.step(
                "qk_norm_rope", "qk_norm_rope", lambda: (at("qkv"), None, w.q_norm, w.k_norm, table, places),
                of=("qkv",), gives=("query", "key", "value"), num_heads=c.num_attention_heads,
                num_kv_heads=c.num_key_value_heads, head_dim=c.head_dim, rotary_dim=c.rotary_dim, q_width=c.q_width,
                k_width=c.kv_width, eps=c.rms_norm_eps,
            )  # fmt: skip
            return
        for name, weight, start in (("q_norm", w.q_norm, 0), ("k_norm", w.k_norm, c.q_width)):
            yield self.step(
                name, "rms_norm", _part_of(at, weight, slice(start, start + len(weight))), of=("qkv",), gives=(name,),
                eps=c.rms_norm_eps,
            )  # fmt: skip
        yield self.step(
            "rope", "rope", lambda: (*(at(n).unflatten(1, (-1, c.head_dim)) for n in ("q_norm", "k_norm")),
                                     table, places),
            of=("q_norm", "k_norm"), gives=("query", "key"), rotary_dim=c.rotary_dim,
        )  # fmt: skip

    def _experts_half(self) -> Iterator[Step]:
        at, w, c = self.at, self.weights, self.subject.config
        yield self.step(
            "post_attention_norm", "add_rms_norm", lambda: (at("o_proj"), at("entry"), w.post_attention_layernorm),
            of=("o_proj", "entry"), gives=("post_attention_norm", "middle"), eps=c.rms_norm_eps,
        )  # fmt: skip
        chosen, choice = ("routing_weights", "routing_ids"), {"indices_dtype": torch.int64}
        if self.recording.has("router_logits"):
            yield self.step(
                "router_gemm", "router_gemm", lambda: (at("post_attention_norm"), w.gate), of=("post_attention_norm",),
                gives=("router_logits",),
            )  # fmt: skip
            yield self.step(
                "routing", "routing", lambda: (at("router_logits"), w.e_score_correction_bias), of=("router_logits",),
                gives=chosen, top_k=c.num_experts_per_tok, **choice,
            )  # fmt: skip
        else:
            yield self.step(
                "router", "router", lambda: (at("post_attention_norm"), w.gate, w.e_score_correction_bias),
                of=("post_attention_norm",), gives=chosen, top_k=c.num_experts_per_tok, **choice,
            )  # fmt: skip
        yield self.step(
            "experts", "experts",
            lambda: (at("post_attention_norm"), _packed(w.w13, w.w2), at("routing_weights"), at("routing_ids")),
            of=("post_attention_norm", *chosen), gives=("experts",),
        )  # fmt: skip

    def _projection(self, name: str, weight: Weight, *, of: str) -> Step:
        """A product with a plain weight, or with codes and scales; its output's tap bears its name."""
        packed: Any = weight
        if isinstance(weight, BlockQuantized):
            packed = Pack("pack_fp8_linear", {"weight": weight.weight, "scale": weight.scale, "block": weight.block})
        op = "fp8_linear" if isinstance(weight, BlockQuantized) else "linear"
        return self.step(name, op, lambda: (self.at(of).flatten(1), packed), of=(of,), gives=(name,))

    def _attended(self) -> tuple[Any, ...]:
        """One sequence whose keys and values lie in pages, as attention is called by an engine."""
        subject = self.subject
        cache = PagedCache.empty(
            replace(subject.config, num_hidden_layers=1), num_pages=-(-len(subject.ids) // PAGE), page_size=PAGE,
            dtype=subject.dtype,
        )  # fmt: skip
        batch = cache.append({0: len(subject.ids)})
        for pages, tap in ((cache.k[0], "key"), (cache.v[0], "value")):
            pages.flatten(0, 1)[batch.slots] = self.at(tap)
        return self.at("query"), cache.k[0], cache.v[0], batch.block_table, batch.seq_lens, batch.query_start


def _part_of(at: Callable[[str], Tensor], weight: Tensor, columns: slice) -> Callable[[], tuple[Any, ...]]:
    return lambda: (at("qkv")[:, columns], weight)


def _packed(w13: Weight, w2: Weight) -> Pack:
    if isinstance(w13, BlockQuantized) and isinstance(w2, BlockQuantized):
        scales = {"w13_scale": w13.scale, "w2_scale": w2.scale, "block": w13.block}
        return Pack("pack_experts", {"w13": w13.weight, "w2": w2.weight, **scales})
    return Pack("pack_experts", {"w13": w13, "w2": w2})
