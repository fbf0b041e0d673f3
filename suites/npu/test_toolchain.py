"""What is missing is said, kept answers are those of the same question, and a demanded level is no skip."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from minimax_m2.harness.npu import toolchain
from minimax_m2.harness.npu.planned import read
from minimax_m2.harness.npu.toolchain import Compiler, Request, absence, reason_to_skip

KERNEL = Path(__file__).with_name("refused_kernels.py")
SIGNATURE = (("x_ptr", "*fp32"), ("y_ptr", "*fp32"), ("rows", "i32"))


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(toolchain.ENVIRONMENT_VARIABLE, str(tmp_path / "none"))


@pytest.mark.usefixtures("nowhere")
def test_a_toolchain_that_is_not_here_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(toolchain.DEMAND_VARIABLE, raising=False)
    assert reason_to_skip("N2") == "Huawei's compilers are not in none; run make npu-toolchain"


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("demanded", "level"), [("N3a", "N1"), ("N3a", "N3a"), ("N1", "N1")], ids=["below", "the highest", "the lowest"]
)
def test_a_demanded_level_fails_without_it(demanded: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(toolchain.DEMAND_VARIABLE, demanded)
    with pytest.raises(RuntimeError, match=f"NPU_MIN_LEVEL={demanded} demands {level}, but Huawei's"):
        reason_to_skip(level)


@pytest.mark.usefixtures("nowhere")
def test_a_level_above_the_demanded_one_is_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(toolchain.DEMAND_VARIABLE, "N1")
    assert reason_to_skip("N2")


def test_a_level_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(toolchain.DEMAND_VARIABLE, "N9")
    with pytest.raises(RuntimeError, match="NPU_MIN_LEVEL=N9 is no level"):
        reason_to_skip("N1")


@pytest.mark.skipif(bool(absence()), reason=f"not here: {absence()}")
def test_an_answer_is_kept_until_something_changes(tmp_path: Path) -> None:
    copy = tmp_path / "kernels.py"
    copy.write_text(KERNEL.read_text())
    request = Request(stage="lower", file=str(copy), kernel="doubled", signature=SIGNATURE, constants=(("N", 1024),))
    one = Compiler(tmp_path / "kept")
    first = one.ask(request)
    one.close()
    again = Compiler(tmp_path / "kept")
    again.ask(request)
    assert again.is_idle
    other = again.ask(dataclasses.replace(request, constants=(("N", 512),)))
    copy.write_text(KERNEL.read_text().replace("* 2,", "* 3,"))
    changed = again.ask(request)
    again.close()
    assert not again.is_idle
    assert len({first.folder, other.folder, changed.folder}) == 3


def test_a_program_of_another_release_is_not_read() -> None:
    with pytest.raises(ValueError, match="printed no program after hivm-plan-memory"):
        read("module {}", notes=[])
