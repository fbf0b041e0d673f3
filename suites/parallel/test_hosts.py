"""The command of the docs, on two hosts: torchrun finds its peers over a network, and who stays away is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minimax_m2.harness import hosts
from minimax_m2.harness.hosts import Host, two_hosts

ENTRIES = str(Path(__file__).with_name("entries.py"))
ABSENCE = hosts.absence()
pytestmark = pytest.mark.skipif(bool(ABSENCE), reason=f"not here: {ABSENCE}")


def torchrun(host: Host, entry: str, *, meet_at: Host) -> list[str]:
    """Two ranks of four, the same line on each host but for its own address."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d",
        f"--rdzv-endpoint={meet_at.address}:29500", f"--local-addr={host.address}",
        "-m", "minimax_m2.harness.ranks", f"{ENTRIES}:{entry}",
    ]  # fmt: skip


def run_on_both(entry: str) -> tuple[list[subprocess.CompletedProcess[str]], list[int]]:
    """What the entry's run printed on each host, and the bytes that each got from the other."""
    with two_hosts() as both:
        started = [host.start(torchrun(host, entry, meet_at=both[0]), OMP_NUM_THREADS="1") for host in both]
        ended = []
        for process in started:
            out, err = process.communicate(timeout=120)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
        return ended, [host.received_bytes() for host in both]


def test_models_over_two_hosts_are_the_model_of_one_rank() -> None:
    ended, received = run_on_both("every_layout")
    assert [done.returncode for done in ended] == [0, 0], ended
    found = json.loads(next(done.stdout for done in ended if done.stdout))
    assert (found["ranks"], found["backend"], found["differences"]) == (4, "gloo", [])
    # The witness that the cable was used: ranks 2 and 3 alone hand in more than this for the models above.
    assert min(received) > 2**16


def test_a_rank_on_the_other_host_that_stays_away_is_named() -> None:
    ended, _ = run_on_both("skipping")
    told = "".join(done.stderr for done in ended)
    assert all(done.returncode for done in ended)
    assert "for rank 3: rank 3 came last to all_reduce of embedding" in told


def test_hosts_share_no_loopback() -> None:
    with two_hosts() as (one, other):
        server = one.start([sys.executable, "-c", "import socket as s; x = s.create_server(('127.0.0.1', 29501)); "
                            "print('up', flush=True); x.accept()"])  # fmt: skip
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        reach = "import socket as s; s.create_connection(('127.0.0.1', 29501), 2)"
        inside, outside = (host.start([sys.executable, "-c", reach]).wait() for host in (other, one))
        server.kill()
    assert inside != 0
    assert outside == 0
