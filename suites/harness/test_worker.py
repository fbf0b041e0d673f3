"""A provider in a process of its own: judged as in ours, and nothing it does ends the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import judge, repeat
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.transport import Arena, decoded, encoded
from minimax_m2.harness.verdict import Outcome
from minimax_m2.harness.worker import Worker, provider_in

PLAIN = "minimax_m2.harness.providers.plain:plain"
NORM = "import os, signal, sys, time, torch\ndef rms_norm(x, weight, *, eps):\n    "
RIGHT = "(x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)"
CASE = find_op("rms_norm").case(T=3)

Isolated = Callable[..., Provider]


@pytest.fixture
def isolated(tmp_path: Path) -> Iterator[Isolated]:
    """Isolate ``rms_norm`` with this body in a file of its own."""
    workers = []

    def isolate(body: str) -> Provider:
        (tmp_path / "norm.py").write_text(NORM + body)
        workers.append(Worker(str(tmp_path / "norm.py")))
        return provider_in(workers[-1], name="norm")

    yield isolate
    for worker in workers:
        worker.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[Provider]:
    worker = Worker(PLAIN)
    yield provider_in(worker, name="plain")
    worker.close()


# Strided rows with poisoned gaps, a discrete choice, a packed argument, codes, an op that writes its inputs.
@pytest.mark.parametrize("op", ["rms_norm", "routing", "experts", "fp8_linear", "swiglu_quant", "kv_cache"])
def test_a_correct_provider_passes_in_its_own_process(plain: Provider, op: str) -> None:
    outcomes = {judge(case, plain).outcome for case in sampled(find_op(op), 5, start=1)}
    assert outcomes <= {Outcome.PASS, Outcome.UNSUPPORTED}
    assert Outcome.PASS in outcomes


def test_two_calls_give_equal_bits_across_processes(plain: Provider) -> None:
    assert repeat(CASE, plain)


@pytest.mark.parametrize(
    "body, outcome, evidence",
    [
        ("return x.clone()", Outcome.WRONG, "budget"),
        ("raise ValueError('no such width')", Outcome.RAISED, "ValueError: no such width"),
        ("sys.exit(0)", Outcome.RAISED, "SystemExit"),
        ("x.zero_(); return x.clone()", Outcome.WROTE_INPUT, "wrote to its input x"),
        ("return 3", Outcome.WRONG_DTYPE, "y is a int"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", Outcome.CRASHED, "died by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGILL)", Outcome.CRASHED, "died by SIGILL"),
        ("os.abort()", Outcome.CRASHED, "died by SIGABRT"),
        ("print('out of tiles', flush=True); os._exit(0)", Outcome.CRASHED, "exit code 0 during rms_norm; it printed"),
        ("os.closerange(3, 100); time.sleep(60)", Outcome.CRASHED, "closed its end"),
    ],
)
def test_each_way_to_fail_has_its_verdict(isolated: Isolated, body: str, outcome: Outcome, evidence: str) -> None:
    verdict = judge(CASE, isolated(body))
    assert verdict.outcome is outcome
    assert evidence in verdict.evidence[0]


def test_a_provider_that_hangs_is_killed_at_its_deadline(tmp_path: Path) -> None:
    (tmp_path / "norm.py").write_text(f"{NORM}time.sleep(3600 * (x.shape[0] == 3)); return {RIGHT}")
    worker = Worker(str(tmp_path / "norm.py"))
    provider = provider_in(worker, name="norm")
    before = judge(CASE.but(T=2), provider)
    worker.deadline = 1.0
    verdict = judge(CASE, provider)
    assert before.passed
    assert verdict.outcome is Outcome.TIMED_OUT
    assert verdict.evidence == ("rms_norm: no answer to rms_norm after 1 s; the process was killed",)


def test_output_without_end_is_read_and_dropped(isolated: Isolated) -> None:
    # 64 MB are a thousand times what a pipe holds.
    provider = isolated(f"[os.write(1, b'x' * 2**20) for _ in range(64)]; return {RIGHT}")
    assert judge(CASE, provider).passed


def test_the_run_goes_on_in_a_new_process(isolated: Isolated) -> None:
    provider = isolated(f"if x.shape[0] == 3: os._exit(3)\n    return {RIGHT}")
    verdicts = [judge(case, provider) for case in (CASE, CASE.but(T=2), CASE, CASE.but(T=1))]
    assert [v.outcome for v in verdicts] == [Outcome.CRASHED, Outcome.PASS, Outcome.CRASHED, Outcome.PASS]


def test_a_packed_value_of_a_process_that_ended_is_refused(plain: Provider) -> None:
    worker = Worker(PLAIN)
    provider = provider_in(worker, name="plain")
    pack, call = provider.functions("pack_fp8_linear"), provider.functions("fp8_linear")
    assert pack is not None
    assert call is not None
    packed = pack(torch.zeros(128, 128).to(torch.float8_e4m3fn), torch.ones(1, 1))
    worker.close()
    with pytest.raises(ValueError, match="pack it again"):
        call(torch.zeros(1, 128), packed)
    worker.close()


def test_a_provider_that_cannot_be_loaded_says_why(isolated: Isolated) -> None:
    with pytest.raises(ValueError, match=r"norm\.py, line 4, could not be loaded: ZeroDivisionError"):
        isolated("pass\n1 / 0")


def test_strides_gaps_and_aliases_survive_the_crossing() -> None:
    arena = Arena(os.memfd_create("test"))
    whole = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    left, right = whole[:, :4], whole[1:, 6:9]
    sent = decoded(encoded((left, right, torch.int64, None, 2.5), arena), Arena(arena._descriptor), {})
    assert [tuple(t.stride()) for t in sent[:2]] == [(12, 1), (12, 1)]
    assert torch.equal(sent[0], left)
    assert torch.equal(sent[1], right)
    assert sent[0].untyped_storage().data_ptr() == sent[1].untyped_storage().data_ptr()
    assert sent[2:] == (torch.int64, None, 2.5)


def test_outputs_of_one_size_do_not_pass_for_each_other(isolated: Isolated) -> None:
    """Made anew one after the other, their memory may be the same."""
    provider = isolated("return tuple(torch.full((64, 8), float(i)) for i in range(4))")
    function = provider.functions("rms_norm")
    assert function is not None
    assert [float(x.mean()) for x in function(torch.ones(1, 8), torch.ones(8), eps=0.0)] == [0.0, 1.0, 2.0, 3.0]


def test_what_cannot_cross_is_refused_by_type() -> None:
    with pytest.raises(TypeError, match="a Case cannot pass"):
        encoded(Case({"op": "routing"}), Arena(os.memfd_create("test")))
