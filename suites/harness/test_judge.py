"""Every way a call can go wrong has its own outcome, and a judge that lets corruptions pass says so of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness import expectation, ties
from minimax_m2.harness import judge as judging
from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.case import Case
from minimax_m2.harness.compare import ALPHA, Comparison, compare
from minimax_m2.harness.judge import _drawn, _expected, blank, build, expected, judge, misplaced, moved, repeat
from minimax_m2.harness.op import Op, find_op
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.ties import judge_ids
from minimax_m2.harness.verdict import Outcome, Verdict
from minimax_m2.harness.worker import Ended

LINEAR = find_op("linear")
CASE = LINEAR.case(T=5, N=128, H=64, dtype="bfloat16", gap=8)


def right(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    return (x.float() @ weight.float().mT).to(out_dtype or x.dtype)


def judged(linear: Callable[..., Any], case: Case = CASE, **more: Any) -> Verdict:
    return judge(case, from_object(SimpleNamespace(linear=linear, **more), name="tried"))


def raises(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
    raise RuntimeError("CUDA error: an illegal memory access")


def exhausts(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
    raise MemoryError("no 9 GB are left")


def leaves(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
    raise SystemExit(0)


def in_place(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
    y = right(x, weight, **keywords)
    x.mul_(2)
    return y


def into_the_gap(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
    whole = torch.as_strided(x, (x.shape[0], x.stride(0)), (x.stride(0), 1))
    whole[:-1, x.shape[1] :] = 0
    return right(x, weight, **keywords)


def off_by_a_row(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
    return right(x, weight, **keywords).roll(1, 0)


def not_a_number(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
    return right(x, weight, **keywords).index_fill(0, torch.tensor([2]), torch.nan)


@pytest.mark.parametrize(
    "linear, outcome, evidence",
    [
        (right, Outcome.PASS, ""),
        (raises, Outcome.RAISED, "linear raised RuntimeError: CUDA error"),
        (leaves, Outcome.RAISED, "linear raised SystemExit: 0"),
        (exhausts, Outcome.OUT_OF_MEMORY, "linear: MemoryError: no 9 GB are left"),
        (lambda x, weight, **k: right(x, weight, **k)[:-1], Outcome.WRONG_SHAPE, "y has shape [4, 128], expected [5, "),
        (lambda x, weight, **k: (right(x, weight, **k),) * 2, Outcome.WRONG_SHAPE, "returned 2 values, expected 1"),
        (lambda x, weight, **k: None, Outcome.WRONG_SHAPE, "returned 0 values"),
        (lambda x, weight, **k: right(x, weight, **k).float(), Outcome.WRONG_DTYPE, "y has dtype torch.float32"),
        (lambda x, weight, **k: "tensor", Outcome.WRONG_DTYPE, "y is a str"),
        (not_a_number, Outcome.NOT_A_NUMBER, "y at [2, 0]: actual nan"),
        (in_place, Outcome.WROTE_INPUT, "linear wrote to its input x"),
        (into_the_gap, Outcome.OUTSIDE, "x, between its rows, 128 bytes behind"),
        (off_by_a_row, Outcome.WRONG, "x budget"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_defect_has_its_outcome(linear: Callable[..., Any], outcome: Outcome, evidence: str) -> None:
    verdict = judged(linear)
    assert verdict.outcome is outcome
    assert evidence in " ".join(verdict.evidence)
    assert (verdict.utilisation > 1) == (outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER))


def test_an_output_on_another_device_is_told() -> None:
    y, known = torch.empty(5, 128), expected(LINEAR, CASE, {})[0]
    assert misplaced(known, (y,), "cpu") is None
    assert misplaced(known, (y,), "gpu") == (Outcome.WRONG_LAYOUT, "y lies on cpu, expected cuda")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_copy_on_a_device_keeps_strides_offset_and_gaps(device: str) -> None:
    x = torch.arange(24.0).view(4, 6)[1:, 1:4]
    there = moved(x, device)
    assert (there.device.type, there.stride(), there.storage_offset()) == (device, (6, 1), 7)
    assert there.untyped_storage().nbytes() == 24 * 4
    assert device == "meta" or torch.equal(there, x)


def test_arguments_lie_on_the_providers_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "torch_device", lambda device: "meta")
    there, here = build(LINEAR, CASE, replace(plain(), device="gpu")), build(LINEAR, CASE, plain())
    for arguments, device in ((there, "meta"), (here, "cpu")):
        assert {value.device.type for value in arguments.values() if isinstance(value, Tensor)} == {device}


@pytest.mark.parametrize("name, blanks", [("add_rms_norm", 2), ("routing", 2), ("kv_cache", 0)])
def test_outputs_to_be_written_hold_no_number(name: str, blanks: int) -> None:
    op = find_op(name)
    outputs = blank(op, expected(op, op.case(T=3), {})[0], plain())
    assert len(outputs) == blanks
    nothing = [y.isnan() if y.is_floating_point() else y == torch.iinfo(y.dtype).max for y in outputs]
    assert all(bool(held.all()) for held in nothing)


def test_writing_to_a_packed_weight_is_told() -> None:
    reference = plain()
    right_one = reference.functions("fp8_linear")

    def scaling(x: Tensor, packed: Any, **keywords: Any) -> Any:
        assert right_one is not None
        y = right_one(x, packed, **keywords)
        packed.scale.mul_(2)
        return y

    case, pack = find_op("fp8_linear").case(), reference.functions("pack_fp8_linear")
    verdict = judge(case, from_object(SimpleNamespace(fp8_linear=scaling, pack_fp8_linear=pack), name="tried"))
    assert verdict.outcome is Outcome.WROTE_INPUT
    assert "packed.scale" in verdict.evidence[0]


def test_a_wrong_verdict_names_element_values_budget_and_replay() -> None:
    said = judged(off_by_a_row).explain("file.py")
    assert all(part in said for part in ("linear/cpu/tried", "y at [", "actual", "expected", "budget", "m2check repro"))
    assert CASE.json in said


def test_a_pass_says_how_much_of_the_budget_it_used() -> None:
    assert 0 < judged(right).utilisation <= 1


def test_a_pass_bears_sixteen_digits_of_its_outputs_bits() -> None:
    assert len(judged(right).bits) == 16
    assert judged(raises).bits == ""


def test_an_out_variant_is_judged_too() -> None:
    def nothing(x: Tensor, weight: Tensor, out: Tensor, **keywords: Any) -> None:
        return None

    def fill(x: Tensor, weight: Tensor, out: Tensor, **keywords: Any) -> None:
        out.copy_(right(x, weight, **keywords))

    assert judged(right, linear_out=fill).passed
    unwritten = judged(right, linear_out=nothing)
    assert unwritten.outcome is Outcome.NOT_A_NUMBER
    assert "linear_out" in unwritten.evidence[0]


@pytest.mark.parametrize("name, calls", [("linear", 1), ("moe_align", 2)])
def test_an_out_variant_is_called_again_where_what_it_left_unwritten_does_not_show(name: str, calls: int) -> None:
    function, made = plain().functions(name), list[str]()

    def into(*arguments: Any, **keywords: Any) -> None:
        assert function is not None
        made.append(name)
        count = len(find_op(name).outputs)
        returned = function(*arguments[:-count], **keywords)
        for place, value in zip(arguments[-count:], returned if count > 1 else (returned,), strict=True):
            place.copy_(value)

    both = SimpleNamespace(**{name: function, f"{name}_out": into})
    assert judge(find_op(name).case(T=3), from_object(both, name="both")).passed
    assert len(made) == calls


HIDDEN = find_op("routing").case(
    T=1, E=17, K=4, bias="none", regime="near_tie", dtype="bfloat16", eps=1, ids="int64", seed=236
)


@pytest.mark.parametrize(
    "case, contract, outcome",
    [
        (HIDDEN, {"scores": "dtype"}, Outcome.UNSUPPORTED),
        (HIDDEN, {}, Outcome.PASS),
        (CASE, {"exp_ulps": 2.0}, Outcome.PASS),
    ],
)
def test_a_contract_too_coarse_for_a_case_is_no_fault_of_either(
    case: Case, contract: dict[str, object], outcome: Outcome
) -> None:
    name = str(case["op"])
    function = SimpleNamespace(**{name: plain().functions(name), "contract": {name: contract}})
    verdict = judge(case, from_object(function, name="coarse"))
    assert verdict.outcome is outcome
    assert ("the contract's own noise hides" in " ".join(verdict.evidence)) == (outcome is Outcome.UNSUPPORTED)


def test_what_is_not_offered_is_told_by_name() -> None:
    nothing = from_object(SimpleNamespace(fp8_linear=print), name="half")
    with pytest.raises(ValueError, match="'half' does not offer linear"):
        repeat(CASE, nothing)
    verdict = judge(find_op("fp8_linear").case(), nothing)
    assert verdict.outcome is Outcome.RAISED
    assert "'half' offers the op but not pack_fp8_linear; define both" in verdict.evidence[0]


def test_a_refusal_is_no_pass() -> None:
    refusing = replace(plain(), refuses=lambda op, case: "needs AMX")
    verdict = judge(CASE, refusing)
    assert (verdict.outcome, verdict.passed, verdict.evidence) == (Outcome.UNSUPPORTED, False, ("needs AMX",))


def test_a_process_that_ends_before_it_is_called_is_told() -> None:
    def dies(op: Op, case: Case) -> str | None:
        raise Ended(Outcome.CRASHED, "the process died by SIGSEGV during its contract")

    verdict = judge(CASE, replace(plain(), refuses=dies))
    assert (verdict.outcome, verdict.evidence) == (
        Outcome.CRASHED,
        ("the process died by SIGSEGV during its contract",),
    )


def test_other_bits_in_a_second_call_are_told() -> None:
    noise = iter(range(10))

    def drifting(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
        return right(x, weight, **keywords) + next(noise)

    assert repeat(CASE, from_object(SimpleNamespace(linear=right), name="same"))
    assert not repeat(CASE, from_object(SimpleNamespace(linear=drifting), name="drifting"))


def test_other_bits_in_one_buffer_are_told() -> None:
    noise, buffer = iter(range(10)), torch.empty(5, 128, dtype=torch.bfloat16)

    def drifting(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
        return buffer.copy_(right(x, weight, **keywords) + next(noise))

    assert not repeat(CASE, from_object(SimpleNamespace(linear=drifting), name="drifting"))


@pytest.mark.parametrize("name, outputs", [("linear", 1), ("add_rms_norm", 2), ("qk_norm_rope", 3), ("routing", 2)])
def test_all_tests_of_a_case_share_one_false_alarm_rate(
    name: str, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[float] = []

    def counted(output: str, actual: Tensor, expected: Budgeted, alpha: float, **more: Any) -> Comparison:
        spent.append(alpha)
        return compare(output, actual, expected, alpha, **more)

    def chosen(ids: Tensor, selection: Budgeted, *, valid: int, alpha: float) -> Comparison:
        spent.append(alpha)
        return judge_ids(ids, selection, valid=valid, alpha=alpha)

    # Nobody else judges this case: outputs that were found right once are not compared again.
    case, plain_one = find_op(name).case(seed=4099), plain().functions(name)
    expected(find_op(name), case, {})
    for module in (expectation, ties):
        monkeypatch.setattr(module, "compare", counted)
    monkeypatch.setattr(ties, "judge_ids", chosen)

    def into(*arguments: Any, **keywords: Any) -> None:
        assert plain_one is not None
        given, out = arguments[:-outputs], arguments[-outputs:]
        returned = plain_one(*given, **keywords)
        for place, value in zip(out, returned if outputs > 1 else (returned,), strict=True):
            place.copy_(value)

    both = SimpleNamespace(**{name: plain_one, f"{name}_out": into})
    assert judge(case, from_object(both, name="both")).passed
    # The two calls gave equal bits, which are compared once, at the rate of one call.
    assert len(spent) == outputs
    # derived: a sum of a few rounded shares
    assert sum(spent) == pytest.approx(ALPHA / 2)


def test_other_bits_of_another_call_are_compared_too() -> None:
    right = plain().functions("linear")

    def into(x: Tensor, weight: Tensor, out: Tensor, **keywords: Any) -> None:
        assert right is not None
        out.copy_(right(x, weight, **keywords)).flatten()[0] += 1

    verdict = judge(CASE, from_object(SimpleNamespace(linear=right, linear_out=into), name="other"))
    assert verdict.outcome is Outcome.WRONG
    assert verdict.evidence[0].startswith("linear_out: ")


def test_a_corruption_is_asked_of_its_own_output_only() -> None:
    case = find_op("add_rms_norm").case(T=5, H=128)
    right = expected(find_op("add_rms_norm"), case, {})[0]
    wrong = tuple(torch.zeros_like(output) for output in right.perfect())
    (found,) = right.judge(wrong, suspect="residual")
    assert (found.output, list(found.tests), found.passed) == ("residual", ["element"], False)
    assert len(right.judge(wrong)) == 2
    assert set(right.judge(wrong)[1].tests) > {"element"}


def test_a_provider_that_writes_its_input_spoils_no_later_call() -> None:
    def writing(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
        x.zero_()
        return weight

    assert judge(CASE, from_object(SimpleNamespace(linear=writing), name="writing")).outcome is Outcome.WROTE_INPUT
    assert judge(CASE, plain()).passed


@pytest.mark.parametrize("layout, kept", [("NHD", 1), ("far", 0)])
def test_gigabytes_that_a_call_writes_are_given_away_and_not_kept(layout: str, kept: int) -> None:
    _drawn.cache_clear()
    case = find_op("kv_cache").case(layout=layout, cache="float8_e4m3fn", T=3)
    assert judge(case, plain()).passed
    assert _drawn.cache_info().currsize == kept


@pytest.fixture
def fresh() -> Iterator[None]:
    """Expectations are cached; one made with a tampered comparator must not outlive its test."""
    _expected.cache_clear()
    yield
    _expected.cache_clear()


def widened(times: float) -> Callable[..., Comparison]:
    def loose(output: str, actual: Tensor, expected: Budgeted, alpha: float, **more: Any) -> Comparison:
        wide = replace(expected, var=expected.var * times**2, bound=expected.bound * times)
        return compare(output, actual, wide, alpha, **more)

    return loose


@pytest.mark.usefixtures("fresh")
def test_a_comparator_that_is_too_loose_is_vacuous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expectation, "compare", widened(1e4))
    verdict = judged(right)
    assert verdict.outcome is Outcome.VACUOUS
    assert "y:gain" in verdict.evidence[0]


@pytest.mark.usefixtures("fresh")
def test_a_comparator_that_accepts_anything_is_vacuous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        expectation, "compare", lambda output, *rest, **more: Comparison(output, {"element": 0.0}, None, 1)
    )
    verdict = judged(right)
    assert verdict.outcome is Outcome.VACUOUS
    assert {"y:zeros", "y:rows", "y:row", "y:gain", "y:tile"} <= set(verdict.evidence[0].split(": ")[1].split(", "))


def test_a_contract_that_no_engine_has_is_refused() -> None:
    provider = from_object(SimpleNamespace(linear=right, contract={"linear": {"out": "float8_e4m3fn"}}), name="odd")
    with pytest.raises(ValueError, match=r"contract field linear\.out='float8_e4m3fn'"):
        judge(CASE, provider)


@pytest.mark.parametrize("ulps", [1e30, float("nan"), 0, -1, True, "many"])
def test_an_exp_that_would_excuse_anything_is_refused(ulps: object) -> None:
    provider = from_object(SimpleNamespace(linear=right, contract={"linear": {"exp_ulps": ulps}}), name="odd")
    with pytest.raises(ValueError, match=r"linear\.exp_ulps="):
        judge(CASE, provider)
