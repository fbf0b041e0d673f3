"""Real processes over gloo compute what one rank does, and a rank that stays away is named within seconds."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from minimax_m2.harness.ranks import RanksFailed, launch
from minimax_m2.harness.roll_call import Hang, RollCall
from minimax_m2.reference.communicator import Communicator, Threads

ENTRIES = str(Path(__file__).with_name("entries.py"))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_models_over_gloo_are_the_model_of_one_rank(ranks: int) -> None:
    told = [json.loads(text) for text in launch(f"{ENTRIES}:every_layout", ranks=ranks, deadline_s=60)]
    assert [(found["backend"], found["splits"], found["differences"]) for found in told] == [("gloo", 6, [])] * ranks


def test_gloo_and_simulated_ranks_agree() -> None:
    collectives = runpy.run_path(ENTRIES)["collectives"]
    assert launch(f"{ENTRIES}:collectives", ranks=3, deadline_s=60) == Threads(3).run(collectives)


HUNG = {
    "skipping": r"HANG: rank [01] waited 2 s in all_reduce of o_proj of layer 3 "
    r"\(number 1, called at parallel/entries.py:\d+ in skipping\) for rank 2: rank 2 came last to "
    r"all_reduce of embedding \(number 0, called at parallel/entries.py:\d+ in skipping\)",
    "dying": r"CRASHED: rank 1 was ended by SIGKILL; it came last to all_reduce of embedding",
    "reordering": r"HANG: rank \d came to all_reduce of \w+ of layer 3 .*; rank \d came to all_reduce of \w+ of layer",
    "raising": r"RAISED: rank 0: KeyError: 'experts.7.w1'; it has come to no collective",
}


@pytest.mark.parametrize("entry", HUNG)
def test_what_would_hang_ends_in_seconds_and_names_the_rank(entry: str) -> None:
    start = time.monotonic()
    with pytest.raises(RanksFailed, match=HUNG[entry]):
        launch(f"{ENTRIES}:{entry}", ranks=3, deadline_s=2)
    # The deadline, and starting three processes on a machine that other work shares; gloo alone waits half an hour.
    assert time.monotonic() - start < 60


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
