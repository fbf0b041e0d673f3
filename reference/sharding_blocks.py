"""Shares of weights whose FP8 scales stand for blocks, where a share begins or ends inside one.

A share of 192 rows holds one block of 128 and a half. Its codes are copied as they are; its scales stand for finer
blocks, which repeat them, so that no block takes its scale from two. The dequantised share has the bits of the
dequantised whole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minimax_m2.reference.sharding import Cut, cut
from minimax_m2.reference.weights import BLOCK, BlockQuantized


def block_of(size: int) -> int:
    """Return the longest side of a block that cuts shares of ``size`` and the checkpoint's blocks of 128 evenly."""
    return math.gcd(BLOCK, size)


def cut_quantized(q: BlockQuantized, which: Cut, *, dim: int, block: int) -> BlockQuantized:
    """Return a share along the rows (``dim=-2``) or columns (``dim=-1``), with a scale for every ``block`` of them."""
    sides = (block, q.block[1]) if dim == -2 else (q.block[0], block)
    scale = cut_scale(q.scale, which, dim=dim, side=q.block[dim], block=block)
    return BlockQuantized(cut(q.weight, which, dim=q.weight.ndim + dim), scale, sides)


def cut_scale(scale: Tensor, which: Cut, *, dim: int, side: int, block: int) -> Tensor:
    """Return the scales of a share's blocks along ``dim``, from scales of blocks of ``side``.

    Zeros may share a block with what stands before them; a block of zeros alone has the scale 1.
    Raises ValueError if a block of the share lies in two blocks of the whole.
    """
    places = which.sources
    places = torch.cat([places, places.new_full((-len(places) % block,), -1)]).reshape(-1, block)
    blocks = torch.where(places >= 0, places // side, -1)
    highest = blocks.max(-1).values if len(blocks) else blocks.new_empty(0)
    if not bool(((blocks == highest[:, None]) | (blocks < 0)).all()):
        raise ValueError(f"block={block}: a block of the share lies in two blocks of {side}; use {block_of(block)}")
    picked = scale.index_select(dim, highest.clamp(min=0).to(scale.device))
    shape = [-1 if axis == scale.ndim + dim else 1 for axis in range(scale.ndim)]
    return picked.masked_fill((highest < 0).reshape(shape).to(scale.device), 1.0)


def reblocked(q: BlockQuantized, block: tuple[int, int]) -> BlockQuantized:
    """Repeat scales over finer blocks: the same weights, to the last bit.

    Raises ValueError if ``block`` does not divide the blocks there are: a coarser one has no scale.
    """
    if q.block[0] % block[0] or q.block[1] % block[1]:
        raise ValueError(f"block={block} does not divide {q.block}; weights are only cut finer")
    scale = q.scale
    for dim in (-2, -1):
        whole = Cut(((0, q.weight.shape[dim]),))
        scale = cut_scale(scale, whole, dim=dim, side=q.block[dim], block=block[dim])
    return BlockQuantized(q.weight, scale, block)
