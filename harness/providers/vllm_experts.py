"""vLLM's experts on a GPU: its Triton kernel, launched as ``TritonExperts.apply`` does, with its own glue between.

Kernel, launcher, tile sizes and the assignment of slots to blocks are vLLM's functions, taken out of its files.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.providers.excerpt import excerpt

FOLDER = "model_executor/layers/fused_moe"
HEAD = "from typing import Any\nimport torch\nimport triton\nimport triton.language as tl"
GROUP, EPS, LARGEST = 128, 1e-10, 448.0


class PackedExperts(NamedTuple):
    """Weights and scales in the checkpoint's layout, which is the engine's."""

    w13: Tensor
    w2: Tensor
    w13_scale: Tensor | None
    w2_scale: Tensor | None


def pack_experts(
    w13: Tensor, w2: Tensor, *, w13_scale: Tensor | None = None, w2_scale: Tensor | None = None,
    block: tuple[int, int] | None = None,
) -> PackedExperts:  # fmt: skip
    """Keep everything as it is."""
    return PackedExperts(w13, w2, w13_scale, w2_scale)


@cache
def engine(package: Path) -> ModuleType:
    """vLLM's functions, with what they ask of its platform answered for a CUDA device."""
    return excerpt(
        {
            package / FOLDER / "fused_moe.py": (
                "write_zeros_to_output", "fused_moe_kernel", "invoke_fused_moe_triton_kernel", "get_default_config",
                "_prepare_expert_assignment", "get_config_file_name",
            ),
            package / FOLDER / "moe_align_block_size.py": ("moe_align_block_size",),
        },
        head=HEAD,
        given={
            "envs": SimpleNamespace(VLLM_BATCH_INVARIANT=False),
            "current_platform": SimpleNamespace(is_rocm=lambda: False, get_device_name=torch.cuda.get_device_name),
            "ops": SimpleNamespace(moe_align_block_size=torch.ops._moe_C.moe_align_block_size),
            "round_up": lambda x, y: -(-x // y) * y,
        },
    )  # fmt: skip


def tiles(package: Path, tokens: int, packed: PackedExperts, top_k: int) -> Mapping[str, Any]:
    """Tile sizes as ``try_get_optimal_moe_config`` finds them: those tuned for the card, else the default ones."""
    E, H, I = packed.w2.shape
    kind, block = (None, None) if packed.w13_scale is None else ("fp8_w8a8", [GROUP, GROUP])
    tuned = _tuned(package, E, I, kind, tuple(block) if block else None)
    if tuned:
        return tuned[min(tuned, key=lambda known: abs(known - tokens))]
    return engine(package).get_default_config(tokens, E, I, H, top_k, kind, block)


@cache
def _tuned(package: Path, E: int, I: int, kind: str | None, block: tuple[int, int] | None) -> dict[int, Any]:
    name = engine(package).get_config_file_name(E, I, kind, None if block is None else list(block))
    file = package / FOLDER / "configs" / name
    return {int(tokens): tiles for tokens, tiles in json.loads(file.read_text()).items()} if file.is_file() else {}


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """per_token_group_fp8_quant in groups of 128, scales by row."""
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((x.shape[0], x.shape[1] // GROUP), dtype=torch.float32, device=x.device)
    torch.ops._C.per_token_group_fp8_quant(x, q, scale, GROUP, EPS, -LARGEST, LARGEST, False, False, False)
    return q, scale


def gated(gate_up: Tensor) -> Tensor:
    """silu_and_mul."""
    act = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    torch.ops._C.silu_and_mul(act, gate_up)
    return act


def gated_and_quantised(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """silu_and_mul_per_block_quant in groups of 128, scales by row."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    q = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=gate_up.device)
    scale = torch.empty((rows, width // GROUP), dtype=torch.float32, device=gate_up.device)
    torch.ops._C.silu_and_mul_per_block_quant(q, gate_up, scale, GROUP, None, False)
    return q, scale


def experts(package: Path, x: Tensor, packed: PackedExperts, weights: Tensor, ids: Tensor) -> Tensor:
    """TritonExperts.apply after moe_kernel_quantize_input, then moe_sum."""
    tl = importlib.import_module("triton.language")
    (tokens, top_k), (num_experts, both, _) = ids.shape, packed.w13.shape
    hidden, scaled = x.shape[1], packed.w13_scale is not None
    config = dict(tiles(package, tokens, packed, top_k))
    block = [GROUP, GROUP] if scaled else None
    slots = engine(package)._prepare_expert_assignment(ids, config, tokens, top_k, num_experts, None, block_shape=block)
    kind: dict[str, Any] = {
        "compute_type": tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16, "use_fp8_w8a8": scaled,
        "use_int8_w8a8": False, "use_int8_w8a16": False, "use_int4_w4a16": False, "per_channel_quant": False,
        "block_shape": block,
    }  # fmt: skip
    launch = engine(package).invoke_fused_moe_triton_kernel

    a, a_scale = quantised(x) if scaled else (x, None)
    gate_up = torch.empty((tokens, top_k, both), dtype=x.dtype, device=x.device)
    launch(a, packed.w13, gate_up, a_scale, packed.w13_scale, None, *slots, False, top_k, config, **kind)
    flat = gate_up.view(-1, both)
    act, act_scale = gated_and_quantised(flat) if scaled else (gated(flat), None)
    down = torch.empty((tokens, top_k, hidden), dtype=x.dtype, device=x.device)
    launch(act, packed.w2, down, act_scale, packed.w2_scale, weights, *slots, True, 1, config, **kind)
    y = torch.empty_like(x)
    torch.ops._moe_C.moe_sum(down, y)
    return y
