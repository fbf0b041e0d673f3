"""The model as it runs: how far it strays from float64, layer by layer, and which tokens it decides otherwise.

``free``    the candidate chooses its experts: one legal flip moves its output as much as all its roundings do
``pinned``  it computes with the reference's experts, so that what is left is its arithmetic

What a right model strays is not guessed: the float64 formula is run some times over, each step's result rounded up or
down at random (in float32: as far off as its budget allows), and the band is the prediction interval of one run more.
Where the candidate chooses freely, these runs follow its choices, so that both modes have a band; whether a choice is
right is told by the scores on that way.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.drift.answers import Answer, answers_of, exact_answers, right_answers
from minimax_m2.harness.drift.calls import Call
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.trajectory import Subject, Tell, passed
from minimax_m2.harness.language import language_score
from minimax_m2.harness.quantiles import student
from minimax_m2.reference.router_gemm import router_gemm
from minimax_m2.reference.routing import selection_scores, weights_at
from minimax_m2.reference.weights import BlockQuantized, LayerWeights, ModelWeights

FREE, PINNED = "free", "pinned"
RIGHT_RUNS = 8
# Each entry of a curve, and each decision, is called wrong by chance so often.
ALPHA = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """One expert that the candidate chose and the reference would not, and the one it left out for it.

    gap   by how much the reference prefers ``left``; ``room`` how much right models stray in that difference
    """

    layer: int
    token: int
    chosen: int
    left: int
    gap: float
    room: float

    @property
    def is_tie(self) -> bool:
        return self.gap <= self.room


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd:
    """A position at which the likeliest next token is another one; gap and room as of a flip, in logits.

    A gap that is negative: the reference says so too where it computes with the candidate's experts.
    """

    position: int
    expected: int
    actual: int
    gap: float
    room: float

    @property
    def is_tie(self) -> bool:
        return self.gap <= self.room


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One whole run beside the reference's.

    curve      relative rms error of the residual stream at the entry of each layer, and last of the logits, beside
               the reference that computes with the same experts
    low, high  the band of right models for each: one that computes with these experts stays in it
    leaves     the first entry above it, None where none is
    flips      experts chosen otherwise than the reference would there
    agreement, divergence  share of equal likeliest tokens; nats a token, KL(reference || candidate), beside the
               reference that chooses for itself
    """

    mode: str
    curve: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    leaves: int | None
    agreement: float
    divergence: float
    flips: tuple[Flip, ...] = ()
    odd: tuple[Odd, ...] = ()

    @property
    def has_drifted(self) -> bool:
        """Whether it strays further than right models: in its stream, or in an expert that no tie explains."""
        return self.leaves is not None or any(not flip.is_tie for flip in self.flips)


