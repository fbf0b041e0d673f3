"""A rank reads its slices and no more, and has the bits of the share that is cut from the whole."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minimax_m2.reference.config import MiniMaxM2Config, QuantizationConfig
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_loading import load_shard
from minimax_m2.reference.sharding_weights import shard
from minimax_m2.reference.weights import BLOCK, BlockQuantized, Checkpoint, ModelWeights, expected_shapes

# Widths that shares straddle: 384 over 8 ranks is 48, and heads of 64 are half a block.
CONFIG = MiniMaxM2Config(
    vocab_size=301, hidden_size=160, intermediate_size=384, num_hidden_layers=2, num_attention_heads=12,
    num_key_value_heads=4, head_dim=64, rotary_dim=32, num_local_experts=5, num_experts_per_tok=2,
    quantization_config=QuantizationConfig(),
)  # fmt: skip
# 2 layers of M2's width with 9 experts: 320 MB.
M2_WIDTH = MiniMaxM2Config(
    num_hidden_layers=2, num_local_experts=9, vocab_size=512, quantization_config=QuantizationConfig()
)


def write(folder: Path, config: MiniMaxM2Config) -> Path:
    """A checkpoint of drawn codes and a distinct scale a block, a file a layer."""
    generator = torch.Generator().manual_seed(7)
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in expected_shapes(config).items():
        files.setdefault("-".join(name.split(".")[1:3]) + ".safetensors", {})[name] = shape
    for file, shapes in files.items():
        stored: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            if "_proj" in name or ".experts." in name:
                grid = [-(-size // BLOCK) for size in shape]
                codes = torch.randint(0, 120, shape, generator=generator, dtype=torch.uint8)
                stored[name] = codes.view(torch.float8_e4m3fn)
                stored[f"{name}_scale_inv"] = torch.arange(1.0, 1 + grid[0] * grid[1]).reshape(grid) / 64
            else:
                stored[name] = torch.randn(shape, generator=generator).bfloat16()
        save_file(stored, folder / file)
    raw = {**dataclasses.asdict(config), "attn_type_list": [1] * config.num_hidden_layers}
    raw["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoint"), CONFIG)


def tensors(weights: ModelWeights) -> dict[str, Tensor]:
    found: dict[str, Any] = {"embed_tokens": weights.embed_tokens, "norm": weights.norm, "lm_head": weights.lm_head}
    for index, layer in enumerate(weights.layers):
        found |= {f"{index} {field.name}": getattr(layer, field.name) for field in dataclasses.fields(layer)}
    quantized = {name: weight for name, weight in found.items() if isinstance(weight, BlockQuantized)}
    for name, weight in quantized.items():
        found |= {
            name: weight.weight.float(),
            f"{name} scale": weight.scale,
            f"{name} block": torch.tensor(weight.block),
        }
    return found


@pytest.mark.parametrize("keep_quantized", [False, True], ids=["dequantised", "e4m3"])
@pytest.mark.parametrize(
    "layout",
    [Layout(), Layout(tp=2), Layout(tp=3), Layout(tp=5), Layout(tp=8), Layout(tp=8, widths="pad"),
     Layout(tp=2, dp=2, ep=2), Layout(dp=7, ep=7, widths="ep")],
    ids=lambda layout: f"tp{layout.tp}-dp{layout.dp}-ep{layout.ep}-{layout.widths}",
)  # fmt: skip
def test_a_loaded_share_is_the_cut_of_the_whole(folder: Path, layout: Layout, keep_quantized: bool) -> None:
    checkpoint = Checkpoint(folder)
    whole = checkpoint.load(torch.float32, keep_quantized=keep_quantized)
    for rank in range(layout.world):
        own = dataclasses.replace(layout, rank=rank)
        actual = tensors(load_shard(checkpoint, own, torch.float32, keep_quantized=keep_quantized))
        expected = tensors(shard(whole, CONFIG, own))
        assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def test_progress_is_told_and_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    told: list[tuple[int, int, str]] = []
    checkpoint = Checkpoint(write(tmp_path, config))
    share = load_shard(checkpoint, Layout(tp=3, rank=2), torch.bfloat16, progress=lambda *news: told.append(news))
    assert share.lm_head is share.embed_tokens
    assert told == [(1, 2, "layers loaded by rank 2"), (2, 2, "layers loaded by rank 2")]


# Prints by how many bytes the peak of the process grew while it loaded, and the bytes of what it then holds.
MEASURED = """
import dataclasses, re, sys, torch
from pathlib import Path
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_loading import load_shard
from minimax_m2.reference.sharding_weights import shard
from minimax_m2.reference.weights import Checkpoint

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

layout = Layout(tp=int(sys.argv[3]), rank=1)
checkpoint = Checkpoint(sys.argv[2])
before = peak()
if sys.argv[1] == "slices":
    share = load_shard(checkpoint, layout, torch.bfloat16, keep_quantized=True)
else:
    share = shard(checkpoint.load(torch.bfloat16, keep_quantized=True), checkpoint.config, layout)
grown, held = peak() - before, [share.embed_tokens, share.lm_head]
for layer in share.layers:
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        held += [value] if isinstance(value, torch.Tensor) else list(value[:2])
print(grown, sum(x.numel() * x.element_size() for x in held))
"""


def peak_and_share(how: str, folder: Path, tp: int) -> tuple[int, int]:
    command = [sys.executable, "-c", MEASURED, how, str(folder), str(tp)]
    peak, share = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(peak), int(share)


# One tensor's slice and its mapped pages at M2's width, and what the allocator keeps.
SLACK = 64 * 2**20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not here: the peak is read from /proc")
def test_a_rank_holds_its_share_and_little_more(tmp_path: Path) -> None:
    write(tmp_path, M2_WIDTH)
    peak, share = peak_and_share("slices", tmp_path, 4)
    assert peak <= 1.2 * share + SLACK
    whole, _ = peak_and_share("whole", tmp_path, 4)
    assert whole > 1.2 * share + SLACK


@pytest.mark.nightly
def test_a_rank_of_an_8_gb_checkpoint_holds_its_share_and_little_more(tmp_path: Path) -> None:
    write(tmp_path, dataclasses.replace(M2_WIDTH, num_hidden_layers=4, num_local_experts=140))
    peak, share = peak_and_share("slices", tmp_path, 8)
    assert peak <= 1.2 * share + 2**30
