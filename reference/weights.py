"""Load a checkpoint in Hugging Face names from safetensors, never pickle: checked whole, then read layer by layer.

The names, shapes and dtypes of every file are compared with the config before any weight is read, so one error tells
everything that is wrong. ``Checkpoint.layer`` then streams one layer at a time, in the dtype asked for or with its FP8
weights kept as they are stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minimax_m2.reference.block_dequant import block_dequant
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.sharding import Cut

BLOCK = 128
_FLOATS = ("BF16", "F16", "F32", "F64")
_FP8 = "F8_E4M3"
_SHOWN = 40
_MAPPED_ELEMENTS = 2**24

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, what)`` while a checkpoint is read."""


class CheckpointError(ValueError):
    """All that is wrong with a checkpoint; ``problems`` has every line, the message the first 40."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.problems = tuple(problems)
        shown = [f"  {line}" for line in problems[:_SHOWN]]
        rest = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        headline = f"{path} is not a MiniMax-M2 checkpoint, problems: {len(problems)}"
        super().__init__("\n".join([headline, *shown, *rest]))


class BlockQuantized(NamedTuple):
    """A weight as stored: ``weight [..., N, K]`` e4m3fn and ``scale [..., ceil(N/rows), ceil(K/columns)]`` float32."""

    weight: Tensor
    scale: Tensor
    block: tuple[int, int] = (BLOCK, BLOCK)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Multiply each block by its scale; exact in float64, one rounding from float32 otherwise."""
        return block_dequant(self.weight, self.scale, block=self.block, dtype=dtype)


Weight = Tensor | BlockQuantized


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer; projections are ``[N, K]`` and multiply from the right as ``x @ weight.mT``."""

    input_layernorm: Tensor  # [H]
    qkv_proj: Weight  # [(Hq + 2 Hk) D, H], rows q, then k, then v
    q_norm: Tensor  # [Hq D]
    k_norm: Tensor  # [Hk D]
    o_proj: Weight  # [H, Hq D]
    post_attention_layernorm: Tensor  # [H]
    gate: Tensor  # [E, H], never below float32
    e_score_correction_bias: Tensor | None  # [E], never below float32
    w13: Weight  # [E, 2 I, H], rows gate (w1), then up (w3)
    w2: Weight  # [E, H, I]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """All of a model, or of one rank's share of it."""

    embed_tokens: Tensor  # [V, H]
    layers: Sequence[LayerWeights]
    norm: Tensor  # [H]
    lm_head: Tensor  # [V, H]


