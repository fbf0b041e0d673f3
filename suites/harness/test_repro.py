"""A failure becomes small, and a script that fails without the harness."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minimax_m2.harness.commands_corpus import write_smallest
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import from_file
from minimax_m2.harness.repro import bound, literal
from minimax_m2.harness.shrink import shrunk, simpler_values

RIGHT = "x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps) * weight.float()"
NORM = f"import os, torch\ndef rms_norm(x, weight, *, eps):\n    y = ({RIGHT}).to(x.dtype)\n    "
LAST_COLUMN = NORM + "y[:, -1] = 0; return y\n"
BIAS_IGNORED = """
import torch
def routing(logits, bias, *, top_k, renormalize=True, scoring="sigmoid", scale=1.0, eps=0.0,
            indices_dtype=torch.int32, num_valid=None):
    score = torch.sigmoid(logits.float()) if scoring == "sigmoid" else logits.float().softmax(-1)
    ids = score.topk(top_k, -1).indices
    weights = score.gather(1, ids)
    weights = weights / (weights.sum(-1, keepdim=True) + eps) if renormalize else weights
    padding = torch.arange(len(ids))[:, None] >= (len(ids) if num_valid is None else num_valid)
    return (weights * scale).masked_fill(padding, 0.0), ids.masked_fill(padding, -1).to(indices_dtype)
"""
NIGHTLY = pytest.mark.nightly
LARGE_NORM = find_op("rms_norm").case(T=17, H=65, gap=3, dtype="float16", regime="heavy", seed=9)


def test_hypothesis_shrinks_from_the_failing_case_on() -> None:
    op = find_op("rms_norm")
    found = shrunk(op, LARGE_NORM, lambda case: case.number("T") >= 2 and case.word("regime") == "heavy")
    # Every field that the failure does not need has the first value that the op draws.
    assert found == op.case(T=2, regime="heavy")


def test_what_no_smaller_case_fails_stays_as_it_is() -> None:
    assert shrunk(find_op("rms_norm"), LARGE_NORM, lambda case: case == LARGE_NORM) == LARGE_NORM


def test_a_case_that_cannot_be_built_is_no_smaller_failure() -> None:
    def fails(case: object) -> bool:
        if case != LARGE_NORM:
            raise ValueError("no such size")
        return True

    assert shrunk(find_op("rms_norm"), LARGE_NORM, fails) == LARGE_NORM


def test_values_become_zeros_where_they_do_not_matter() -> None:
    x = torch.arange(1.0, 17).view(2, 8)
    found = simpler_values({"x": x, "eps": 1.0}, lambda given: float(given["x"][1, 3]) == 12)
    assert found["x"].nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([[1.5, -0.0], [float("inf"), 3e-39]]),
        torch.full((3, 50), 0.25, dtype=torch.bfloat16),
        torch.arange(300, dtype=torch.int32).view(3, 100),
        torch.randn(100, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn),
    ],
    ids=("few", "equal", "many", "codes"),
)
def test_a_literal_makes_the_same_bits(x: torch.Tensor) -> None:
    space: dict[str, object] = {"torch": torch, "inf": float("inf"), "nan": float("nan")}
    exec("import base64, zlib\n" + __import__("minimax_m2.harness.repro", fromlist=["HELPER"]).HELPER, space)
    exec("\n".join(bound("x", x)), space)
    again = space["x"]
    assert isinstance(again, torch.Tensor)
    assert again.dtype == x.dtype
    assert torch.equal(again.view(torch.uint8), x.view(torch.uint8)), literal(x)


@pytest.mark.parametrize(
    "op, code, told",
    [
        ("rms_norm", LAST_COLUMN, ": actual 0, expected "),
        ("routing", BIAS_IGNORED, "ids of row 0:"),
        pytest.param("rms_norm", NORM + "raise KeyError('no such width')\n", "no such width", marks=NIGHTLY),
        pytest.param("rms_norm", NORM + "return y.double()\n", "wrong", marks=NIGHTLY),
        pytest.param("rms_norm", NORM + "os.abort()\n", "", marks=NIGHTLY),
    ],
    ids=("element", "choice", "raised", "dtype", "crash"),
)
def test_a_script_fails_with_torch_alone(tmp_path: Path, op: str, code: str, told: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    case = LARGE_NORM if op == "rms_norm" else find_op(op).case(T=3, E=16, K=4, seed=3)
    said, verdict = write_smallest(case, from_file(file), "", tmp_path, seconds=6)
    assert verdict is not None
    script = tmp_path / f"repro_{verdict.case.id}.py"
    assert said == f"wrote {script}"
    assert len(script.read_text().splitlines()) <= 80
    assert "minimax_m2" not in script.read_text()
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr


def test_a_script_is_right_once_its_provider_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(LAST_COLUMN)
    _, verdict = write_smallest(LARGE_NORM, from_file(file), "", tmp_path, seconds=6)
    assert verdict is not None
    file.write_text(NORM + "return y\n")
    script = f"repro_{verdict.case.id}.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "right: the failure is gone")


def test_what_only_the_harness_sees_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NORM + "x.zero_(); return y\n")
    said, verdict = write_smallest(LARGE_NORM, from_file(tmp_path / "mine.py"), "", tmp_path, seconds=6)
    assert verdict is not None
    assert said.startswith("no script: wrote its input takes the harness to see: m2check repro ")
    assert list(tmp_path.glob("repro_*")) == []
