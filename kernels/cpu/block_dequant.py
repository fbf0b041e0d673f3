"""Weights from quantised weights and the scales of their blocks, on the CPU."""

from __future__ import annotations

import torch

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.launched import block_dequant as launched

extension.load("block_dequant")

# No argument's value can be wrong, so there is nothing to check here that launching devices do not.
block_dequant, block_dequant_out = launched.functions(torch.ops.minimax_m2.block_dequant)
