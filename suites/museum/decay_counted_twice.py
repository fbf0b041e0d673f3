"""Weighs the keys of a chunk by their decay twice: in the matrix that is solved, and again in its solution."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.gated_delta_rule import l2_normalise

EXHIBIT = {
    "subject": "gated_delta_rule",
    "source": "https://github.com/NeuraLegion/shainet/pull/170",
    "symptom": "the chunked form leaves the recurrence from the second token of a chunk on",
    "check": "o:element",
    "tolerance": None,
}


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, state_index: Tensor, query_start: Tensor,
    *, scale: float, l2norm: bool = True,
) -> Tensor:  # fmt: skip
    """Every sequence is one chunk."""
    dtype = v.dtype
    q, k, v, g, beta = (x.double() for x in (q, k, v, g, beta))
    q, k = (l2_normalise(x) if l2norm else x for x in (q, k))
    o, group, starts = torch.zeros_like(v), v.shape[1] // k.shape[1], query_start.tolist()
    for slot, start, end in zip(state_index.tolist(), starts, starts[1:], strict=False):
        if slot < 0 or end == start:
            continue
        keys, queries = (x[start:end].repeat_interleave(group, 1).transpose(0, 1) for x in (k, q * scale))
        rate, old = beta[start:end].mT[..., None], state[slot].double()
        total = g[start:end].cumsum(0).mT[..., None]  # [Hv, n, 1]
        decay = (total - total.mT).tril().exp().tril()
        gram, one = (rate * keys @ keys.mT).tril(-1), torch.eye(end - start).double()
        # right: of_keys = gram
        of_keys = gram * decay
        seen = torch.linalg.solve(one + of_keys, rate * keys) * total.exp()
        new = torch.linalg.solve(one + gram * decay, rate * v[start:end].transpose(0, 1)) - seen @ old
        o[start:end] = ((queries * total.exp()) @ old + (queries @ keys.mT * decay) @ new).transpose(0, 1)
        left = keys * (total[:, -1:] - total).exp()
        state[slot] = (total[:, -1:].exp() * old + left.mT @ new).float()
    return o.to(dtype)
