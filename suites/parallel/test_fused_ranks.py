"""Kernels of a GPU each that sum over the ranks: right, replayed by the thousand, in a whole model, and never stuck."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minimax_m2.harness.ranks import RanksFailed, launch, shortage

ENTRIES = str(Path(__file__).with_name("fused_entries.py"))
REASON = shortage("gpu", 2)
Keep = Callable[[str, object], None]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"not here: {REASON}")]


def told_by(entry: str, keep: Keep) -> list[Any]:
    """What both ranks found; ``pytest --junitxml`` keeps the first one's words."""
    said = launch(f"{ENTRIES}:{entry}", ranks=2, device="gpu", deadline_s=120)
    keep("found", said[0])
    return [json.loads(text) for text in said]


def test_cases_keep_the_budgets_of_one_rank_and_of_the_reduction(record_property: Keep) -> None:
    for found in told_by("fused_cases", record_property):
        assert found["wrong"] == []
        assert min(found["passed"].values()) >= 24


def test_thousands_of_replays_give_what_was_sent(record_property: Keep) -> None:
    for found in told_by("fused_replays", record_property):
        assert found["wrong"] == 0
        assert found["sums"] >= 10_000


def test_a_captured_decode_is_the_step_and_one_rank_s_model(record_property: Keep) -> None:
    for found in told_by("fused_decode", record_property):
        assert all(step["same_bits"] and step["far"] <= found["allowed"] for step in found["steps"]), found


def test_a_trained_model_reads_as_by_other_sums(record_property: Keep) -> None:
    scores = told_by("fused_model", record_property)[0]["scores"]
    # A sum in another order moves a model no further than roundings of its own do; one of them flips experts.
    limits = {dtype: 2 * max(scores[f"{name} {dtype}"]["divergence"] for name in ("alone", "tensor"))
              for dtype in ("bfloat16", "e4m3")}  # fmt: skip
    assert {name: found for name, found in scores.items() if found["divergence"] > limits[name.split()[1]]} == {}


def test_a_rank_that_stays_away_is_named_and_its_rows_are_no_numbers(record_property: Keep) -> None:
    found, last = told_by("fused_missing", record_property)
    assert found["missing"] == {"0": [1, 7, None]}
    assert found["rows are nan"]
    assert found["seconds"] < 20
    assert last["missing"] == {}


HUNG = {
    "fused_skipping": r"HANG: rank 0 waited 2 s in the kernel that sums o_proj of layer 3 for rank 1: rank 1 has not "
    "come to it",
    "fused_reordering": r"HANG: rank \d waited 2 s in the kernel that sums \w+ of layer 3 for rank \d: rank \d came to "
    r"\w+ of layer 3",
}


@pytest.mark.parametrize("entry", HUNG)
def test_what_would_hang_ends_in_seconds_and_names_the_rank(entry: str, record_property: Keep) -> None:
    start = time.monotonic()
    with pytest.raises(RanksFailed, match=HUNG[entry]) as ended:
        launch(f"{ENTRIES}:{entry}", ranks=2, device="gpu", deadline_s=60)
    record_property("found", json.dumps({"what": entry, "told": str(ended.value)}))
    assert time.monotonic() - start < 120
