"""EAGLE3's draft gets the states of one device, from every rank of every layout, batches and idle groups included."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minimax_m2.harness.parallel import CONFIGS, Split, alone, another_order, outcomes
from minimax_m2.reference.eagle3 import capture_keys, draft_input

LAYERS = CONFIGS["groups of 3"].num_hidden_layers
DATA_PARALLEL = Split(config="groups of 3", tp=2, dp=2, ep=4, dispatch="all_to_all", tokens=((3, 4), (2, 5)))


@pytest.mark.parametrize(
    "layers, drafted, keys", [(62, None, (2, 31, 59)), (62, (1, 30, 58), (2, 31, 59)), (62, (61, 0), (62, 1))]
)
def test_a_drafted_layer_is_its_output(layers: int, drafted: tuple[int, ...] | None, keys: tuple[int, ...]) -> None:
    assert capture_keys(layers, drafted=drafted) == keys


@pytest.mark.parametrize("layers, drafted, message", [(5, None, "num_layers=5"), (62, (62,), "drafted layer 62")])
def test_layers_that_are_not_there_are_refused(layers: int, drafted: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        capture_keys(layers, drafted=drafted)


@pytest.mark.parametrize(
    "split",
    [DATA_PARALLEL, dataclasses.replace(DATA_PARALLEL, dispatch="gather", ep=1),
     dataclasses.replace(DATA_PARALLEL, tokens=((1, 0), (2, 5)))],
    ids=["all_to_all", "gather", "idle group"],
)  # fmt: skip
def test_ranks_hand_the_draft_what_one_device_does(split: Split) -> None:
    keys = capture_keys(LAYERS, drafted=(LAYERS - 1, 0))
    for rank, found in enumerate(outcomes(split)):
        group = split.layout(rank).dp_rank
        actual, expected = (draft_input(each.states, keys) for each in (found, alone(split, group)))
        assert actual.shape == (*split.tokens[group], 2 * CONFIGS[split.config].hidden_size)
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        # derived: the sums of ranks in another order, as parallel.another_order says
        assert torch.allclose(actual, expected, rtol=0, atol=another_order(CONFIGS[split.config]) * largest)
