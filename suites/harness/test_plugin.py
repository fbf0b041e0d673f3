"""The plugin's account of what ran: lost cells, silent ops and unlisted ops are named."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness import conformance, pytest_plugin
from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import expected
from minimax_m2.harness.matrix import Cell, expected_dir, machine_kind, must_execute
from minimax_m2.harness.museum import right
from minimax_m2.harness.op import Op, all_ops
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.pytest_plugin import EXECUTED, FILES, REPORTS, default_providers, missing

STEMS = {op.stem or op.name for op in all_ops().values()}


def everything() -> Any:
    """A session in which every expected cell and every op's tests ran."""
    folder = expected_dir()
    assert folder is not None
    ran = {cell.id for cell in must_execute(folder, "cpu", machine_kind("cpu"))}
    stash: dict[object, set[str]] = {EXECUTED: ran, FILES: {f"suites/test_{stem}.py" for stem in STEMS}}
    return SimpleNamespace(stash=stash)


def said(config: Any) -> list[str]:
    # Ops that are being added may lack their file of cells; suites/test_layout.py asks for it.
    return [line for line in missing(config) if "is missing" not in line]


def test_nothing_is_missing_where_everything_ran() -> None:
    assert said(everything()) == []


def test_a_cell_that_did_not_run_is_named() -> None:
    config = everything()
    cell = min(config.stash[EXECUTED])
    config.stash[EXECUTED].remove(cell)
    assert said(config) == [f"cell {cell}: not executed"]


def test_an_op_without_tests_is_named() -> None:
    config = everything()
    config.stash[FILES].remove("suites/test_linear.py")
    assert said(config) == ["suites/test_linear.py: no test executed"]


LINEAR = Cell("linear", "plain", "cpu")


def test_a_cell_is_executed_once_a_case_is_judged() -> None:
    seen: list[Cell] = []
    conformance.test_sampled_cases_are_right(LINEAR, plain(), seen.append)
    assert seen == [LINEAR]


def test_a_provider_that_refuses_every_case_executes_no_cell() -> None:
    seen: list[Cell] = []
    with pytest.raises(pytest.skip.Exception, match="none of 60 sampled cases could be judged"):
        conformance.test_sampled_cases_are_right(
            LINEAR, replace(plain(), refuses=lambda op, case: "needs AMX"), seen.append
        )
    assert seen == []


def test_a_second_call_leaves_out_what_is_refused() -> None:
    def narrow(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
        assert x.dtype == torch.bfloat16, "a refused case was called"
        return right("linear")(x, weight, **keywords)

    def refuses(op: Op, case: Case) -> str | None:
        return None if case["dtype"] == "bfloat16" else "bfloat16 alone"

    provider = from_object(SimpleNamespace(linear=narrow), name="narrow")
    conformance.test_a_second_call_gives_the_same_bits(LINEAR, replace(provider, refuses=refuses))
    with pytest.raises(pytest.skip.Exception, match="refuses all of 12 sampled cases"):
        conformance.test_a_second_call_gives_the_same_bits(
            LINEAR, replace(provider, refuses=lambda op, case: "needs AMX")
        )


@pytest.mark.parametrize(
    "properties, outcome, cells",
    [([("cell", LINEAR.id)], "passed", {LINEAR.id}), ([], "passed", set()), ([("cell", LINEAR.id)], "skipped", set())],
    ids=["judged", "collected", "skipped"],
)
def test_only_what_a_test_judged_counts(
    properties: list[tuple[str, str]], outcome: str, cells: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stash: dict[object, set[str]] = {EXECUTED: set(), FILES: set()}
    monkeypatch.setattr(pytest_plugin, "_config", SimpleNamespace(stash=stash))
    test = f"suites/test_conformance.py::test_drawn_cases_are_right[{LINEAR.id}]"
    report: Any = SimpleNamespace(when="call", outcome=outcome, nodeid=test, user_properties=properties)
    pytest_plugin.pytest_runtest_logreport(report)
    assert stash[EXECUTED] == cells


def test_a_namesake_elsewhere_is_no_test_of_an_op() -> None:
    config = everything()
    config.stash[FILES] = {name.replace("suites/", "kernels/") for name in config.stash[FILES]}
    assert len(said(config)) == len(STEMS)


def test_a_wheel_without_expected_cells_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_plugin, "expected_dir", lambda: None)
    assert missing(everything()) == ["suites/expected is not here: run from a checkout"]


def test_a_budget_that_is_blind_to_a_third_of_the_drawn_cases_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(op: Op, case: Case, declared: Any) -> tuple[Any, tuple[str, ...]]:
        return (None, ("y:gain",)) if case.number("seed") % 3 == 0 else expected(op, case, declared)

    monkeypatch.setattr(conformance, "expected", blind)
    with pytest.raises(AssertionError, match=r"VACUOUS linear: \d+ of \d+ drawn cases let pass {'y:gain'"):
        conformance.test_drawn_cases_are_right(LINEAR, plain())


def test_a_marker_of_one_device_asks_for_its_cells_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_plugin, "absence", lambda device: None if device != "npu" else "not here")
    asked = {marker: default_providers(marker) for marker in ("", "cpu", "gpu", "npu", "gpu and not nightly")}
    found = {marker: [(p.name, p.device) for p in providers] for marker, providers in asked.items()}
    everything = [("ours", "cpu"), ("ours", "gpu"), ("plain", "cpu")]
    assert found == {
        "": everything, "cpu": [everything[0], everything[2]], "gpu": [everything[1]], "npu": [],
        "gpu and not nightly": everything,
    }  # fmt: skip


def test_levels_are_counted_by_op_and_a_failure_counts_against_its_level() -> None:
    reports = {"G0": {"rms_norm": True, "routing": False}, "G1": {"rms_norm": True, "routing": True}}
    config: Any = SimpleNamespace(stash={REPORTS: reports, EXECUTED: set()})

    assert pytest_plugin.levels(config, "gpu") == ["G0 1/2, G1 2/2, G2 0/2 NOT RUN"]
    config.stash[EXECUTED] = {"rms_norm-ours-gpu"}
    assert pytest_plugin.levels(config, "gpu") == ["G0 1/2, G1 2/2, G2 1/2"]
    assert pytest_plugin.levels(config, "cpu") == []


def test_a_level_stands_in_the_name_of_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    stash: dict[object, Any] = {EXECUTED: set(), FILES: set(), REPORTS: {}}
    monkeypatch.setattr(pytest_plugin, "_config", SimpleNamespace(stash=stash))
    for capability, passed in ((80, True), (90, False)):
        test = f"suites/kernels/test_gpu_cubin.py::test_it[G1-rms_norm-{capability}]"
        report: Any = SimpleNamespace(when="call", outcome="passed", passed=passed, nodeid=test, user_properties=[])
        pytest_plugin.pytest_runtest_logreport(report)
    assert stash[REPORTS] == {"G1": {"rms_norm": False}}
