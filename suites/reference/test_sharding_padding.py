"""Configs and weights are padded without the traps that engines fell into; each test holds one trap beside it."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from minimax_m2.reference.rank_logging import log_debug_on_rank0, log_info_on_rank0, log_warning_on_rank0
from minimax_m2.reference.sharding_padding import (
    adjust_config_for_tp,
    get_num_heads_padding_size,
    narrow_padded_param_and_loaded_weight,
    pad_loaded_weight,
    resolve_head_dim,
    sharded_weight_loader,
)

M2: dict[str, Any] = {
    "hidden_size": 3072, "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 1536,
}  # fmt: skip
OMNI: dict[str, Any] = {
    "thinker_config": {
        "text_config": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32,
                        "linear_num_key_heads": 4, "linear_num_value_heads": 12, "moe_intermediate_size": 40},
        "vision_config": {"d_model": 80, "num_heads": 5, "intermediate_size": 99},
        "audio_config": {"d_model": 60, "encoder_attention_heads": 3},
    }
}  # fmt: skip


@pytest.mark.parametrize(
    "tp, q, kv, width",
    [(1, 48, 8, 1536), (3, 54, 9, 1536), (5, 60, 10, 1920), (6, 72, 12, 1536), (7, 84, 14, 1792), (8, 48, 8, 2048),
     (16, 48, 16, 2048), (48, 48, 48, 6144)],
)  # fmt: skip
def test_m2_is_padded_until_ranks_divide_it(tp: int, q: int, kv: int, width: int) -> None:
    adjusted = adjust_config_for_tp(M2, tp, 128)
    keys = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim")
    assert [adjusted[key] for key in keys] == [q, kv, width, 128]


@pytest.mark.parametrize("tp", range(1, 65))
def test_true_counts_are_kept_and_the_given_config_too(tp: int) -> None:
    before = copy.deepcopy(M2)
    twice = adjust_config_for_tp(adjust_config_for_tp(M2, tp, 128), tp, 128)
    true = {key: twice.get(f"original_{key}", twice[key]) for key in M2}
    assert (true, M2) == (before, before)


def test_every_tower_is_padded_by_its_own_names() -> None:
    thinker = adjust_config_for_tp(OMNI, 4, None)["thinker_config"]
    text, vision, audio = (thinker[f"{name}_config"] for name in ("text", "vision", "audio"))
    assert (text["num_attention_heads"], text["num_key_value_heads"]) == (8, 4)
    assert (text["linear_num_key_heads"], text["linear_num_value_heads"], text["moe_intermediate_size"]) == (4, 12, 128)
    assert (vision["num_heads"], vision["original_num_heads"], vision["head_dim"]) == (8, 5, 16)
    assert (audio["encoder_attention_heads"], audio["head_dim"], vision["intermediate_size"]) == (4, 20, 99)


def test_a_padded_count_does_not_change_the_width_of_a_head() -> None:
    vision = adjust_config_for_tp(OMNI, 4, None)["thinker_config"]["vision_config"]
    assert resolve_head_dim(vision, vision["num_heads"], is_text=False) == 16
    assert vision["d_model"] // vision["num_heads"] == 10  # the trap: dividing again


@pytest.mark.parametrize(
    "config, is_text, expected",
    [
        (M2, True, 128),
        ({"qk_head_dim": 24, "head_dim": 32}, True, 24),
        ({"text_config": {"head_dim": 16}, "head_dim": 32}, True, 16),
        ({"qk_head_dim": 24, "head_dim": 32}, False, 32),
        ({"d_model": 96}, False, 2),
        ({"text_config": {"hidden_size": 480}, "hidden_size": 96}, True, 10),
    ],
)
def test_the_width_of_a_head_is_what_the_config_says(config: dict[str, Any], is_text: bool, expected: int) -> None:
    assert resolve_head_dim(config, 48, is_text=is_text) == expected


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: resolve_head_dim({}, 48), "head_dim is None: the config has no head_dim, hidden_size or d_model"),
        (lambda: resolve_head_dim({"hidden_size": 100}, 48), "hidden size 100 over 48 heads"),
        (lambda: get_num_heads_padding_size(3, 128, None), "head_dim is None; call resolve_head_dim first"),
        (lambda: adjust_config_for_tp({"num_attention_heads": 4}, 3, 128), "head_dim is None"),
        (lambda: adjust_config_for_tp(M2, 0, 128), "tp=0; expected at least 1"),
        (lambda: pad_loaded_weight(torch.zeros(50), 0, [2, 96]), r"\[2, 96\] do not divide 50 in proportion"),
        (lambda: pad_loaded_weight(torch.zeros(50), 0, [40, 60], true_sizes=[20, 31]), "do not add up to the 50"),
        (lambda: pad_loaded_weight(torch.zeros(50), 0, [40, 20], true_sizes=[20, 30]), "cut parts off: 30 to 20"),
    ],
)
def test_what_cannot_be_padded_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("tp", [1, 3, 4, 7])
def test_padded_heads_are_whole_blocks_on_every_rank(tp: int, head_dim: int) -> None:
    size = get_num_heads_padding_size(tp, 128, head_dim)
    assert size // tp * head_dim % 128 == 0
    assert size // tp == math.lcm(head_dim, 128) // head_dim  # and no smaller count is


def test_the_lcm_over_the_block_leaves_parts_of_blocks() -> None:
    trapped = math.lcm(192, 128) // 128
    assert (trapped * 192 % 128, get_num_heads_padding_size(1, 128, 192) * 192 % 128) == (64, 0)
    assert get_num_heads_padding_size(5, None, 192) == 5


def test_parts_are_padded_each_at_its_own_end() -> None:
    weight = torch.arange(1, 50)[:, None] * torch.ones(1, 3)
    padded = pad_loaded_weight(weight, 0, [2, 96])
    assert torch.equal(padded[:2], torch.tensor([[1.0], [0.0]]).expand(2, 3))
    assert torch.equal(padded[2:50], weight[1:])
    assert not padded[50:].any()
    assert [int(size / 98 * 49) for size in (2, 96)] == [0, 48]  # the trap: a float's proportion loses a row


def test_parts_padded_differently_need_their_true_sizes() -> None:
    weight = torch.arange(1.0, 13.0)
    assert pad_loaded_weight(weight, 0, [9, 6], true_sizes=[6, 6]).tolist() == [
        *range(1, 7), 0, 0, 0, *range(7, 13)]  # fmt: skip


@pytest.mark.parametrize("rank, expected", [(0, [1, 2, 3]), (1, [4, 5, 0]), (2, [0, 0, 0]), (9, [0, 0, 0])])
def test_a_share_beyond_the_weight_is_zero(rank: int, expected: list[int]) -> None:
    param = torch.full((2, 3), torch.nan)
    sharded_weight_loader(1, rank=rank)(param, torch.arange(1.0, 6.0).expand(2, 5))
    assert param.tolist() == [expected] * 2


def test_a_shard_within_a_parameter_leaves_its_neighbours() -> None:
    param = torch.full((8,), 7.0)
    into, share = narrow_padded_param_and_loaded_weight(param, torch.arange(5.0), 2, 3, 0, 4)
    assert (into.tolist(), share.tolist()) == ([7, 7], [3, 4])
    assert param.tolist() == [7, 7, 7, 7, 0, 0, 7, 7]


LOGS = {"debug": log_debug_on_rank0, "info": log_info_on_rank0, "warning": log_warning_on_rank0}


@pytest.mark.parametrize("level", LOGS)
def test_a_message_is_said_once_and_before_there_are_ranks(
    level: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("ranks")
    caplog.set_level(logging.DEBUG, logger="ranks")
    LOGS[level](logger, "tp=%d", 3)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        LOGS[level](logger, "rank %d", rank)
    assert [record.getMessage() for record in caplog.records] == ["tp=3", "rank 0"]
    assert {record.levelname for record in caplog.records} == {level.upper()}
    assert {record.filename for record in caplog.records} == {"test_sharding_padding.py"}