@dataclass(slots=True)
class Run:
    """What taps and calls of one run left: streams, scores and choices by layer, and the logits ``[T, V]``."""

    entry: list[Tensor] = field(default_factory=list)
    scores: dict[int, Tensor] = field(default_factory=dict)
    ids: dict[int, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def observed(subject: Subject, answers: Answer, *, offered: Sequence[str], pin: Mapping[int, Tensor] | None) -> Run:
    """One run on somebody's answers; with ``pin`` the experts of each layer, ids ``[T, K]``, are given."""
    run, entries = Run(), defaultdict[int, list[Tensor]](list)
    scores, ids = defaultdict[int, list[Tensor]](list), defaultdict[int, list[Tensor]](list)
    seen: dict[int, int] = defaultdict(int)

    def tap(step: str, layer: int, x: Tensor) -> None:
        if step == "entry":
            entries[layer].append(x.double())

    def watch(call: Call) -> Any:
        returned = answers(call)
        if call.op.name not in ("router", "routing"):
            return returned
        selection, raw = _scores(call)
        scores[call.layer].append(selection)
        weights, chosen = returned
        ids[call.layer].append(chosen.long())
        if pin is None:
            return returned
        start = seen[call.layer]
        seen[call.layer] += len(chosen)
        asked = pin[call.layer][start : start + len(chosen)].to(chosen.dtype)
        same = (asked.sort(-1).values == chosen.sort(-1).values).all(-1, keepdim=True)
        own = weights_at(raw, asked, renormalize=call.arguments.get("renormalize", True)).to(weights.dtype)
        return torch.where(same, weights, own), torch.where(same, chosen, asked)

    with torch.inference_mode():
        run.logits = passed(subject, watch, offered=offered, tap=tap).double()
    run.entry = [torch.cat(entries[layer]) for layer in sorted(entries)]
    run.scores = {layer: torch.cat(parts) for layer, parts in scores.items()}
    run.ids = {layer: torch.cat(parts) for layer, parts in ids.items()}
    return run


def _scores(call: Call) -> tuple[Tensor, Tensor]:
    """Selection scores ``[T, E]`` of a call's own input, in float64, and the scores that weigh."""
    a = call.arguments
    logits = router_gemm(a["x"].double(), a["weight"].double()) if "x" in a else a["logits"].double()
    bias = None if a.get("bias") is None else a["bias"].double()
    raw, selection = selection_scores(logits, bias, scoring=a.get("scoring", "sigmoid"))
    return selection, raw


def in_float64(subject: Subject) -> Subject:
    """The same numbers in float64."""
    w = subject.weights
    layers = [
        LayerWeights(**{f.name: _wider(getattr(layer, f.name)) for f in fields(LayerWeights)}) for layer in w.layers
    ]
    whole = ModelWeights(
        embed_tokens=w.embed_tokens.double(), layers=layers, norm=w.norm.double(), lm_head=w.lm_head.double()
    )
    return replace(subject, weights=whole, rope_dtype=torch.float64)


def _wider(weight: Any) -> Any:
    if isinstance(weight, BlockQuantized):
        return weight.dequantized(torch.float64)
    return None if weight is None else weight.double()


class Beside:
    """A float64 run and right runs beside it: what candidates' whole runs are held against."""

    def __init__(
        self, subject: Subject, *, runs: int = RIGHT_RUNS, right: Callable[[int], Answer] = right_answers,
        offered: Sequence[str] = (), tell: Tell = lambda text, share: None,
    ) -> None:  # fmt: skip
        """``right`` gives the answers of a right model by a seed; its taps stand at the ops that are ``offered``."""
        self.subject, self._runs, self._tell = subject, runs, tell
        self._answering, self._offered = right, offered
        self._exact = in_float64(subject)
        tell("float64", 0.0)
        self.truth = observed(self._exact, exact_answers, offered=(), pin=None)
        self.right = self._right_runs(self.truth.ids)

    def held(self, candidate: Candidate, mode: str) -> Found:
        """A candidate's run in one mode, beside the reference's."""
        return self.beside(answers_of(candidate), mode, offered=list(candidate.offered()))

    def beside(self, answers: Answer, mode: str, *, offered: Sequence[str]) -> Found:
        """The run of whoever answers."""
        pin = self.truth.ids if mode == PINNED else None
        return self.found(observed(self.subject, answers, offered=offered, pin=pin), mode)

    def found(self, run: Run, mode: str) -> Found:
        """What is to be said of a run; of a free one, beside the reference and right models that follow its choices."""
        truth, right = (self.truth, self.right) if mode == PINNED else self._following(run.ids)
        along, bands = curve(run, truth), [curve(one, truth) for one in right]
        low, high = zip(*(interval([band[i] for band in bands]) for i in range(len(along))), strict=True)
        beyond = (i for i, (err, top) in enumerate(zip(along, high, strict=True)) if not err <= top)
        score = language_score(run.logits[None], self.truth.logits[None], self.subject.ids[None])
        return Found(
            mode=mode, curve=along, low=low, high=high, leaves=next(beyond, None), agreement=score.agreement,
            divergence=score.divergence, flips=tuple(flips(run, truth, right)),
            odd=tuple(odd(run, self.truth, truth, right)),
        )  # fmt: skip

    def _following(self, ids: Mapping[int, Tensor]) -> tuple[Run, list[Run]]:
        """The float64 run that computes with these experts, and right runs that do; known where they are its own."""
        if all(torch.equal(ids[layer].sort(-1).values, own.sort(-1).values) for layer, own in self.truth.ids.items()):
            return self.truth, self.right
        return observed(self._exact, exact_answers, offered=(), pin=ids), self._right_runs(ids)

    def _right_runs(self, ids: Mapping[int, Tensor]) -> list[Run]:
        found = []
        for seed in range(self._runs):
            self._tell(f"right model {seed + 1} of {self._runs}", seed / self._runs)
            found.append(observed(self.subject, self._answering(seed), offered=self._offered, pin=ids))
        return found


def curve(run: Run, truth: Run) -> tuple[float, ...]:
    """Relative rms errors of the stream at each entry, then of the logits."""
    pairs = [*zip(run.entry, truth.entry, strict=True), (run.logits, truth.logits)]
    return tuple(float((a - b).norm() / b.norm()) for a, b in pairs)


def flips(run: Run, truth: Run, right: Sequence[Run]) -> list[Flip]:
    """Every expert chosen otherwise than the reference would on its way."""
    found = []
    for layer, score in truth.scores.items():
        best = score.topk(run.ids[layer].shape[-1]).indices
        strays = [one.scores[layer] - score for one in right]
        for token in (run.ids[layer].sort(-1).values != best.sort(-1).values).any(-1).nonzero()[:, 0].tolist():
            mine, own = set(run.ids[layer][token].tolist()), set(best[token].tolist())
            extra = sorted(mine - own, key=lambda e: float(score[token, e]))
            missing = sorted(own - mine, key=lambda e: -float(score[token, e]))
            for chosen, left in zip(extra, missing, strict=False):
                gap = float(score[token, left] - score[token, chosen])
                room = reach([float(s[token, left] - s[token, chosen]) for s in strays])
                found.append(Flip(layer=layer, token=token, chosen=chosen, left=left, gap=gap, room=room))
    return found


def odd(run: Run, own: Run, truth: Run, right: Sequence[Run]) -> list[Odd]:
    """Every position whose likeliest token is another one than on the reference's ``own`` way.

    By how much is told by ``truth``, the reference with the run's experts: what a legal flip decides is none of the
    run's arithmetic.
    """
    found = []
    expected, actual = own.logits.argmax(-1), run.logits.argmax(-1)
    for position in (expected != actual).nonzero()[:, 0].tolist():
        i, j = int(expected[position]), int(actual[position])
        gap = float(truth.logits[position, i] - truth.logits[position, j])
        strays = [float((one.logits - truth.logits)[position, [i, j]].diff()) for one in right]
        found.append(Odd(position=position, expected=i, actual=j, gap=gap, room=reach(strays)))
    return found


def reach(strays: Sequence[float]) -> float:
    """How far one right run more may stray: rms of those that were seen, times Student's quantile."""
    return math.sqrt(sum(s * s for s in strays) / len(strays)) * student(len(strays), ALPHA)


def interval(errors: Sequence[float]) -> tuple[float, float]:
    """Prediction interval of the error of one right run more; errors are log-normal."""
    if min(errors) <= 0:
        return 0.0, max(errors)
    logs, n = [math.log(e) for e in errors], len(errors)
    mean = sum(logs) / n
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / (n - 1) * (1 + 1 / n)) * student(n - 1, ALPHA)
    return math.exp(mean - spread), math.exp(mean + spread)
