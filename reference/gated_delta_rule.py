"""The recurrence of a gated delta net (Qwen3.5): a state a head that forgets, corrects itself and is read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from minimax_m2.reference.contract import EXACT, Contract, rounded


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, state_index: Tensor, query_start: Tensor,
    *, scale: float, l2norm: bool = True, contract: Contract = EXACT,
) -> Tensor:  # fmt: skip
    """Run every sequence's tokens through its state, which is kept for the next call.

        S = exp(g) * S;  S = S + k (beta * (v - k^T S))^T;  o = scale * q^T S        one token of one value head

    q, k         [T, Hk, Dk], divided by their lengths if l2norm; value head h reads key head h // (Hv/Hk)
    v            [T, Hv, Dv];  g [T, Hv] float32, at most 0;  beta [T, Hv]
    state!       [slots, Hv, Dk, Dv] float32, written in place
    state_index  [B] each sequence's slot; below 0: a padded sequence, whose outputs are 0 and whose state is nobody's
    query_start  [B + 1], rising: a sequence's tokens; rows outside it are padding, their outputs 0
    returns      o [T, Hv, Dv], dtype of v

    Contract:
        l2norm_eps  added to the sum of squares: 1e-6 in FLA and transformers (modeling_qwen3_next.py, l2norm), 1e-5 in
                    SGLang's CPU kernel (sgl-kernel/csrc/cpu/mamba/fla.cpp, fused_sigmoid_gating_delta_rule_update).
        eps_place   "root": added to the length instead, x / (sqrt(sum) + eps), as in SGLang's Triton kernel
                    (fla/fused_sigmoid_gating_recurrent.py) and on NPUs; None: under the root.
        out         the result.
    """
    o, final = recurrences(
        q, k, v, g, beta, state, state_index, query_start, scale=scale, l2norm=l2norm, contract=contract
    )
    kept = state_index >= 0
    state[state_index[kept].long()] = final[kept].to(state.dtype)
    return o


def recurrences(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, state_index: Tensor, query_start: Tensor,
    *, scale: float, l2norm: bool, contract: Contract = EXACT,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The outputs, and each sequence's state after its last token ``[B, Hv, Dk, Dv]``; nothing is written."""
    if l2norm:
        q, k = (l2_normalise(x, contract) for x in (q, k))
    group, decay, starts = v.shape[1] // k.shape[1], torch.exp(g), query_start.tolist()
    parts, final = [torch.zeros_like(v[: starts[0]])], [state[:0]]
    for slot, start, end in zip(state_index.tolist(), starts, starts[1:], strict=False):
        tokens = slice(start, end)
        o, last = torch.zeros_like(v[tokens]), state[max(slot, 0)]
        if slot >= 0 and end > start:
            o, last = delta_rule(q[tokens] * scale, k[tokens], v[tokens], decay[tokens], beta[tokens], last, group)
        parts.append(o)
        final.append(last[None])
    return rounded(torch.cat([*parts, torch.zeros_like(v[starts[-1] :])]), contract.out), torch.cat(final)


def l2_normalise(x: Tensor, contract: Contract = EXACT) -> Tensor:
    """Divide ``x [..., D]`` by its length, epsilon where the contract says."""
    eps, squares = contract.l2norm_eps or 1e-6, x.square().sum(-1, keepdim=True)
    return x / (squares.sqrt() + eps) if contract.eps_place else x * torch.rsqrt(squares + eps)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """One sequence, token by token; ``group`` value heads read each key head. Returns o and the last state."""
    if has_torch_function((q, k, v, decay, beta)):
        return handle_torch_function(delta_rule, (q, k, v, decay, beta), q, k, v, decay, beta, state, group)
    q, k = (x.repeat_interleave(group, 1) for x in (q, k))
    outputs = []
    for t in range(len(v)):
        state = decay[t, :, None, None] * state
        delta = beta[t, :, None] * (v[t] - torch.einsum("hk,hkv->hv", k[t], state))
        state = state + k[t, :, :, None] * delta[:, None]
        outputs.append(torch.einsum("hk,hkv->hv", q[t], state))
    return torch.stack(outputs), state
