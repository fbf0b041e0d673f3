"""Normalise q and k over their full widths and rotate them, on an NPU: in two halves around the all-reduce."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.launched import qk_norm_rope as launched
from minimax_m2.kernels.npu.launch import programs, registered
from minimax_m2.kernels.npu.qk_norm_rope_rows import qk_norm_rope_kernel, qk_sum_squares_kernel
from minimax_m2.kernels.npu.qk_norm_rope_whole import qk_norm_rope_whole_kernel
from minimax_m2.kernels.schema import qk_norm_rope as qk_schema

# Channels of a row that one step of a sum or a copy takes, and heads that are rotated at once: float32 tiles of both
# and their copies under way fit the unified buffer.
STEP, TILE = 2048, 16
# Channels of q and k that a program holds at once: M2's 48 and 8 heads of 128.
HELD = 7168


def _launch(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
    q: Tensor, k: Tensor, v: Tensor,
) -> None:  # fmt: skip
    if stats is None and holds_rows(num_heads=num_heads, num_kv_heads=num_kv_heads, half=rotary_dim // 2, D=head_dim):
        _launch_whole(
            qkv, q_weight, k_weight, cos_sin, positions, num_heads, num_kv_heads, head_dim, rotary_dim, q_width,
            k_width, eps, q, k, v,
        )  # fmt: skip
        return
    if stats is None:
        stats = torch.empty((qkv.shape[0], 2), dtype=torch.float32, device=qkv.device)
        _launch_sums(qkv, num_heads, head_dim, num_kv_heads, stats)
    half = rotary_dim // 2
    _launch_rows(
        qkv, stats, q_weight, k_weight, cos_sin[:, :half], cos_sin[:, half:], positions, num_heads, num_kv_heads,
        head_dim, rotary_dim, q_width, k_width, eps, q, k, v,
    )  # fmt: skip


def holds_rows(*, num_heads: int, num_kv_heads: int, half: int, D: int) -> bool:
    """Whether the unified buffer holds a row's q and k and the weights of both, float32, beside copies under way."""
    channels = 2 * power_of_two(half) + power_of_two(D - 2 * half)
    return (sum(tiles_of(num_heads)) + power_of_two(num_kv_heads)) * channels <= HELD


def tiles_of(heads: int) -> tuple[int, int]:
    """Two powers of two, the first as large as it may be, that hold so many heads."""
    first = power_of_two(heads + 1) // 2
    return first, power_of_two(heads - first)


def _launch_whole(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor, num_heads: int,
    num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float, q: Tensor, k: Tensor,
    v: Tensor,
) -> None:  # fmt: skip
    """Launch both halves at once, on a rank that is alone."""
    rows, half, (q_block, q_more) = qkv.shape[0], rotary_dim // 2, tiles_of(num_heads)
    qk_norm_rope_whole_kernel[programs(rows, qkv)](
        qkv, q_weight, k_weight, cos_sin[:, :half], cos_sin[:, half:], positions, q, k, v,
        rows, qkv.stride(0), cos_sin.stride(0), cos_sin.stride(0), cos_sin.shape[0], float(q_width), float(k_width),
        eps, num_heads, num_kv_heads,
        Q_BLOCK=q_block, Q_MORE=q_more, K_BLOCK=power_of_two(num_kv_heads), D=head_dim, HALF=half,
        TURN=power_of_two(half), REST=power_of_two(head_dim - rotary_dim),
        V_STEPS=-(-num_kv_heads * head_dim // STEP), STEP=STEP,
    )  # fmt: skip


def _launch_rows(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor,
    positions: Tensor | None, num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int,
    k_width: int, eps: float, q: Tensor, k: Tensor, v: Tensor,
) -> None:  # fmt: skip
    """Launch the second half: without ``stats`` rows are not normalised, without ``positions`` row t has angle t."""
    rows, half = qkv.shape[0], rotary_dim // 2
    qk_norm_rope_kernel[programs(rows, qkv)](
        qkv, stats, q_weight, k_weight, cos, sin, positions, q, k, v,
        rows, qkv.stride(0), cos.stride(0), sin.stride(0), cos.shape[0], float(q_width), float(k_width), eps,
        num_heads, num_kv_heads,
        Q_TILES=-(-num_heads // TILE), K_TILES=-(-num_kv_heads // TILE), TILE=TILE, D=head_dim, HALF=half,
        TURN=power_of_two(half), REST=power_of_two(head_dim - rotary_dim),
        V_STEPS=-(-num_kv_heads * head_dim // STEP), STEP=STEP, NORM=stats is not None,
    )  # fmt: skip


def _launch_sums(qkv: Tensor, num_heads: int, head_dim: int, counted_kv_heads: int, stats: Tensor) -> None:
    q_width, k_width = num_heads * head_dim, counted_kv_heads * head_dim
    qk_sum_squares_kernel[programs(qkv.shape[0], qkv)](
        qkv, stats, qkv.shape[0], qkv.stride(0), q_width, k_width,
        Q_STEPS=-(-q_width // STEP), K_STEPS=-(-k_width // STEP), STEP=STEP,
    )  # fmt: skip


qk_sum_squares, qk_sum_squares_out, qk_norm_rope, qk_norm_rope_out = launched.functions(
    registered("qk_norm_rope", _launch), registered("qk_sum_squares", _launch_sums)
)


def split_qkv_tp_rmsnorm_rope(
    input: Tensor, cos: Tensor, sin: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, *,
    q_hidden_size: int, kv_hidden_size: int, head_dim: int, rotary_dim: int, eps: float, tp_world: int = 1,
    tp_group: ProcessGroup | None = None, use_qk_norm: bool = True, q_width: int | None = None,
    k_width: int | None = None, counted_kv_heads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Do ``qk_norm_rope`` over the ranks of ``tp_group`` with the arguments of SGLang's and vllm-ascend's operator.

    input             [T, q_hidden_size + 2 * kv_hidden_size], heads of this rank, row stride free
    cos, sin          [T, R/2 or more], a token's own row each, row strides free; the first R/2 columns count
    q_weight, k_weight  of this rank's heads; None without ``use_qk_norm``, which splits and rotates only
    q_width, k_width  true widths of the model where heads are padded or replicated; ``tp_world`` times this rank's,
                      unless given
    counted_kv_heads  as in ``qk_sum_squares``
    returns           q [T, q_hidden_size], k, v [T, kv_hidden_size], contiguous

    A rank without tokens takes part in the sum all the same: others wait for it.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
    """
    num_heads, num_kv_heads = q_hidden_size // head_dim, kv_hidden_size // head_dim
    sizes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    qk_schema.check_split(
        input, cos, sin, q_weight, k_weight, q_hidden_size=q_hidden_size, kv_hidden_size=kv_hidden_size,
        rotary_dim=rotary_dim, eps=eps, tp_world=tp_world, use_qk_norm=use_qk_norm, **sizes,
    )  # fmt: skip

    stats = None
    if use_qk_norm:
        stats = qk_sum_squares(input, counted_kv_heads=counted_kv_heads, **sizes)
        if tp_world > 1:
            torch.distributed.all_reduce(stats, group=tp_group)
    q = input.new_empty(input.shape[0], q_hidden_size)
    k, v = (input.new_empty(input.shape[0], kv_hidden_size) for _ in range(2))

    if input.shape[0] > 0:
        _launch_rows(
            input, stats, q_weight, k_weight, cos, sin, None, num_heads, num_kv_heads, head_dim, rotary_dim,
            q_width or tp_world * q_hidden_size, k_width or tp_world * kv_hidden_size, eps, q, k, v,
        )  # fmt: skip
    return q, k, v
