"""Sums over groups of elements, and over those of a group that err alike."""

from __future__ import annotations

import torch
from torch import Tensor

# Sums by group and label are kept densely up to so many times the elements they come from; beyond, pairs are sorted.
DENSE_UP_TO = 4


def by_group(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sum of ``values`` in each group."""
    return values.new_zeros(groups, dtype=torch.float64).index_add(0, group.flatten(), values.flatten())


def coherence(values: Tensor, label: Tensor, group: Tensor, groups: int) -> Tensor:
    """Per group, the sum over labels of the squared sum of ``values``: what elements with one error add up to."""
    if int(label.flatten().bincount().max()) <= 1:
        return by_group(values.square(), group, groups)
    sums, owner = _by_label(values, label, group, groups)
    return values.new_zeros(groups, dtype=torch.float64).index_add(0, owner, sums.square())


def heaviest(values: Tensor, label: Tensor, group: Tensor, groups: int) -> Tensor:
    """Per group, the largest sum of ``values >= 0`` under one label."""
    sums, owner = _by_label(values, label, group, groups)
    return values.new_zeros(groups, dtype=torch.float64).scatter_reduce(0, owner, sums, "amax")


def _by_label(values: Tensor, label: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Sums of ``values`` by group and label, and the group of each sum."""
    labels = int(label.max()) + 1
    keys = group.flatten() * labels + label.flatten()
    if groups * labels <= DENSE_UP_TO * keys.numel():
        sums = values.new_zeros(groups * labels, dtype=torch.float64).index_add(0, keys, values.flatten())
        return sums, torch.arange(groups, device=keys.device).repeat_interleave(labels)
    keys, inverse = keys.unique(return_inverse=True)
    sums = values.new_zeros(len(keys), dtype=torch.float64).index_add(0, inverse, values.flatten())
    return sums, torch.div(keys, labels, rounding_mode="floor")


def numbered(label: Tensor) -> Tensor:
    """Labels from 0 on where they reach beyond the number of elements: sums are kept by label."""
    if label.numel() == 0 or int(label.max()) < label.numel():
        return label
    return label.flatten().unique(return_inverse=True)[1].view(label.shape)


def significands(value: Tensor) -> Tensor:
    """Label elements whose significands agree: the same number rounds to the same error, whatever its exponent."""
    significand = (torch.frexp(value.abs()).mantissa * 2.0**40).round().to(torch.int64)
    return significand.flatten().unique(return_inverse=True)[1].view(value.shape)


def rows_alike(value: Tensor, label: Tensor) -> Tensor:
    """Give rows of the same numbers, in whatever order, one label where each had one: what they share is one error."""
    if not bool((label == label[:, :1]).all()):
        return label
    mantissa, exponent = torch.frexp(value.sort(-1).values)
    key = (mantissa * 2.0**40).round().to(torch.int64) + (exponent.to(torch.int64) << 42)
    return key.unique(dim=0, return_inverse=True)[1][:, None].expand(label.shape)
