"""Whether a model's logits are right: nearer to the reference than to each model with a known defect.

Roundings in bfloat16 choose other experts where scores are close, so the logits of a right model are off by more than
any chain of budgets allows, and by much less than a defect moves them. Each defect is the reference with one thing
changed. Logits are nearer to it if their error, projected on the way from the reference to it, has gone half of it.
What moves logits less than that is the business of the ops' own budgets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.timed_models import config_of, ids_of, weights_of
from minimax_m2.harness.verdict import Outcome, Verdict
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.table import OpTable, op_table
from minimax_m2.reference.weights import LayerWeights, ModelWeights

Op = Callable[..., Any]
# A step of the model and what a defect makes of it.
DEFECTS: dict[str, tuple[str, Callable[[Op], Op]]] = {
    "the routing bias is ignored": ("router", lambda op: lambda x, weight, bias, **kw: op(x, weight, None, **kw)),
    "routing weights are not renormalised": (
        "router", lambda op: lambda *a, **kw: op(*a, **{**kw, "renormalize": False}),
    ),
    "the last expert chosen is left out": (
        "router", lambda op: lambda *a, **kw: op(*a, **{**kw, "top_k": kw["top_k"] - 1}),
    ),
    "experts add nothing": ("experts", lambda op: lambda *a, **kw: torch.zeros_like(op(*a, **kw))),
    "heads are not rotated": (
        "qk_norm_rope_cache",
        lambda op: lambda qkv, stats, q, k, rows, *a, **kw: op(qkv, stats, q, k, _unrotated(rows), *a, **kw),
    ),
    "q and k have no norm's weight": (
        "qk_norm_rope_cache",
        lambda op: lambda qkv, stats, q, k, *a, **kw: op(qkv, stats, torch.ones_like(q), torch.ones_like(k), *a, **kw),
    ),
    "attention adds nothing": ("attention", lambda op: lambda *a, **kw: torch.zeros_like(op(*a, **kw))),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class ModelJudge:
    """The logits ``[draws, B, V]`` of a case's model in float32, and those of each defect.

    float32 errs by 2^-16 of what a model in bfloat16 does, and a layer of M2's widths in float64 takes a minute.
    """

    case: Case
    expected: Tensor
    defects: Mapping[str, Tensor]

    def judge(self, logits: Sequence[Tensor], provider: Provider, variant: str) -> Verdict:
        """The verdict on logits ``[B, V]``, a draw each."""
        outcome, evidence, share = self._found(torch.stack([x.to(torch.float64) for x in logits]))
        return Verdict(
            outcome=outcome, op="model", case=self.case, provider=provider.name, device=provider.device,
            variant=variant, evidence=(evidence,), utilisation=share,
        )  # fmt: skip

    def _found(self, logits: Tensor) -> tuple[Outcome, str, float]:
        if logits.shape != self.expected.shape:
            told = f"logits are {list(logits.shape)}, not {list(self.expected.shape)}"
            return Outcome.WRONG_SHAPE, told, float("nan")
        if not bool(torch.isfinite(logits).all()):
            return Outcome.NOT_A_NUMBER, "its logits are not finite", float("nan")
        shares = {name: self._share(logits, there) for name, there in self.defects.items()}
        name, share = max(shares.items(), key=lambda item: item[1])
        error = float((logits - self.expected).norm() / self.expected.norm())
        if share > 1:
            nearest = min(self.defects, key=lambda name: float((logits - self.defects[name]).norm()))
            return Outcome.WRONG, f"relative error {error:.2g}; nearest is the reference where {nearest}", share
        return Outcome.PASS, f"relative error {error:.2g}, {share:.2g} of half the way to where {name}", max(share, 0.0)

    def _share(self, logits: Tensor, defect: Tensor) -> float:
        """How much of half the way to a defect the error goes: above 1, the logits are nearer to the defect."""
        way = (defect - self.expected).flatten()
        return 2 * float((logits - self.expected).flatten() @ way / (way @ way))


def model_judge(case: Case, progress: Callable[[str], None] = lambda text: None) -> ModelJudge:
    """Run the reference and its defects in float32."""
    weights, ids = widened(weights_of(case)), ids_of(case)

    def logits(ops: OpTable | None) -> Tensor:
        model = MiniMaxM2(config_of(case), weights, ops=ops)
        flat = ids.flatten(0, 1)
        cache = model.new_cache(tokens=[flat.shape[1]] * len(flat))
        return model.prefill(dict(enumerate(flat)), cache).reshape(*ids.shape[:2], -1)

    progress("the reference, float32")
    expected = logits(None).to(torch.float64)
    defects = {"logits are 0": torch.zeros_like(expected), "draws are exchanged": expected.roll(1, 0)}
    for name, table in defective():
        progress(f"the reference, where {name}")
        defects[name] = logits(table).to(torch.float64)
    return ModelJudge(case, expected, defects)


def defective() -> Iterator[tuple[str, OpTable]]:
    """The reference's table with one step changed, by what is wrong with it."""
    right = op_table(None)
    for name, (step, spoil) in DEFECTS.items():
        steps: dict[str, Any] = {step: spoil(getattr(right, step))}
        yield name, dataclasses.replace(right, **steps)


def widened(weights: ModelWeights) -> ModelWeights:
    """The same values in float32."""

    def wide(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(torch.float32)
        if isinstance(value, LayerWeights):
            return LayerWeights(**{f.name: wide(getattr(value, f.name)) for f in dataclasses.fields(value)})
        return value

    return ModelWeights(
        embed_tokens=wide(weights.embed_tokens),
        layers=[wide(layer) for layer in weights.layers],
        norm=wide(weights.norm),
        lm_head=wide(weights.lm_head),
    )


def _unrotated(rows: Tensor) -> Tensor:
    """A table of cosines 1 and sines 0."""
    half = rows.shape[1] // 2
    return torch.cat([torch.ones_like(rows[:, :half]), torch.zeros_like(rows[:, half:])], -1)
