"""The wheel kt-kernel: KTransformers' experts of bfloat16 weights.

Its extension module is loaded without its package, whose import wants readers of files that nobody asks it to read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.peers import library
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.refusals import Refusals
from minimax_m2.harness.providers.vllm_cpu import BF16_EXPERTS, dense

CONTRACT: dict[str, dict[str, Any]] = {"experts": {"exp_ulps": 20.0, "gate_up": "dtype", "down": "dtype"}}
# Its buffers are made for so many tokens, beforehand.
LONGEST = 512
MULTIPLE = 32


def _sizes(case: Case) -> str | None:
    odd = [name for name in ("H", "I") if case.number(name) % MULTIPLE]
    if odd:
        return f"the kernel takes multiples of {MULTIPLE}, not {odd[0]}={case[odd[0]]}"
    return None if 0 < case.number("T") <= LONGEST else f"its buffers are for 1..{LONGEST} tokens, not T={case['T']}"


CAN: dict[str, Refusals] = {
    "provider": Refusals(
        "kt-kernel", {"experts": {**BF16_EXPERTS, "quant": ("none",), "ids": ("int64",)}}, {"experts": _sizes}
    )
}


def _extension() -> Path | None:
    """Named by Python's version: another Python has no such file."""
    return library("kt-kernel", "kt_kernel", f"_kt_kernel_ext_avx512_bf16.{sys.implementation.cache_tag}-*.so")


def absence() -> str | None:
    """Why the wheel cannot be used here, or None."""
    if _extension() is None:
        return f"kt-kernel is not installed for {sys.implementation.cache_tag}; make peers"
    return None if torch.cpu._is_avx512_bf16_supported() else "its backend AVX512-BF16 needs that instruction set"


def provider() -> Provider:
    """kt-kernel's experts on a pool of as many threads as torch has."""
    module, can = _loaded(), CAN["provider"]
    config = module.WorkerPoolConfig()
    config.subpool_count, config.subpool_numa_map = 1, [0]
    config.subpool_thread_count = [torch.get_num_threads()]
    pool = module.CPUInfer(config)
    offered: dict[str, Callable[..., Any]] = {"pack_experts": partial(pack_experts, module, pool), "experts": experts}
    return Provider(name="kt-kernel", device="cpu", functions=offered.get, contract=CONTRACT, refuses=can)


def _loaded() -> ModuleType:
    file = _extension()
    spec = None if file is None else spec_from_file_location("kt_kernel_ext", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{absence()}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PackedExperts(NamedTuple):
    """Its object for a layer, and the pool that runs it."""

    layer: Any
    pool: Any


def pack_experts(module: ModuleType, pool: Any, w13: Tensor, w2: Tensor, **quantised: Any) -> PackedExperts:
    """A layer with the weights laid out; they are copied, so ours may go."""
    E, H, I = w2.shape
    # The number of experts a token has sizes its buffers only.
    config = module.moe.MOEConfig(E, min(E, 32), H, I)
    config.pool, config.max_len = pool.backend_, LONGEST
    parts = [[x.contiguous() for x in weights] for weights in (w13[:, :I], w13[:, I:], w2)]
    config.gate_projs, config.up_projs, config.down_projs = ([[x.data_ptr() for x in part]] for part in parts)
    layer = module.moe.AMXBF16_MOE(config)
    order = torch.arange(E)
    pool.submit(layer.load_weights_task(order.data_ptr()))
    pool.sync()
    return PackedExperts(layer, pool)


def experts(x: Tensor, packed: PackedExperts, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    """forward_task, waited for."""
    rows, weights, ids = dense(x), weights.contiguous(), ids.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    count = torch.tensor([x.shape[0]], dtype=torch.int32)
    task = packed.layer.forward_task(
        count.data_ptr(), ids.shape[1], ids.data_ptr(), weights.data_ptr(), rows.data_ptr(), y.data_ptr(), False
    )
    packed.pool.submit(task)
    packed.pool.sync()
    return y


OFFERS: dict[str, tuple[str, ...]] = {"provider": ("pack_experts", "experts")}
