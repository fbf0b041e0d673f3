"""Schema and host-side checks of ``experts`` and ``pack_experts``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimax_m2.kernels import schema

schema.define(
    "experts(Tensor x, Tensor[] packed, Tensor? weights, Tensor ids, Tensor? expert_map, Tensor? x_scale, "
    "Tensor(a!) out) -> ()"
)

E4M3 = torch.float8_e4m3fn
# So many products of two codes add up to less than 2^31.
MOST_INT8_INPUTS = 2**17


def block_of(w13: Tensor, w2: Tensor, block: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns that share a scale: of int8 weights one row and all of its columns.

    Raises ValueError for a block of int8 weights.
    """
    if w13.dtype != torch.int8:
        return block or (128, 128)
    if block is not None:
        raise ValueError(f"block={block} is given; int8 weights have one scale a row, leave block out")
    widest = max(w13.shape[-1], w2.shape[-1])
    return 1, widest + widest % 2


def check_pack(
    w13: Tensor,
    w2: Tensor,
    *,
    w13_scale: Tensor | None,
    w2_scale: Tensor | None,
    block: tuple[int, int],
    quantised: tuple[torch.dtype, ...] = (E4M3, torch.int8),
) -> None:
    """Raise what the host can know about the arguments of ``pack_experts``; weights with scales are ``quantised``."""
    schema.expect_shape("w2", w2, (None, None, None), "[E, H, I]")
    num_experts, hidden, width = w2.shape
    schema.expect_shape("w13", w13, (num_experts, 2 * width, hidden), "[E, 2*I, H]")
    most = MOST_INT8_INPUTS if w13.dtype == torch.int8 else 2**31 - 1
    schema.expect_range("num_experts", num_experts, 1, 2**31 - 1, "w2 is [E, H, I]")
    for name, size in (("hidden size", hidden), ("width", width)):
        schema.expect_range(name, size, 1, most, "w2 is [E, H, I]")
    if (w13_scale is None) != (w2_scale is None):
        raise ValueError("one of w13_scale and w2_scale is None; pass both or neither")
    rows, columns = block
    schema.expect_range("block rows", rows, 1, 2**31 - 1, "the released checkpoint has blocks of (128, 128)")
    schema.expect_range("block columns", columns, 2, 2**31 - 1, "the released checkpoint has blocks of (128, 128)")
    if columns % 2:
        raise ValueError(f"block={block} has odd columns; expected even ones, products are made two at a time")
    schema.expect_dtype("w13", w13, schema.FLOATS if w13_scale is None else quantised)
    schema.expect_dtype("w2", w2, (w13.dtype,))
    if w13_scale is None or w2_scale is None:
        return
    for name, scale, weight in (("w13_scale", w13_scale, w13), ("w2_scale", w2_scale, w2)):
        grid = (num_experts, -(-weight.shape[1] // rows), -(-weight.shape[2] // columns))
        schema.expect_shape(name, scale, grid, f"[E, ceil(rows/{rows}), ceil(columns/{columns})]")
        schema.expect_dtype(name, scale, (torch.float32,))


def check(
    x: Tensor,
    packed: Sequence[Tensor],
    weights: Tensor | None,
    ids: Tensor,
    *,
    expert_map: Tensor | None,
    x_scale: Tensor | None,
    model_dtype: torch.dtype,
) -> None:
    """Raise what the host can know about the arguments of ``experts``."""
    w13, _, w13_scale, _, extent = packed[:5]
    hidden, columns = extent.shape[1], extent.shape[3]
    schema.expect_shape("x", x, (None, hidden), "[T, H]")
    schema.expect_rows("x", x)
    schema.expect_shape("ids", ids, (x.shape[0], None), "[T, K]")
    schema.expect_range("top_k", ids.shape[1], 1, 2**31 - 1, "ids is [T, K]; MiniMax-M2 uses 8")
    schema.expect_contiguous("ids", ids)
    if weights is None:
        schema.expect_dtype("ids (weights=None: words of pack_routing)", ids, (torch.int32,))
    else:
        schema.expect_dtype("ids", ids, schema.INDICES)
        schema.expect_shape("weights", weights, tuple(ids.shape), "[T, K]")
        schema.expect_dtype("weights", weights, (torch.float32,))
        schema.expect_contiguous("weights", weights)
    if x_scale is None:
        schema.expect_dtype("x", x, schema.FLOATS)
    elif w13.dtype == torch.int8:
        raise ValueError("x_scale is given; beside int8 weights pass x in the model's dtype, the kernel quantises it")
    elif w13_scale.numel() == 0:
        raise ValueError(
            f"x_scale is given beside w13 of {w13.dtype} without scales; pass x as {w13.dtype}, x_scale=None"
        )
    else:
        schema.expect_dtype("x (with x_scale)", x, (E4M3,))
        schema.expect_shape("x_scale", x_scale, (x.shape[0], -(-hidden // columns)), f"[T, ceil(H/{columns})]")
        schema.expect_dtype("x_scale", x_scale, (torch.float32,))
        schema.expect_contiguous("x_scale", x_scale)
    if w13_scale.numel() == 0:
        schema.expect_dtype("w13", w13, (model_dtype,))
    if expert_map is not None:
        schema.expect_shape("expert_map", expert_map, (None,), "[E]")
        schema.expect_dtype("expert_map", expert_map, (torch.int32,))
        schema.expect_contiguous("expert_map", expert_map)
    for name, other in (("ids", ids), ("weights", weights), ("expert_map", expert_map), ("x_scale", x_scale)):
        if other is not None:
            schema.expect_device(name, other, x.device)
    for name, part in zip(("w13", "w2"), packed[:2], strict=True):
        schema.expect_device(name, part, x.device)


def check_output(out: Tensor, *, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise what the host can know about the tensor that ``experts_out`` fills."""
    schema.expect_shape("out", out, shape, "[T, H]")
    schema.expect_dtype("out", out, (dtype,))
    schema.expect_contiguous("out", out)
    schema.expect_device("out", out, device)
