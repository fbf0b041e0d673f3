"""A checkpoint is read in every stored form, and everything wrong with it stands in one error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config, QuantizationConfig
from minimax_m2.reference.weights import BlockQuantized, Checkpoint, CheckpointError, expected_shapes

# 160 and 24 straddle the 128-wide blocks; 3 heads of 48 make a query width that is not the hidden size.
CONFIG = MiniMaxM2Config(
    vocab_size=11,
    hidden_size=160,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=48,
    rotary_dim=24,
    num_local_experts=3,
    num_experts_per_tok=2,
    quantization_config=QuantizationConfig(),
)
EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


def tensors(config: MiniMaxM2Config = CONFIG, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, each element a different small dyadic number."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: (torch.randint(-8, 9, shape, generator=generator) / 8).to(dtype)
        for name, shape in expected_shapes(config).items()
    }


def quantized(plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Store projections and experts as e4m3 with a distinct scale a block; k/8 is exact in e4m3."""
    stored = dict(plain)
    for name in [name for name in plain if "_proj" in name or ".experts." in name]:
        grid = [-(-size // 128) for size in plain[name].shape]
        stored[name] = plain[name].to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = torch.arange(1.0, 1 + grid[0] * grid[1]).reshape(grid)
    return stored


def write(folder: Path, stored: dict[str, Tensor], *, shards: int = 1) -> Path:
    """Write ``config.json`` and the tensors, dealt over ``shards`` files with an index where there are several."""
    raw = {**dataclasses.asdict(CONFIG), "attn_type_list": [1] * CONFIG.num_hidden_layers}
    raw["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(raw))
    files = [f"model-{shard + 1:05d}-of-{shards:05d}.safetensors" for shard in range(shards)]
    for shard, file in enumerate(files):
        save_file({name: stored[name] for name in sorted(stored)[shard::shards]}, folder / file)
    if shards > 1:
        weight_map = {name: files[position % shards] for position, name in enumerate(sorted(stored))}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_every_float_format_reads_to_the_same_float64(tmp_path: Path, dtype: torch.dtype) -> None:
    plain = tensors()
    layer = Checkpoint(write(tmp_path, tensors(dtype=dtype))).layer(1, torch.float64)
    assert isinstance(layer.w13, Tensor)
    assert torch.equal(layer.w13[2, :24], plain[EXPERT].double())


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_and_one_file_hold_the_same_model(tmp_path: Path, shards: int) -> None:
    plain = tensors()
    checkpoint = Checkpoint(write(tmp_path, plain, shards=shards))
    layer = checkpoint.layer(0, torch.float64)
    assert torch.equal(checkpoint.lm_head(torch.float32), plain["lm_head.weight"])
    assert isinstance(layer.qkv_proj, Tensor)
    prefix = "model.layers.0.self_attn."
    expected = torch.cat([plain[f"{prefix}{name}_proj.weight"] for name in "qkv"]).double()
    assert torch.equal(layer.qkv_proj, expected)


def test_the_scale_multiplies_its_block(tmp_path: Path) -> None:
    plain = tensors()
    layer = Checkpoint(write(tmp_path, quantized(plain))).layer(0, torch.float64)
    o_proj = plain["model.layers.0.self_attn.o_proj.weight"].double()  # [160, 144] in blocks [[1, 2], [3, 4]]
    assert isinstance(layer.o_proj, Tensor)
    assert torch.equal(layer.o_proj[:128, :128], o_proj[:128, :128])
    assert torch.equal(layer.o_proj[:128, 128:], 2 * o_proj[:128, 128:])
    assert torch.equal(layer.o_proj[128:, 128:], 4 * o_proj[128:, 128:])


def test_quantised_weights_can_stay_quantised(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write(tmp_path, quantized(tensors())))
    name = "model.layers.0.self_attn.o_proj.weight"
    kept = checkpoint._weight(name, torch.bfloat16, keep_quantized=True)
    assert isinstance(kept, BlockQuantized)
    assert kept.weight.dtype == torch.float8_e4m3fn
    with pytest.raises(ValueError, match="rows are no multiple of 128; load with keep_quantized=False"):
        checkpoint.layer(0, torch.bfloat16, keep_quantized=True)


def test_the_router_never_falls_below_float32(tmp_path: Path) -> None:
    layer = Checkpoint(write(tmp_path, tensors())).layer(0, torch.bfloat16)
    assert layer.e_score_correction_bias is not None
    assert {layer.gate.dtype, layer.e_score_correction_bias.dtype} == {torch.float32}
    assert layer.input_layernorm.dtype == torch.bfloat16


def test_a_router_stored_in_bfloat16_is_noted(tmp_path: Path) -> None:
    notes = Checkpoint(write(tmp_path, tensors(dtype=torch.bfloat16))).notes
    assert any("gate.weight is stored below float32" in note for note in notes)


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    tied = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    plain = tensors(tied)
    checkpoint = Checkpoint(write(tmp_path, plain), config=tied)
    assert torch.equal(checkpoint.lm_head(torch.float32), plain["model.embed_tokens.weight"])


def test_prediction_layers_are_skipped_with_a_note(tmp_path: Path) -> None:
    extra = {"model.layers.2.enorm.weight": torch.ones(160), "model.layers.4.enorm.weight": torch.ones(160)}
    checkpoint = Checkpoint(write(tmp_path, tensors() | extra))
    assert checkpoint.notes == ["skipped 2 tensors of multi-token prediction, such as model.layers.2.enorm.weight"]


def test_a_layer_past_the_prediction_layers_is_extra(tmp_path: Path) -> None:
    # Layer 20 starts with the digits of layer 2: a prefix without its dot would skip it.
    with pytest.raises(CheckpointError, match=r"model\.layers\.20\.enorm\.weight: extra"):
        Checkpoint(write(tmp_path, tensors() | {"model.layers.20.enorm.weight": torch.ones(160)}))


Damage = Callable[[dict[str, Tensor]], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda t: t.pop(EXPERT), f"{EXPERT}: missing"),
    "extra": (lambda t: t.update({"model.layers.0.bias": torch.ones(1)}), "safetensors: model.layers.0.bias: extra"),
    "shape": (
        lambda t: t.update({EXPERT: t[EXPERT].float().T.contiguous().to(torch.float8_e4m3fn)}),
        rf"safetensors: {EXPERT}: shape \[160, 24\], expected \[24, 160\]",
    ),
    "integer": (lambda t: t.update({EXPERT: t[EXPERT].to(torch.int8)}), rf"safetensors: {EXPERT}: dtype I8, expected"),
    "e5m2": (lambda t: t.update({EXPERT: t[EXPERT].to(torch.float8_e5m2)}), f"{EXPERT}: dtype F8_E5M2, expected"),
    "fp8 norm": (
        lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)}),
        "model.norm.weight: dtype F8_E4M3, expected one of BF16, F16, F32, F64",
    ),
    "no scale": (lambda t: t.pop(f"{EXPERT}_scale_inv"), f"{EXPERT}_scale_inv: missing"),
    "scale shape": (
        lambda t: t.update({f"{EXPERT}_scale_inv": torch.ones(2, 1)}),
        rf"{EXPERT}_scale_inv: shape \[2, 1\], expected \[1, 2\]",
    ),
    "scale dtype": (
        lambda t: t.update({f"{EXPERT}_scale_inv": torch.ones(1, 2).bfloat16()}),
        f"{EXPERT}_scale_inv: dtype BF16, expected F32",
    ),
    "NaN scale": (
        lambda t: t.update({f"{EXPERT}_scale_inv": torch.tensor([[1.0, torch.nan]])}),
        f"{EXPERT}_scale_inv: 1 scales are NaN or infinite",
    ),
    "scale of a plain weight": (
        lambda t: t.update({EXPERT: t[EXPERT].to(torch.bfloat16)}),
        f"{EXPERT}_scale_inv: extra, {EXPERT} is BF16",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("shards", [1, 2])
def test_damage_is_reported_with_tensor_and_expectation(tmp_path: Path, damage: str, shards: int) -> None:
    stored = quantized(tensors())
    harm, message = DAMAGES[damage]
    harm(stored)
    with pytest.raises(CheckpointError, match=message) as error:
        Checkpoint(write(tmp_path, stored, shards=shards))
    assert len(error.value.problems) == 1


def test_all_damages_stand_in_one_error(tmp_path: Path) -> None:
    stored = quantized(tensors())
    for name in ("missing", "extra", "fp8 norm"):
        DAMAGES[name][0](stored)
    with pytest.raises(CheckpointError) as error:
        Checkpoint(write(tmp_path, stored))
    assert len(error.value.problems) == 3


@pytest.mark.parametrize("shards", [1, 2])
def test_a_truncated_file_is_named_once(tmp_path: Path, shards: int) -> None:
    write(tmp_path, tensors(), shards=shards)
    file = sorted(tmp_path.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{file.name}: truncated or unreadable") as error:
        Checkpoint(tmp_path)
    assert len(error.value.problems) == 1


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path, tensors(), shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: truncated or unreadable"):
        Checkpoint(tmp_path)


def test_a_tensor_outside_the_place_of_the_index_is_named(tmp_path: Path) -> None:
    write(tmp_path, tensors(), shards=2)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        index.read_text().replace('"model.norm.weight": "model-00001', '"model.norm.weight": "model-00002')
    )
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: model\.safetensors\.index\.json places it in"):
        Checkpoint(tmp_path)


def test_quantised_weights_need_the_config_to_say_so(tmp_path: Path) -> None:
    plain = dataclasses.replace(CONFIG, quantization_config=None)
    with pytest.raises(CheckpointError, match=r"config\.json has no quantization_config"):
        Checkpoint(write(tmp_path, quantized(tensors())), config=plain)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    write(tmp_path, tensors())
    next(tmp_path.glob("*.safetensors")).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin are pickles and are never loaded"):
        Checkpoint(tmp_path)
