"""Sums over the GPUs of a host as other engines make them: torch's two shots, vLLM's and FlashInfer's kernels.

Each passes a communicator on and adds what it takes itself. Kernels that read peers' memory must know where a captured
call's tensors lie: ``ready`` tells them, on all ranks, between a capture and its first replay.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from minimax_m2.harness.peers import folder, library
from minimax_m2.harness.providers import flashinfer, vllm_cuda, vllm_rope
from minimax_m2.harness.relay import Relay
from minimax_m2.harness.symmetric import shared_memory
from minimax_m2.reference.communicator import Communicator

# Bytes of a sum, and rows, that memory is made for.
MOST_BYTES, MOST_ROWS = 1 << 19, 64
# From so many tokens on vLLM lets the kernel after FlashInfer's begin when its own has ended, not earlier.
LATE_FROM = 17
LAMPORT = "model_executor/layers/minimax_rms_norm/lamport_workspace.py"


class Engine(Relay):
    """A relay that adds rows itself where it ``takes`` them, and passes all else on."""

    def call(self, kind: str, payload: Any, label: str) -> Any:
        if kind == "all_reduce" and self.takes(payload):
            return self.added(payload)
        return super().call(kind, payload, label)

    def takes(self, x: Tensor) -> bool:
        """Whether a sum is this engine's own."""
        return x.dtype == torch.bfloat16 and 0 < x.nbytes <= MOST_BYTES and x.nbytes % 16 == 0

    def added(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        raise NotImplementedError

    def ready(self) -> None:
        """What all ranks do between a capture and its first replay."""


class TwoShot(Engine):
    """torch's two_shot_all_reduce_: each rank adds a share of the row and sends it; what is added is copied there."""

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        self._shared = shared_memory(inner, MOST_BYTES // torch.bfloat16.itemsize, torch.bfloat16)

    def added(self, x: Tensor) -> Tensor:
        there = self._shared.buffer[: x.numel()].view(x.shape)
        there.copy_(x)
        y: Tensor = torch.ops.symm_mem.two_shot_all_reduce_(there, "sum", self._shared.group)
        return y


class VllmSum(Engine):
    """vLLM's custom all-reduce: every rank reads the others' tensors, where they lie while a graph is replayed."""

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        vllm_cuda.loaded()
        self._ops = torch.ops._C_custom_ar
        meta = self._shared(self._ops.meta_size() + MOST_BYTES)
        self._buffers = self._shared(MOST_BYTES)
        # Where the kernel finds the addresses of registered tensors.
        self._places = torch.empty(8 << 20, dtype=torch.uint8, device="cuda")
        self._engine = self._ops.init_custom_ar(meta, self._places, inner.rank, True)
        self._ops.register_buffer(self._engine, self._buffers)

    def _shared(self, size: int) -> list[int]:
        """Each rank's memory as this one sees it."""
        pointer, handle = self._ops.allocate_shared_buffer_and_handle(size)
        handles = gathered_objects(handle)
        own = self.inner.rank
        return [pointer if r == own else self._ops.open_mem_handle(h) for r, h in enumerate(handles)]

    def added(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        capturing = torch.cuda.is_current_stream_capturing()
        # Outside a graph the row is copied to memory that the others know.
        buffer = (0, 0) if capturing else (self._buffers[self.inner.rank], MOST_BYTES)
        self._ops.all_reduce(self._engine, x, y, *buffer)
        return y

    def ready(self) -> None:
        """Tell the ranks where the tensors of captured calls lie."""
        found = gathered_objects(self._ops.get_graph_buffer_ipc_meta(self._engine))
        self._ops.register_graph_buffers(self._engine, [list(h) for h, _ in found], [list(o) for _, o in found])


class FlashInferSum(Engine):
    """FlashInfer's all-reduce, which vLLM takes for its fused norm: rows are sent to all, -0 stands where none is."""

    def __init__(self, inner: Communicator, *, width: int) -> None:
        super().__init__(inner)
        flashinfer.loaded()
        self._kernels = importlib.import_module("flashinfer.comm.trtllm_ar")
        group = distributed.group.WORLD
        self._held, self._places = self._kernels.trtllm_create_ipc_workspace_for_all_reduce_fusion(
            inner.rank, inner.size, MOST_ROWS, width, group=group
        )
        self._width = width

    def takes(self, x: Tensor) -> bool:
        """Rows of the width that its memory was made for."""
        return super().takes(x) and x.shape[1:] == (self._width,) and len(x) <= MOST_ROWS

    def added(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        self._launch(x, self._kernels.AllReduceFusionPattern.kAllReduce, allreduce_out=y)
        return y

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
        """The norm of the sum over ranks and a residual, in one launch."""
        y, stream = torch.empty_like(x), torch.empty_like(x)
        self._launch(
            x, self._kernels.AllReduceFusionPattern.kARResidualRMSNorm, residual_in=residual, residual_out=stream,
            norm_out=y, rms_gamma=weight, rms_eps=eps,
        )  # fmt: skip
        return y, stream

    def _launch(self, x: Tensor, pattern: int, **given: Any) -> None:
        names = (
            "allreduce_out", "residual_in", "residual_out", "norm_out", "quant_out", "scale_out", "rms_gamma",
            "rms_eps", "scale_factor", "layout_code",
        )  # fmt: skip
        self._kernels.trtllm_allreduce_fusion(
            allreduce_in=x, world_size=self.size, world_rank=self.rank, token_num=len(x), hidden_dim=self._width,
            workspace_ptrs=self._places, launch_with_pdl=True, trigger_completion_at_end=len(x) >= LATE_FROM,
            fp32_acc=True, pattern_code=pattern, use_oneshot=True, **dict.fromkeys(names) | given,
        )  # fmt: skip


class VllmStatistics:
    """vLLM's minimax_allreduce_rms_qk, rotation and write of the cache: what it runs for MiniMax-M2 over ranks."""

    def __init__(self, inner: Communicator) -> None:
        package = vllm_cuda.loaded()
        spec = importlib.util.spec_from_file_location("lamport_workspace", package / LAMPORT)
        assert spec is not None, "a .py file has a loader"
        assert spec.loader is not None, "a .py file has a loader"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = module.LamportWorkspace
        self._held = made(inner.rank, inner.size, made.compute_comm_size_for_minimax(MOST_ROWS, inner.size))
        self._rank, self._size = inner.rank, inner.size

    @cached_property
    def _one(self) -> Tensor:
        return torch.ones((), device="cuda")

    def qk_norm_rope_cache(
        self, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor, k_cache: Tensor,
        v_cache: Tensor, slots: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, **sizes: Any,
    ) -> Tensor:  # fmt: skip
        """Queries; keys and values lie in the cache afterwards. ``cos_sin`` is of the model's dtype."""
        q_width, kv_width = num_heads * head_dim, num_kv_heads * head_dim
        q, k = torch.ops._C.minimax_allreduce_rms_qk(
            qkv, q_weight, k_weight, self._held.workspace, q_width, kv_width, self._rank, self._size, eps
        )
        vllm_rope.rotate(q, k, cos_sin, positions, head_dim)
        v = qkv[:, q_width + kv_width :].unflatten(1, (num_kv_heads, head_dim))
        k = k.unflatten(1, (num_kv_heads, head_dim))
        torch.ops._C_cache_ops.reshape_and_cache_flash(k, v, k_cache, v_cache, slots, "auto", self._one, self._one)
        query: Tensor = q.unflatten(1, (num_heads, head_dim))
        return query


def gathered_objects(own: Any) -> list[Any]:
    """Every rank's object, in their order."""
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found


class Peers(NamedTuple):
    """Sums of other engines that are here, and why the rest is not."""

    adders: dict[str, Engine]
    statistics: dict[str, VllmStatistics]
    absent: dict[str, str]


def peer_sums(inner: Communicator, *, width: int) -> Peers:
    """What can be had on this host; all ranks make it at the same time."""
    adders: dict[str, Engine] = {}
    if inner.size > 1:
        adders["symmetric two-shot"] = TwoShot(inner)
    statistics: dict[str, VllmStatistics] = {}
    absent: dict[str, str] = {}

    def tried(name: str, module: Any, file: tuple[str, str, str], make: Callable[[], None]) -> None:
        reason = module.absence() or (None if library(*file) else f"{file[2]} is not in {folder(file[0])}")
        if reason is None:
            make()
        else:
            absent[name] = reason

    def vllm() -> None:
        adders["vllm"] = VllmSum(inner)
        statistics["vllm"] = VllmStatistics(inner)

    def infer() -> None:
        adders["flashinfer"] = FlashInferSum(inner, width=width)

    tried("vllm", vllm_cuda, (vllm_cuda.WHEEL, vllm_cuda.PACKAGE, LAMPORT), vllm)
    tried("flashinfer", flashinfer, (flashinfer.WHEEL, flashinfer.PACKAGE, "comm/trtllm_ar.py"), infer)
    return Peers(adders, statistics, absent)
