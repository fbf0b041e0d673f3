"""Lines of C++ are rewritten as somebody could have typed them, and what comes of it is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minimax_m2.harness import score_sources as score_sources_module
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import cpu_extension
from minimax_m2.harness.rebuilding import DoesNotCompile, all_rewrites, places_of, provider_of, rebuilt, runs
from minimax_m2.harness.rewriting import OPERATORS, Rewrite, arguments, rewrites
from minimax_m2.harness.score import first_kill, rate
from minimax_m2.harness.score_sources import EQUIVALENT, FEW, fate, planted, reason, score_sources

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


HOME = next(place for place in places_of("swiglu.cpp") if runs(place))


def test_a_rewritten_line_is_caught_and_a_line_of_other_bytes_that_is_right_passes() -> None:
    (kill,) = score_sources([("swiglu", swiglu_line())], cases=4)
    assert "y:element" in kill.checks
    other = replace(swiglu_line(), after="      store(y + i, load(up + i, n...) * silu(load(gate + i, n...)), n...);")
    folder = rebuilt(HOME, other)
    assert folder is not None
    checks, _ = first_kill(find_op("swiglu"), lambda: provider_of(folder, "right", HOME.isa), cases=6)
    assert checks == ()


def test_a_line_that_the_compiler_makes_the_same_of_is_not_counted() -> None:
    same = replace(swiglu_line(), after=SWIGLU.replace("y + i", "y + 1 * i"))
    assert rebuilt(HOME, same) is None
    (kill,) = score_sources([("swiglu", same)], cases=4)
    assert (kill.equal, kill.survived, kill.examples) == (True, False, 0)
    lost = replace(kill, equal=False)
    assert lost.survived
    assert (rate([kill]), rate([kill, lost])) == (1.0, 0.0)


def test_a_line_of_a_header_is_judged_until_an_op_shows_that_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gate adds up a row's squares, so its objects are the same; a norm does."""
    path, line = cpu_extension().SOURCE_DIR / "row_vectors.h", "      sum[part] = fma(value, value, sum[part]);"
    number = path.read_text().splitlines().index(line) + 1
    lost = Rewrite(path.name, number, "row of another", line, line.replace("sum[part])", "sum[0])"))
    homes = {place.stem: place for place in places_of(path.name) if place.isa == HOME.isa}
    monkeypatch.setattr(score_sources_module, "places_of", lambda name: (homes["gdn_gating"], homes["rms_norm"]))
    kill = fate(lost, cases=6)
    assert (kill.subject, kill.equal) == ("rms_norm", False)
    assert "y:element" in kill.checks
    monkeypatch.setattr(score_sources_module, "places_of", lambda name: (homes["gdn_gating"],))
    assert fate(lost, cases=6).equal


def test_what_the_compiler_refuses_is_not_counted() -> None:
    broken = replace(swiglu_line(), after="      store(y + i;")
    with pytest.raises(DoesNotCompile, match="error"):
        rebuilt(HOME, broken)
    assert list(score_sources([("swiglu", broken)], cases=1)) == []
