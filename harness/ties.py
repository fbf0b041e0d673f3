"""Routing is discrete: which sets of experts are right when scores nearly tie, and what weights they take.

A set S of a token is right iff for all i in S, j not in S: ``s_i + d_i >= s_j - d_j``, with ``d`` the budget of a
selection score; ids must be unique and in range. Weights are judged at the provider's own ids, so a legal flip never
fails and an illegal one never hides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.compare import ALPHA, Comparison, Mismatch, compare
from minimax_m2.harness.expectation import Outputs, corrupted, noticeable, specified
from minimax_m2.harness.op import Op
from minimax_m2.harness.quantiles import two_sided_normal


def judge_ids(ids: Tensor, selection: Budgeted, *, valid: int, alpha: float = ALPHA) -> Comparison:
    """Judge the chosen experts ``ids [T, K]`` by budgeted selection scores ``[T, E]``; rows from ``valid`` are -1."""
    K = ids.shape[1]
    E = selection.shape[-1]
    chosen = ids.long()
    notes = _malformed(chosen, valid, E)
    if notes:
        return Comparison("ids", {"element": torch.inf}, None, ids.numel(), notes=notes)
    if valid == 0 or E == K:
        return Comparison("ids", {"element": 0.0} if ids.numel() else {}, None, ids.numel())
    tau = two_sided_normal(alpha / (5 * selection.numel()))
    score = selection.value[:valid]
    reach = torch.minimum(tau * selection.sigma, selection.bound)[:valid]
    inside = torch.zeros_like(score, dtype=torch.bool).scatter(1, chosen[:valid], True)
    weakest = torch.where(inside, score + reach, torch.inf).argmin(1, keepdim=True)
    strongest = torch.where(inside, -torch.inf, score - reach).argmax(1, keepdim=True)
    gap = (score.gather(1, strongest) - score.gather(1, weakest)).squeeze(1)
    room = (reach.gather(1, strongest) + reach.gather(1, weakest)).squeeze(1)
    share = torch.where(gap <= 0, 0.0, torch.where(room > 0, gap / room, torch.inf))
    row = int(share.argmax())
    i, j = int(weakest[row]), int(strongest[row])
    if float(share[row]) > 1:
        notes = [
            f"token {row} chose expert {i} (score {float(score[row, i]):.9g}) and left out expert {j} "
            f"(score {float(score[row, j]):.9g})",
            f"gap {float(gap[row]):.3g}, budget {float(room[row]):.3g}",
            f"chosen ids {sorted(chosen[row].tolist())}",
        ]
    worst = Mismatch((row,), float(score[row, i]), float(score[row, j]), float(room[row]))
    return Comparison("ids", {"element": float(share[row])}, worst, ids.numel(), notes=notes)


def _malformed(ids: Tensor, valid: int, E: int) -> list[str]:
    padding = ids[valid:]
    if bool((padding != -1).any()):
        row = valid + int((padding != -1).any(1).nonzero()[0])
        return [f"token {row} lies behind num_valid={valid} but has ids {ids[row].tolist()}; expected -1"]
    rows = ids[:valid]
    outside = ((rows < 0) | (rows >= E)).any(1)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        return [f"token {row} has ids {ids[row].tolist()}, not all within 0..{E - 1}"]
    ordered = rows.sort(1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if bool(twice.any()):
        row = int(twice.nonzero()[0])
        return [f"token {row} chose an expert twice: ids {ids[row].tolist()}"]
    return []


def implausible(weights: Tensor, ids: Tensor, rows: Tensor, experts: int) -> str:
    """Say which of ``rows``, whose scores are no numbers, seems to have chosen: neither a NaN weight nor -1 throughout.

    Ids that nobody may follow are told as well: whatever reads them next would read outside.
    """
    chosen = ids.long()
    outside = ((chosen < -1) | (chosen >= experts)).any(1)
    seems = rows & (outside | ~(weights.isnan().any(1) | (chosen == -1).all(1)))
    if not bool(seems.any()):
        return ""
    row = int(seems.nonzero()[0])
    what = f"token {row} has NaN among its scores, but ids {ids[row].tolist()} and weights {weights[row].tolist()}"
    return f"{what}; expected a NaN weight, ids of -1, or a ValueError that names NaN"


@dataclass
class Choice:
    """The expectation of an op that routes: weights ``[T, K]`` and ids ``[T, K]``.

    largest  what no weight exceeds. One that the budget cannot place, because every chosen score may have vanished,
             must be NaN or a number from 0 to it.
    """

    op: Op
    dtypes: dict[str, torch.dtype]
    selection: Budgeted
    weigh: Callable[[Tensor], Budgeted]
    top_k: int
    valid: int
    largest: float = 1.0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.dtypes, (self.selection.shape[0], self.top_k))

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"zeros", "rows", "row", "tile", "gain", "twice", "other", "behind"})

    def judge(self, outputs: Outputs, *, alpha: float = ALPHA, suspect: str = "") -> list[Comparison]:
        weights, ids = outputs
        found = judge_ids(ids, self.selection, valid=self.valid, alpha=alpha / 2)
        if found.notes and not torch.isfinite(torch.tensor(found.utilisation)):
            return [found]
        expected = self.weigh(ids.long())
        stray = ~torch.isfinite(expected.bound) & ((weights < 0) | (weights > self.largest))
        if bool(stray.any()):
            row = int(stray.any(1).nonzero()[0])
            told = f"token {row}, whose scores may all be 0, has weights {weights[row].tolist()}"
            notes = [f"{told}; expected NaN or 0..{self.largest:g}"]
            return [found, Comparison("weights", {"element": torch.inf}, None, weights.numel(), notes=notes)]
        judged = compare("weights", weights, expected, alpha / 2, hasty=bool(suspect))
        if not judged.passed and judged.worst is not None:
            row = judged.worst.index[0]
            judged.notes.append(
                f"token {row}, ids {ids[row].tolist()}: actual weight {judged.worst.actual:.9g}, expected "
                f"{judged.worst.expected:.9g} for expert {int(ids[judged.worst.index])}, "
                f"budget {judged.worst.limit:.3g}, "
                + ", ".join(f"{name} {share:.3g} x its limit" for name, share in judged.tests.items() if share > 1)
            )
        return [found, judged]

    def perfect(self) -> Outputs:
        order = self.selection.value.sort(dim=-1, descending=True, stable=True).indices[:, : self.top_k]
        ids = order.masked_fill(torch.arange(len(order))[:, None] >= self.valid, -1)
        weights, kinds = specified(self.weigh(ids)), tuple(self.dtypes.values())
        return weights.to(kinds[0]), ids.to(kinds[1])

    def corruptions(self) -> Iterator[tuple[str, Outputs]]:
        """Canonical corruptions of the weights; of the ids, an expert exchanged for the worst, and one chosen twice."""
        weights, ids = self.perfect()
        for kind, wrong in corrupted(weights):
            if noticeable(wrong, weights):
                yield f"weights:{kind}", (wrong, ids)
        if self.valid == 0:
            return
        row = self.valid // 2
        if self.top_k > 1:
            twice = ids.clone()
            twice[row, 0] = twice[row, 1]
            yield "ids:twice", (weights, twice)
        score = self.selection.value[row]
        worst = int(score.argmin())
        weakest = int(ids[row, -1])
        gap = float(score[weakest] - score[worst])
        # Below the smallest normal number a kernel may flush scores to zero.
        if gap > abs(float(score[weakest])) / 256 and gap > 2.0**-120:
            other = ids.clone()
            other[row, -1] = worst
            yield "ids:other", (weights, other)
        if bool((ids[: self.valid] != 0).any()):
            yield "ids:behind", (weights, torch.full_like(ids, self.selection.shape[-1]))
