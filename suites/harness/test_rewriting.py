"""Lines of C++ are rewritten as somebody could have typed them, and what comes of it is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import cpu_extension
from minimax_m2.harness.rebuilding import DoesNotCompile, all_rewrites, provider_of, rebuilt
from minimax_m2.harness.rewriting import OPERATORS, Rewrite, arguments, rewrites
from minimax_m2.harness.score import first_kill
from minimax_m2.harness.score_sources import EQUIVALENT, FEW, planted, reason, score_sources

SWIGLU = "      store(y + i, silu(load(gate + i, n...)) * load(up + i, n...), n...);"


@pytest.mark.parametrize(
    ("defect", "line", "after"),
    [
        ("a step too few", "for (int j = 0; j < count; ++j) {", "for (int j = 0; j < count - 1; ++j) {"),
        ("a step too many", "for (int j = 0; j < count; ++j) {", "for (int j = 0; j <= count; ++j) {"),
        ("a tail taken for whole", "for (; i + Float::N <= count;", "for (; i + 1 <= count;"),
        ("tail skipped", "if (i < count) body(i);", "if (false) body(i);"),
        ("mask dropped", "x = blend(first_lanes(lanes(e)), a, b);", "x = blend(first_lanes(Float::N), a, b);"),
        ("branches exchanged", "x = blend(lt(a, b), c, set1(d));", "x = blend(lt(a, b), set1(d), c);"),
        ("halves exchanged", "a = load(row + half + j);", "a = load(row + j);"),
        ("unscaled", "y = load(x) * factor;", "y = load(x);"),
        ("least for largest", "n = std::max<int64_t>(1, m);", "n = std::min<int64_t>(1, m);"),
        ("sign changed", "y = fnma(b, sin, a);", "y = fma(b, sin, a);"),
        ("or equal", "if (id < 0) return;", "if (id <= 0) return;"),
        ("bound 1 further", "id >= args.num_experts", "id > args.num_experts"),
        ("row of another", "x + token * stride", "x + 0 * stride"),
        ("left out", "  store(p, v);", "  ;"),
    ],
)  # fmt: skip
def test_an_operator_makes_the_line_that_its_name_says(defect: str, line: str, after: str) -> None:
    assert after in OPERATORS[defect](line)


@pytest.mark.parametrize(
    "line", ["// for (int j = 0; j < count; ++j)", "#pragma omp for", "__builtin_prefetch(a + 0 * b);"]
)
def test_what_is_no_code_or_only_fast_is_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.cpp").write_text(f"{line}\n")
    assert list(rewrites(tmp_path / "a.cpp")) == []


def test_comments_stay_and_names_leave_them_out(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text("\n  y = x * scale;  // a scale\n")
    (found,) = rewrites(tmp_path / "a.cpp")
    assert (found.line, found.name) == (2, "a.cpp: unscaled: y = x;")
    assert found.apply((tmp_path / "a.cpp").read_text()) == "\n  y = x;  // a scale\n"


def test_a_line_that_has_moved_is_told(tmp_path: Path) -> None:
    found = Rewrite("a.cpp", 1, "unscaled", "y = x * scale;", "y = x;")
    with pytest.raises(ValueError, match="line 1 is"):
        found.apply("z = 0;\ny = x * scale;\n")


def test_the_arguments_of_a_call_end_where_its_bracket_does() -> None:
    assert arguments("a, f(b, c), d[e, g]) + h") == (["a", "f(b, c)", "d[e, g]"], 19)
    assert arguments("a, f(b, c)") == ([], 0)


def test_every_operator_finds_a_line_of_ours() -> None:
    assert {rewrite.defect for _, rewrite in all_rewrites()} == set(OPERATORS)


def test_what_is_excused_is_a_rewrite_and_what_every_score_judges_is_none_of_it() -> None:
    every = [rewrite for _, rewrite in all_rewrites()]
    excused = [entry for entry in EQUIVALENT if any(reason(r) == entry[3] for r in every)]
    assert excused == list(EQUIVALENT)
    stems = {stem for stem, _ in all_rewrites()}
    assert {(rewrite.file, rewrite.defect) for _, rewrite in planted(0, stems)} == set(FEW)


def test_at_most_so_many_of_an_operator_are_taken_from_a_source() -> None:
    found = [(rewrite.file, rewrite.defect) for _, rewrite in planted(2, {"rope", "attention"})]
    assert max(found.count(place) for place in found) == 2
    assert {file for file, _ in found} >= {"rotate_head.h", "attention.cpp"}


def swiglu_line() -> Rewrite:
    path = cpu_extension().SOURCE_DIR / "swiglu.cpp"
    number = path.read_text().splitlines().index(SWIGLU) + 1
    return Rewrite("swiglu.cpp", number, "unscaled", SWIGLU, SWIGLU.replace(" * load(up + i, n...)", ""))


def test_a_rewritten_line_is_caught_and_the_line_as_it_is_passes() -> None:
    (kill,) = score_sources([("swiglu", swiglu_line())], cases=4)
    assert "y:element" in kill.checks
    same = replace(swiglu_line(), after=SWIGLU)
    checks, _ = first_kill(find_op("swiglu"), lambda: provider_of(rebuilt("swiglu", same), "same"), cases=6)
    assert checks == ()


def test_what_the_compiler_refuses_is_not_counted() -> None:
    broken = replace(swiglu_line(), after="      store(y + i;")
    with pytest.raises(DoesNotCompile, match="error"):
        rebuilt("swiglu", broken)
    assert list(score_sources([("swiglu", broken)], cases=1)) == []
