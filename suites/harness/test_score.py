"""The score counts what it should: a bug that nobody catches ends in 1, and a mutant that is right is not counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer

from minimax_m2.harness import commands_score, mutation, score_plan
from minimax_m2.harness.bits import Bits
from minimax_m2.harness.false_alarms import Tally
from minimax_m2.harness.judge import call
from minimax_m2.harness.museum import Exhibit, museum_dir, read_exhibit
from minimax_m2.harness.mutation import EQUIVALENT, Mutant, mutants
from minimax_m2.harness.op import all_ops, find_op
from minimax_m2.harness.providers.plain import function_of
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.score import (
    GENERIC,
    HELD_OUT,
    KERNELS,
    MUSEUM,
    Kill,
    first_kill,
    rate,
    score_museum,
    score_mutants,
)

ROOT = Path(__file__).resolve().parents[2]

HARMLESS = """
from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "swiglu",
    "source": "https://github.com/vllm-project/vllm/pull/1",
    "symptom": "none",
    "check": "y:element",
    "tolerance": None,
}


def swiglu(gate_up):
    # right: rows = gate_up
    rows = gate_up
    return right("swiglu")(rows)
"""


def hung(name: str) -> Exhibit:
    folder = museum_dir()
    assert folder is not None
    return read_exhibit(next(folder.rglob(f"{name}.py")))


@pytest.fixture(autouse=True)
def _no_line_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of C++ have tests of their own, since to rewrite one is to compile."""
    monkeypatch.setattr(score_plan, "planted", lambda each, stems: [])


def exit_code(**options: object) -> int:
    with pytest.raises(typer.Exit) as left:
        commands_score.score(**options)  # type: ignore[arg-type]
    return left.value.exit_code


def test_a_bug_that_survives_ends_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harmless.py").write_text(HARMLESS)
    monkeypatch.setattr(score_plan, "museum_dir", lambda: tmp_path)
    assert exit_code(op=["swiglu"], short=True, right=0) == 1


def test_a_rewritten_line_that_survives_ends_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    survivor = Kill(name="a line", subject="unpack_routing", group=KERNELS, checks=(), examples=9, seconds=1.0)
    monkeypatch.setattr(score_plan, "score_sources", lambda chosen, cases, progress: iter([survivor]))
    assert exit_code(op=["unpack_routing"], short=True, right=0) == 1


def test_bugs_that_are_caught_end_in_zero() -> None:
    assert exit_code(op=["unpack_routing"], short=True, right=0) == 0


def test_a_right_implementation_that_is_called_wrong_ends_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code(op=["unpack_routing"], short=True, right=2) == 0
    cried = Tally(op="unpack_routing", implementations=("plain",), calls=2, cases=2, wrong=1, alarms=("",), worst=2.0)
    monkeypatch.setattr(score_plan, "tallies", lambda names, count, progress: iter([cried]))
    assert exit_code(op=["unpack_routing"], short=True, right=2) == 1


def test_a_scale_packed_wrong_is_a_mutant_that_is_caught() -> None:
    (mutant,) = (m for m in mutants(find_op("fp8_linear")) if m.defect == "scale in bfloat16")
    assert not next(score_mutants([mutant], cases=30)).survived


def test_what_is_kept_of_the_first_call_is_seen_from_small_to_large() -> None:
    (kill,) = score_museum([hung("plan_frozen_by_the_first_call")], cases=60)
    assert kill.as_expected


def test_without_museum_and_mutants_nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_plan, "museum_dir", lambda: None)
    monkeypatch.setattr(score_plan, "mutants", lambda op: iter(()))
    assert exit_code(op=["swiglu"], right=0) == 5


def test_a_kill_names_the_check_the_examples_and_what_the_engine_would_have_said() -> None:
    (kill,) = score_museum([hung("normalised_before_the_weight")], cases=60)
    assert kill.group == "held out"
    assert "y:element" in kill.checks
    assert kill.examples > 1
    # sglang's 1e-2 sees nothing wrong with a rounding too many.
    assert 0 < kill.noticed == kill.accepted


@pytest.mark.parametrize("name", ["rows_beyond_the_grid", "later_heads_of_a_warp_corrupt"])
def test_what_no_sampled_case_shows_a_relation_does(name: str) -> None:
    (kill,) = score_museum([hung(name)], cases=4)
    assert kill.as_expected


def test_the_plain_provider_survives_every_check(op_name: str) -> None:
    op = find_op(op_name)
    function = function_of(op_name)
    assert function is not None
    assert first_kill(op, Mutant(op, "nothing", function).provider, cases=6)[0] == ()


def test_what_is_excused_as_equivalent_is_a_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation, "EQUIVALENT", {})
    assert set(EQUIVALENT) <= {mutant.name for op in all_ops().values() for mutant in mutants(op)}


def test_a_mutant_computes_something_else_on_some_case() -> None:
    op = find_op("rope")
    case = sampled(op, 1)[0]
    plain = function_of("rope")
    assert plain is not None
    expected = call(op, plain, op.inputs(case, Bits(case)))[0]
    found = {m.defect: call(op, m.function, op.inputs(case, Bits(case)))[0] for m in mutants(op)}
    assert not found["q negated"].equal(expected)
    assert found["k negated"].equal(expected)


def test_the_rate_of_nothing_is_one() -> None:
    assert rate([]) == 1.0
    assert rate(score_mutants(list(mutants(find_op("unpack_routing")))[:3], cases=6)) == 1.0


def test_the_docs_tell_what_the_record_holds() -> None:
    trust = (ROOT / "docs/trust.md").read_text()
    (named,) = set(re.findall(r"ci/results/score-[\w.-]+\.jsonl", trust))
    rows = [json.loads(line) for line in (ROOT / named).read_text().splitlines()]
    kills = [Kill(**row | {"checks": tuple(row["checks"])}) for row in rows]
    groups = {MUSEUM: "museum", HELD_OUT: "held out", GENERIC: "generic", KERNELS: "rewritten lines"}
    for group, name in groups.items():
        own = [kill for kill in kills if kill.group == group and not kill.equal]
        assert f"| {name} | {sum(not kill.survived for kill in own)} | {len(own)} |" in trust
    lenient = [kill for kill in kills if kill.accepted]
    assert lenient
    assert all(f"| {k.name} | {k.subject} | {k.accepted} | {k.noticed} |" in trust for k in lenient)
