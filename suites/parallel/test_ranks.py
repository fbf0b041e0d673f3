"""Real processes, over gloo or a GPU each, compute what one rank does; one that stays away is named in seconds."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minimax_m2.harness.collective_order import SUMS
from minimax_m2.harness.judge import expected
from minimax_m2.harness.op import find_op
from minimax_m2.harness.ranks import RanksFailed, launch, shortage
from minimax_m2.harness.roll_call import Hang, RollCall
from minimax_m2.reference.communicator import Communicator, Threads

ENTRIES = str(Path(__file__).with_name("entries.py"))
BACKENDS = {"cpu": "gloo", "gpu": "nccl"}
MARKS = {"cpu": pytest.mark.cpu, "gpu": pytest.mark.gpu}
Keep = Callable[[str, object], None]


def on(device: str, ranks: int) -> Any:
    """A device and a number of ranks as a parameter: marked, and skipped with the reason where it cannot hold them."""
    reason = shortage(device, ranks)
    skipped = pytest.mark.skipif(reason is not None, reason=f"not here: {reason}")
    return pytest.param(device, ranks, id=f"{BACKENDS[device]}-{ranks}", marks=[MARKS[device], skipped])


def told_by(entry: str, device: str, ranks: int, keep: Keep) -> list[Any]:
    """What every rank found, from which back end; ``pytest --junitxml`` keeps the first one's words."""
    said = launch(f"{ENTRIES}:{entry}", ranks=ranks, device=device, deadline_s=120)
    keep("found", said[0])
    found = [json.loads(text) for text in said]
    assert [each["backend"] for each in found] == [BACKENDS[device]] * ranks
    return found


@pytest.mark.parametrize(("device", "ranks"), [on("cpu", 2), on("cpu", 3), on("cpu", 4), on("gpu", 2)])
def test_models_over_ranks_are_the_model_of_one(device: str, ranks: int, record_property: Keep) -> None:
    told = told_by("every_layout", device, ranks, record_property)
    assert [(found["splits"], found["differences"]) for found in told] == [(8, [])] * ranks


@pytest.mark.parametrize(("device", "ranks"), [on("cpu", 3), on("gpu", 2)])
def test_real_and_simulated_ranks_agree(device: str, ranks: int) -> None:
    collectives = runpy.run_path(ENTRIES)["collectives"]
    found = launch(f"{ENTRIES}:collectives", ranks=ranks, device=device, deadline_s=120)
    assert found == Threads(ranks).run(collectives)


def test_the_experts_of_whole_blocks_show_more_than_the_noise_of_tensor_cores() -> None:
    pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")
    from minimax_m2.kernels.gpu.experts import contract

    case = runpy.run_path(ENTRIES)["whole_blocks"](2)

    assert expected(find_op("experts"), case, contract(case))[1] == ()


@pytest.mark.parametrize(("device", "ranks"), [on("cpu", 2), on("gpu", 2)])
def test_our_kernels_over_ranks_keep_the_budgets_of_one(device: str, ranks: int, record_property: Keep) -> None:
    for found in told_by("every_op", device, ranks, record_property):
        assert found["wrong"] == []
        assert found["cases"]["pass"] >= 2 * 8, found


@pytest.mark.parametrize(("device", "ranks"), [on("cpu", 2), on("gpu", 2)])
def test_a_trained_model_over_ranks_reads_as_on_one(device: str, ranks: int, record_property: Keep) -> None:
    told = told_by("trained_model", device, ranks, record_property)
    # All ranks have the logits of all tokens, but for groups of their own, which here read the same text.
    assert len({json.dumps(found["scores"]) for found in told}) == 1
    scores = told[0]["scores"]
    # A sum in another order moves a model no further than roundings of its own do; one of them flips experts.
    plain = scores["reference bfloat16"]["divergence"]
    limits = {dtype: 2 * max(plain, scores[f"alone {dtype}"]["divergence"]) for dtype in ("bfloat16", "e4m3")}
    assert {name: found for name, found in scores.items() if found["divergence"] > limits[name.split()[1]]} == {}