class Checkpoint:
    """A checked checkpoint on disk; every method reads from the files anew and keeps nothing."""

    def __init__(self, path: str | Path, *, config: MiniMaxM2Config | None = None) -> None:
        """Check all of ``path``, a folder with ``config.json`` and one or many safetensors files.

        Raises CheckpointError that lists every missing, extra, mis-shaped, mis-typed, unreadable or NaN-scaled
        tensor with its file, and FileNotFoundError where there is nothing to read.
        """
        self.path = Path(path)
        self.config = config or MiniMaxM2Config.from_pretrained(self.path)
        self.notes: list[str] = []
        self._file_of: dict[str, Path] = {}
        self._handles: dict[Path, safe_open] = {}
        self._mapped: dict[Path, int] = {}
        problems, unread = self._open_files()
        problems += self._check_names(unread)
        problems += self._check_scales()
        if problems:
            raise CheckpointError(self.path, problems)

    def load(
        self, dtype: torch.dtype, *, keep_quantized: bool = False, progress: Progress | None = None
    ) -> ModelWeights:
        """Read everything, layer by layer; ``progress`` hears of each."""
        layers, total = [], self.config.num_hidden_layers
        for index in range(total):
            layers.append(self.layer(index, dtype, keep_quantized=keep_quantized))
            if progress is not None:
                progress(index + 1, total, "layers loaded")
        return ModelWeights(
            embed_tokens=self.embed_tokens(dtype), layers=layers, norm=self.norm(dtype), lm_head=self.lm_head(dtype)
        )

    def embed_tokens(self, dtype: torch.dtype) -> Tensor:
        """Return the embedding ``[V, H]``."""
        return self._dense("model.embed_tokens.weight", dtype)

    def norm(self, dtype: torch.dtype) -> Tensor:
        """Return the weight of the final norm ``[H]``."""
        return self._dense("model.norm.weight", dtype)

    def lm_head(self, dtype: torch.dtype) -> Tensor:
        """Return the output projection ``[V, H]``: the embedding where ``tie_word_embeddings`` says so."""
        tied = self.config.tie_word_embeddings
        return self._dense("model.embed_tokens.weight" if tied else "lm_head.weight", dtype)

    def layer(self, index: int, dtype: torch.dtype, *, keep_quantized: bool = False) -> LayerWeights:
        """Return layer ``index`` in ``dtype``; the router's two tensors stay float32 or, for float64, float64.

        With ``keep_quantized`` the FP8 projections and experts come as ``BlockQuantized``; that needs widths whose
        merge (q|k|v, gate|up) falls on a boundary of 128 rows.
        """
        prefix, config = f"model.layers.{index}.", self.config
        attention, moe = prefix + "self_attn.", prefix + "block_sparse_moe."
        router_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        experts = [f"{moe}experts.{e}." for e in range(config.num_local_experts)]

        def merged(*names: str) -> Weight:
            weights = [self._weight(f"{name}.weight", dtype, keep_quantized=keep_quantized) for name in names]
            return _concatenate(weights, dtype, what=", ".join(names))

        return LayerWeights(
            input_layernorm=self._dense(prefix + "input_layernorm.weight", dtype),
            qkv_proj=merged(*(f"{attention}{name}_proj" for name in "qkv")),
            q_norm=self._dense(attention + "q_norm.weight", dtype),
            k_norm=self._dense(attention + "k_norm.weight", dtype),
            o_proj=merged(f"{attention}o_proj"),
            post_attention_layernorm=self._dense(prefix + "post_attention_layernorm.weight", dtype),
            gate=self._dense(moe + "gate.weight", router_dtype),
            e_score_correction_bias=(
                self._dense(moe + "e_score_correction_bias", router_dtype) if config.use_routing_bias else None
            ),
            w13=_stack([merged(f"{e}w1", f"{e}w3") for e in experts], dtype),
            w2=_stack([merged(f"{e}w2") for e in experts], dtype),
        )

    def read_cut(self, name: str, which: Cut | None, *, dim: int = 0) -> Tensor:
        """Read the pieces of a tensor along ``dim``, and no other, into memory of its own; None: all of it.

        Pages of a file that were read count as this process's memory while it is mapped; it is not for long.
        """
        file = self._file_of[name]
        view = self._handles[file].get_slice(name)
        self._mapped[file] = self._mapped.get(file, 0) + math.prod(view.get_shape())
        if self._mapped[file] > _MAPPED_ELEMENTS:
            self._handles[file], self._mapped[file] = safe_open(file, framework="pt"), 0
        if which is None:
            return self._read(name).clone()
        none: Tensor = view[(slice(None),) * dim + (slice(0, 0),)]
        codes = none.view(torch.uint8) if none.dtype.itemsize == 1 else none
        parts = [codes]
        for start, length in which.merged.pieces:
            if start < 0:
                parts.append(codes.new_zeros(*codes.shape[:dim], length, *codes.shape[dim:][1:]))
            else:
                parts.append(view[(slice(None),) * dim + (slice(start, start + length),)].view(codes.dtype))
        return torch.cat(parts, dim).view(none.dtype)

    def is_quantized(self, name: str) -> bool:
        """Whether a tensor is stored in FP8."""
        return self._header(name)[0] == _FP8

    def _dense(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._read(name).to(dtype)

    def _weight(self, name: str, dtype: torch.dtype, *, keep_quantized: bool) -> Weight:
        stored = self._read(name)
        if stored.dtype != torch.float8_e4m3fn:
            return stored.to(dtype)
        quantized = BlockQuantized(stored, self._read(f"{name}_scale_inv"))
        return quantized if keep_quantized else quantized.dequantized(dtype)

    def _read(self, name: str) -> Tensor:
        return self._handles[self._file_of[name]].get_tensor(name)

    def _open_files(self) -> tuple[list[str], set[str] | None]:
        """Open every file; return problems and the tensors no statement can be made about (None: any)."""
        problems: list[str] = []
        index = self.path / "model.safetensors.index.json"
        placed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}
        files = sorted({self.path / name for name in placed.values()} or self.path.glob("*.safetensors"))
        if not files:
            pickles = ", ".join(sorted(file.name for file in self.path.glob("*.bin")))
            hint = f"; {pickles} are pickles and are never loaded: convert them" if pickles else ""
            raise FileNotFoundError(f"{self.path} holds no *.safetensors{hint}")
        unread: set[Path] = set()
        for file in files:
            try:
                self._handles[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                unread.add(file)
                problems.append(f"{file.name}: truncated or unreadable: {error}")
                continue
            for name in self._handles[file].keys():  # noqa: SIM118, a safe_open is no mapping
                if name in self._file_of:
                    problems.append(f"{file.name}: {name}: stored a second time, also in {self._file_of[name].name}")
                if placed and placed.get(name) != file.name:
                    problems.append(f"{file.name}: {name}: {index.name} places it in {placed.get(name, 'no file')}")
                self._file_of[name] = file
        if unread and not placed:
            return problems, None
        return problems, {name for name, file in placed.items() if self.path / file in unread}

    def _check_names(self, unread: set[str] | None) -> Iterator[str]:
        """Yield what is missing, extra, mis-shaped or mis-typed, by the headers alone."""
        config, found = self.config, set(self._file_of)
        mtp = tuple(f"model.layers.{config.num_hidden_layers + m}." for m in range(config.num_mtp_modules))
        skipped = {name for name in found if name.startswith(mtp)} if mtp else set()
        if skipped:
            self.notes.append(f"skipped {len(skipped)} tensors of multi-token prediction, such as {min(skipped)}")
        expected = expected_shapes(config)
        for name, shape in expected.items():
            if name in found:
                yield from self._check_tensor(name, shape)
            elif unread is not None and name not in unread:
                yield f"{name}: missing from every file"
        scales = {name for name in found if name.removesuffix("_scale_inv") in expected and name not in expected}
        for name in sorted(found - set(expected) - skipped - scales):
            yield f"{self._file_of[name].name}: {name}: extra, the model of config.json has no such tensor"
        for name in sorted(scales):
            weight = name.removesuffix("_scale_inv")
            if weight in found and self._header(weight)[0] in _FLOATS:
                yield f"{self._file_of[name].name}: {name}: extra, {weight} is {self._header(weight)[0]}, not {_FP8}"
        for name in ("block_sparse_moe.gate.weight", "block_sparse_moe.e_score_correction_bias"):
            stored = {self._header(full)[0] for full in expected if full.endswith(name) and full in found}
            if stored & {"BF16", "F16"}:
                self.notes.append(f"{name} is stored below float32: its rounding moves tokens to other experts")

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> Iterator[str]:
        file = self._file_of[name].name
        dtype, stored = self._header(name)
        if stored != shape:
            yield f"{file}: {name}: shape {list(stored)}, expected {list(shape)}"
        if dtype in _FLOATS:
            return
        if dtype != _FP8 or not _may_be_fp8(name):
            yield f"{file}: {name}: dtype {dtype}, expected one of {', '.join(_FLOATS)}" + (
                f" or {_FP8}" if _may_be_fp8(name) else ""
            )
            return
        if self.config.quantization_config is None:
            yield f"{file}: {name}: dtype {dtype}, but config.json has no quantization_config"
        scale, grid = f"{name}_scale_inv", tuple(-(-size // BLOCK) for size in shape)
        if scale not in self._file_of:
            yield f"{scale}: missing, {name} in {file} is {_FP8}"
            return
        scale_dtype, scale_shape = self._header(scale)
        if scale_shape != grid:
            yield f"{self._file_of[scale].name}: {scale}: shape {list(scale_shape)}, expected {list(grid)}"
        if scale_dtype != "F32":
            yield f"{self._file_of[scale].name}: {scale}: dtype {scale_dtype}, expected F32"

    def _check_scales(self) -> Iterator[str]:
        for name, file in self._file_of.items():
            if name.endswith("_scale_inv") and self._header(name)[0] in _FLOATS:
                bad = int((~torch.isfinite(self._read(name))).sum())
                if bad:
                    yield f"{file.name}: {name}: {bad} scales are NaN or infinite"

    def _header(self, name: str) -> tuple[str, tuple[int, ...]]:
        view = self._handles[self._file_of[name]].get_slice(name)
        return view.get_dtype(), tuple(view.get_shape())


def expected_shapes(config: MiniMaxM2Config) -> dict[str, tuple[int, ...]]:
    """Return every tensor of the model of ``config`` by Hugging Face name; FP8 scales are not among them."""
    hidden, width, inner = config.hidden_size, config.intermediate_size, config.q_width
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}."
        attention, moe = layer + "self_attn.", layer + "block_sparse_moe."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        shapes[attention + "q_proj.weight"] = (inner, hidden)
        shapes[attention + "k_proj.weight"] = (config.kv_width, hidden)
        shapes[attention + "v_proj.weight"] = (config.kv_width, hidden)
        shapes[attention + "o_proj.weight"] = (hidden, inner)
        shapes[attention + "q_norm.weight"] = (inner,)
        shapes[attention + "k_norm.weight"] = (config.kv_width,)
        shapes[moe + "gate.weight"] = (config.num_local_experts, hidden)
        if config.use_routing_bias:
            shapes[moe + "e_score_correction_bias"] = (config.num_local_experts,)
        for expert in range(config.num_local_experts):
            shapes[f"{moe}experts.{expert}.w1.weight"] = (width, hidden)
            shapes[f"{moe}experts.{expert}.w2.weight"] = (hidden, width)
            shapes[f"{moe}experts.{expert}.w3.weight"] = (width, hidden)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _may_be_fp8(name: str) -> bool:
    return name.endswith("_proj.weight") or ".experts." in name


def _concatenate(weights: list[Weight], dtype: torch.dtype, *, what: str) -> Weight:
    quantized = [weight for weight in weights if isinstance(weight, BlockQuantized)]
    if len(quantized) < len(weights):
        return torch.cat([_plain(weight, dtype) for weight in weights])
    ragged = [weight.weight.shape[0] for weight in quantized[:-1] if weight.weight.shape[0] % BLOCK]
    if ragged:
        raise ValueError(f"{what}: {ragged[0]} rows are no multiple of {BLOCK}; load with keep_quantized=False")
    return BlockQuantized(
        torch.cat([weight.weight for weight in quantized]), torch.cat([weight.scale for weight in quantized])
    )


def _stack(weights: list[Weight], dtype: torch.dtype) -> Weight:
    quantized = [weight for weight in weights if isinstance(weight, BlockQuantized)]
    if len(quantized) < len(weights):
        return torch.stack([_plain(weight, dtype) for weight in weights])
    return BlockQuantized(
        torch.stack([weight.weight for weight in quantized]), torch.stack([weight.scale for weight in quantized])
    )


def _plain(weight: Weight, dtype: torch.dtype) -> Tensor:
    return weight.dequantized(dtype) if isinstance(weight, BlockQuantized) else weight