@pytest.mark.parametrize(("device", "ranks"), [on("cpu", 2), on("gpu", 2)])
def test_a_layer_calls_its_collectives_on_every_back_end(device: str, ranks: int, record_property: Keep) -> None:
    for found in told_by("counted", device, ranks, record_property):
        assert len(found["counts"]) == 5
        assert all(told["collectives"] == told["expected"] for told in found["counts"].values())


@pytest.mark.parametrize(("device", "ranks"), [on("cpu", 2), on("gpu", 2)])
def test_uneven_and_idle_groups_decode_as_one_step_of_a_fixed_size(
    device: str, ranks: int, record_property: Keep
) -> None:
    told = told_by("padded_groups", device, ranks, record_property)
    steps = [[step["sequences"] for step in found["steps"]] for found in told]
    assert steps == [[3] * 6, [1] * 3 + [0] * 3]
    assert all(step["same_bits"] and step["far"] <= found["allowed"] for found in told for step in found["steps"]), told


@pytest.mark.parametrize(("device", "ranks"), [on("cpu", 3), on("gpu", 2)])
def test_sums_are_graded_by_the_order_of_their_ranks(device: str, ranks: int, record_property: Keep) -> None:
    told = [found["grades"] for found in told_by("order_of_sums", device, ranks, record_property)]
    grades = Counter(grade for found in told for each in found.values() for grade in each.values())
    assert all(set(found) == set(SUMS) for found in told)
    assert grades["wrong"] == 0, told
    assert all(each["repeated"] == "bits" for found in told for each in found.values())
    # Two parts have one sum, whoever brings them; of three the ring's order shows.
    assert (grades["budget"] > 0) == (ranks > 2), told


HUNG = {
    "skipping": r"HANG: rank \d waited \d+ s in all_reduce of o_proj of layer 3 "
    r"\(number 1, called at parallel/entries.py:\d+ in skipping\) for rank {last}: rank {last} came last to "
    r"all_reduce of embedding \(number 0, called at parallel/entries.py:\d+ in skipping\)",
    "dying": r"CRASHED: rank 1 was ended by SIGKILL; it came last to all_reduce of embedding",
    "reordering": r"HANG: rank \d came to all_reduce of \w+ of layer 3 .*; rank \d came to all_reduce of \w+ of layer",
    "raising": r"RAISED: rank 0: KeyError: 'experts.7.w1'; it has come to no collective",
}


@pytest.mark.parametrize(("device", "ranks"), [on("cpu", 3), on("gpu", 2)])
@pytest.mark.parametrize("entry", HUNG)
def test_what_would_hang_ends_in_seconds_and_names_the_rank(
    entry: str, device: str, ranks: int, record_property: Keep
) -> None:
    start = time.monotonic()
    with pytest.raises(RanksFailed, match=HUNG[entry].replace("{last}", str(ranks - 1))) as ended:
        launch(f"{ENTRIES}:{entry}", ranks=ranks, device=device, deadline_s=2 if device == "cpu" else 8)
    told = {"what": entry, "told": str(ended.value), "seconds": round(time.monotonic() - start, 1)}
    record_property("found", json.dumps({"ranks": ranks, "backend": BACKENDS[device], **told}))
    # The deadline, and starting processes on a machine that other work shares; gloo alone waits half an hour.
    assert time.monotonic() - start < 60


def test_more_ranks_than_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ranks need a gpu each, there are \d|torch sees no CUDA device"):
        launch(f"{ENTRIES}:collectives", ranks=4096, device="gpu")


def test_torchrun_starts_the_same_entry() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "-m", "minimax_m2.harness.ranks", f"{ENTRIES}:collectives"]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("[[100.0, 102.0, 104.0, 106.0]")


def test_labels_tell_apart_what_no_back_end_would(tmp_path: Path) -> None:
    stores: Any = torch.distributed

    def rank_main(rank: Communicator) -> float:
        called = RollCall(rank, stores.FileStore(str(tmp_path / "roll"), 2), deadline_s=5)
        label = "o_proj" if called.rank else "statistics"
        return float(called.all_reduce(torch.ones(1), label=label))

    with pytest.raises(Hang, match=r"rank \d came to all_reduce of \w+ .*; rank \d came to all_reduce of \w+"):
        Threads(2).run(rank_main)
