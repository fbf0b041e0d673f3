"""Guarded memory: who writes outside of what he was given leaves a mark, who reads there gets other numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness import arena, watched
from minimax_m2.harness.arena import LARGE, LARGEST, NAN, Guard, allocations, covered, difference, filled, span
from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import judge
from minimax_m2.harness.layout import Misplaced
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.providers.plain import function_of
from minimax_m2.harness.verdict import Outcome, Verdict
from minimax_m2.harness.watched import Watched
from minimax_m2.harness.worker import Worker, provider_in

CASE = find_op("rms_norm").case(T=3, H=64, gap=8, dtype="float32")


def right(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def beside(x: Tensor, elements: int) -> Tensor:
    """The element so many behind the last one of a tensor, whoever owns it."""
    last = (1 + x.storage_offset()) + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return torch.as_strided(x, (1,), (1,), last - 1 + elements)


def judged(norm: Callable[..., Any], case: Case = CASE, **more: Any) -> Verdict:
    return judge(case, from_object(SimpleNamespace(rms_norm=norm, **more), name="tried"))


def writes_one_past_the_end(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    beside(weight, 1).fill_(2.5)
    return right(x, weight, eps=eps)


def writes_one_before(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    beside(x, -span(x) // 4).fill_(2.5)
    return right(x, weight, eps=eps)


def writes_between_rows(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    x.as_strided((1,), (1,), x.storage_offset() + x.shape[1] + 2).zero_()
    return right(x, weight, eps=eps)


def adds_one_past_the_end(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right(x, weight, eps=eps) + beside(weight, 1).nan_to_num(0.0)


def adds_what_lies_between_rows(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    between = x.as_strided((1,), (1,), x.storage_offset() + x.shape[1])
    return right(x, weight, eps=eps) + between.nan_to_num(0.0)


def believes_fresh_memory(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    # More than a thread keeps for itself of what was freed.
    scratch = torch.empty(1000)
    return right(x, weight, eps=eps) * (1 if float(scratch[3]) > 0 else 2)


@pytest.mark.parametrize(
    "norm, evidence",
    [
        (writes_one_past_the_end, "wrote 4 bytes outside of what it was given: weight, 0 bytes behind the end of its "),
        (writes_one_before, "x, 4 bytes before its first element, now 2.5"),
        (writes_between_rows, "x, between its rows, 264 bytes behind its first, now 0.0"),
        (adds_one_past_the_end, "read what it was not given, or what nobody wrote: y at [0, 0] is "),
        (adds_what_lies_between_rows, "read what it was not given, or what nobody wrote: y at [0, 0] is "),
        (believes_fresh_memory, "read what it was not given, or what nobody wrote: y at [0, 0] is "),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_right_result_does_not_excuse_what_was_touched(norm: Callable[..., Any], evidence: str) -> None:
    verdict = judged(norm)
    assert verdict.outcome is Outcome.OUTSIDE, verdict.explain()
    assert evidence in verdict.evidence[0]


def test_a_result_that_is_wrong_by_itself_is_told_so_and_not_by_memory() -> None:
    def norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        return right(x, weight, eps=eps) * (2 if float(torch.empty(1000)[3]) > 0 else 1)

    assert judged(norm).outcome is Outcome.WRONG


@pytest.mark.parametrize("reads, outcome", [(False, Outcome.PASS), (True, Outcome.OUTSIDE)])
def test_a_state_too_large_to_copy_is_built_anew_for_each_call(
    reads: bool, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "LARGEST", 0)
    update = function_of("gdn_update")
    assert update is not None

    def tried(*arguments: Any, **keywords: Any) -> Any:
        grown = 2 if reads and float(torch.empty(1000)[3]) < 0 else 1
        return update(*arguments, **keywords) * grown

    verdict = judge(find_op("gdn_update").case(), from_object(SimpleNamespace(gdn_update=tried), name="tried"))
    assert verdict.outcome is outcome, verdict.explain()


def test_an_output_to_be_written_has_red_zones_too() -> None:
    def into(x: Tensor, weight: Tensor, y: Tensor, *, eps: float) -> None:
        y.copy_(right(x, weight, eps=eps))
        beside(y, 2).zero_()

    (evidence,) = judged(right, rms_norm_out=into).evidence
    assert evidence.startswith("rms_norm_out: wrote 4 bytes outside of what it was given: output y, 4 bytes behind")


def test_an_integer_output_that_is_left_as_it_was_is_told() -> None:
    align = function_of("moe_align")
    assert align is not None

    def into(ids: Tensor, *outputs: Tensor, **keywords: Any) -> None:
        for output, value in zip(outputs, align(ids, **keywords), strict=True):
            # -1, which pads, is not written.
            output.copy_(torch.where(value == -1, output, value))

    case = find_op("moe_align").case(T=3)
    provider = from_object(SimpleNamespace(moe_align=align, moe_align_out=into), name="tried")
    assert not judge(case, provider).passed


def test_bits_that_differ_from_call_to_call_are_no_fault_of_memory() -> None:
    calls = iter(range(100))

    def norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        return right(x, weight, eps=eps) * (1 + next(calls) * 2.0**-23)

    assert judged(norm).passed


def test_memory_that_a_call_allocates_holds_what_it_is_told() -> None:
    with allocations(NAN.allocated):
        first = torch.empty(1000, dtype=torch.bfloat16)
    with allocations(LARGE.allocated):
        second = torch.empty(300)
    assert bool((first > 3e38).all())
    assert bool(((second < -2e36) & (second > -3e36)).all())


def test_what_is_allocated_is_filled_for_as_long_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[tuple[int, int]]()
    library = SimpleNamespace(mallopt=lambda parameter, value: told.append((parameter, value)))
    monkeypatch.setattr(arena.ctypes, "CDLL", lambda name: library)
    assert filled() == 0
    with allocations(0x7F):
        with allocations(0xFB):
            assert filled() == 0xFB
        assert filled() == 0x7F
    assert filled() == 0
    # glibc's M_PERTURB is -6, and what it fills with is the complement.
    assert told == [(-6, 0x80), (-6, 0x04), (-6, 0x80), (-6, 0)]
    monkeypatch.setattr(arena.ctypes, "CDLL", lambda name: SimpleNamespace())
    with allocations(0x7F):
        assert filled() == 0x7F


def test_what_torch_holds_free_is_filled_on_a_gpu_and_where_poison_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = list[int]()
    monkeypatch.setattr(arena, "fill_free_memory", told.append)
    for byte, device in ((0x7F, "gpu"), (0, "gpu"), (0xFB, "cpu"), (0xFB, "gpu")):
        with allocations(byte, device):
            assert filled() == byte
    assert told == [0x7F, 0xFB]


def test_tensors_lie_as_they_were_aligned_with_a_page_between_them() -> None:
    named = {"x": torch.zeros(128), "y": torch.zeros(9)[5:], "z": torch.zeros(3, dtype=torch.uint8)}
    guard = Guard(named, outputs={"o": ((2, 3), torch.float16)})
    assert [(slot.start, slot.size, slot.writable) for slot in guard.slots] == [
        (4096, 512, False),
        (8704 + 20, 16, False),
        (13312, 3, False),
        (17920, 12, True),
    ]
    assert len(guard._block) == 17920 + 12 + 4096
    assert bool(guard["o"].isnan().all())
    assert LARGEST == 16 * 2**20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_memory_of_nobody_is_no_number_then_a_large_one(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, 2.0, torch.nan], [3.0, 4.0, 5.0]]).to(dtype)
    for poison in (NAN, LARGE):
        guard = Guard({"x": x}, poison=poison)
        zone, held = guard._block[:4096].view(dtype).double(), guard["x"].double()
        expected = torch.where(x.double().isnan(), zone[0], x.double())
        assert bool((zone.isnan() if poison is NAN else (zone > 351) & (zone < torch.inf)).all())
        assert torch.equal(held.nan_to_num(-1.0), expected.nan_to_num(-1.0))


def test_what_was_given_between_rows_stays_until_the_second_call() -> None:
    rows = torch.arange(12.0).view(3, 4)
    given = Guard({"x": rows[:, :3]})["x"].as_strided((11,), (1,))
    assert torch.equal(given, torch.arange(11.0))
    for poison in (NAN, LARGE):
        repeated = Guard({"x": torch.tensor([7.0, 8.0]).expand(3, 2)}, poison=poison)
        assert (repeated["x"].stride(), repeated["x"].tolist()) == ((0, 1), [[7.0, 8.0]] * 3)
        assert repeated.written() == ""
    counts = Guard({"n": torch.arange(4)}, poison=LARGE)
    assert counts["n"].tolist() == [0, 1, 2, 3]


BYTES = {name: torch.zeros(size, dtype=torch.uint8) for name, size in (("x", 512), ("y", 7), ("z", 8))}


@pytest.mark.parametrize(
    "places, told",
    [
        ([4096], "x"),
        ([4607], "x"),
        ([8704, 4100], "x"),
        ([4095], "wrote 1 bytes outside of what it was given: x, 1 bytes before its first element, now 3"),
        (
            [4608, 4611],
            "wrote 2 bytes outside of what it was given: x, 0 bytes behind the end of its last element, now 3",
        ),
        # Halfway between two tensors the first is named; a byte nearer to the second, that.
        ([6655], "x, 2047 bytes behind"),
        ([6656], "y, 2048 bytes before"),
        ([8703], "y, 1 bytes before"),
        ([11011], "y, 2300 bytes behind"),
        ([11012], "z, 2300 bytes before"),
        ([13320 + 4095], "z, 4095 bytes behind"),
    ],
)
def test_the_first_byte_that_changed_is_told_by_the_tensor_it_is_nearest_to(places: list[int], told: str) -> None:
    guard = Guard(BYTES)
    guard._block[places] = 3
    if told in BYTES:
        assert guard.written() == told
        return
    with pytest.raises(Misplaced) as raised:
        guard.written()
    assert raised.value.outcome is Outcome.OUTSIDE
    assert told in str(raised.value)


def test_what_is_written_where_nothing_lies_is_told_by_the_tensor_that_has_no_elements() -> None:
    guard = Guard({"x": torch.zeros(0)})
    guard._block[4096] = 3
    with pytest.raises(Misplaced, match="x, 0 bytes behind the end of its last element"):
        guard.written()


def test_what_a_call_may_write_is_no_finding_but_what_lies_between_its_rows_is() -> None:
    rows = torch.zeros(3, 4)[:, :3]
    guard = Guard({"x": rows, "y": torch.zeros(2)}, writable=["x"])
    guard["x"].fill_(2.0)
    assert guard.written() == ""
    guard["x"].as_strided((1,), (1,), guard["x"].storage_offset() + 3).fill_(2.0)
    with pytest.raises(Misplaced, match="x, between its rows, 12 bytes behind its first, now 2"):
        guard.written()


def test_the_first_element_whose_bits_differ_and_count_is_told() -> None:
    x, y = torch.tensor([[1.0, torch.nan], [3.0, 4.0]]), torch.tensor([5, 6])
    sure = [torch.tensor([[True, True], [False, True]]), torch.tensor([True, True])]
    assert difference(["x", "y"], (x, y), (x.clone(), y.clone()), sure) == ""
    other = x.clone()
    other[1] = torch.tensor([9.0, 8.0])
    assert difference(["x", "y"], (x, y), (other, y), sure) == "x at [1, 1] is 4.0, then 8.0"
    assert difference(["x", "y"], (x.mT, y), (x.mT, torch.tensor([5, 7])), sure) == "y at [1] is 6, then 7"


def test_what_lies_between_rows_and_for_nobody_is_poisoned_anew() -> None:
    rows = torch.arange(12.0).view(3, 4)
    rows[0, 1] = torch.nan
    guard = Guard({"x": rows[:, :3]}, poison=LARGE)
    bits = guard["x"].as_strided((11,), (1,)).view(torch.int32)
    assert [at for at, word in enumerate(bits.tolist()) if word == 0x7B7B7B7B] == [1, 3, 7]
    assert guard.written() == ""


@pytest.mark.parametrize(
    "x, elements",
    [
        (torch.zeros(3, 5)[:, :4], 14),
        (torch.zeros(5).expand(3, 5), 5),
        (torch.zeros(0, 4), 0),
        (torch.zeros(3, 0), 0),
        (torch.zeros(1), 1),
        (torch.tensor(1.0), 1),
    ],
)
def test_a_span_counts_gaps_once_and_repeats_never(x: Tensor, elements: int) -> None:
    assert span(x) == 4 * len(covered(x)) == 4 * elements
    assert int(covered(x).sum()) == len({x[at].data_ptr() for at in product(*map(range, x.shape))})


def test_what_is_too_large_to_copy_is_compared_byte_for_byte() -> None:
    weight = torch.zeros(LARGEST // 4 + 4)
    watched = Watched(find_op("rms_norm"), {"x": torch.ones(2, 3), "weight": weight})
    watched.call(lambda arguments, outputs: arguments["weight"][7:8].fill_(1.0))
    assert watched.arguments["weight"] is weight
    assert watched.written() == "weight"


NORM = "import ctypes, torch\ndef rms_norm(x, weight, *, eps):\n    "
RIGHT = "(x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)"


@pytest.fixture
def isolated(tmp_path: Path) -> Iterator[Callable[[str], Provider]]:
    """Isolate ``rms_norm`` that does this before it is right."""
    workers = []

    def isolate(first: str) -> Provider:
        (tmp_path / "norm.py").write_text(f"{NORM}{first}\n    return {RIGHT}")
        workers.append(Worker(str(tmp_path / "norm.py")))
        return provider_in(workers[-1], name="norm")

    yield isolate
    for worker in workers:
        worker.close()


@pytest.mark.parametrize(
    "first, outcome, evidence",
    [
        ("pass", Outcome.PASS, ""),
        ("ctypes.string_at(weight.data_ptr() + 256, 1)", Outcome.CRASHED, "the byte 0 behind the end of weight"),
        ("ctypes.string_at(x.data_ptr() + 830, 8)", Outcome.CRASHED, "it touched the byte 0 behind the end of x"),
        ("ctypes.memset(x.data_ptr() - 2, 7, 1)", Outcome.OUTSIDE, "wrote 2 bytes before the first byte of x"),
        ("beside = x.as_strided((1,), (1,), x.storage_offset() + 65).zero_()", Outcome.OUTSIDE, "x, between its rows"),
    ],
)  # fmt: skip
def test_a_process_of_its_own_dies_one_byte_behind_a_tensor(
    isolated: Callable[[str], Provider], first: str, outcome: Outcome, evidence: str
) -> None:
    verdict = judge(CASE, isolated(first))
    assert verdict.outcome is outcome, verdict.explain()
    assert evidence in "".join(verdict.evidence)


REUSED = """\
malloc, free = ctypes.pythonapi.PyMem_RawMalloc, ctypes.pythonapi.PyMem_RawFree
    malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    for block in [ctypes.memset(malloc(72), 0, 72) for _ in range(7)]:
        free(block)
    weight = weight * (1 + (ctypes.string_at(malloc(72), 72)[40] >> 7))"""


def test_a_process_of_its_own_hands_out_no_small_block_as_it_was_left(isolated: Callable[[str], Provider]) -> None:
    verdict = judge(CASE, isolated(REUSED))
    assert verdict.outcome is Outcome.OUTSIDE, verdict.explain()
    assert "read what it was not given, or what nobody wrote: y at [0, 0]" in verdict.evidence[0]


def test_a_packed_value_has_a_protected_page_behind_it(tmp_path: Path) -> None:
    (tmp_path / "packs.py").write_text(
        "import ctypes, torch\n"
        "def fp8_linear(x, packed, **keywords):\n"
        "    ctypes.string_at(packed[0].data_ptr() + packed[0].numel(), 1)\n"
        "def pack_fp8_linear(weight, scale, **keywords):\n    return weight.clone(), scale.clone()\n"
    )
    worker = Worker(str(tmp_path / "packs.py"))
    try:
        verdict = judge(find_op("fp8_linear").case(T=3), provider_in(worker, name="packs"))
    finally:
        worker.close()
    assert verdict.outcome is Outcome.CRASHED
    assert "SIGSEGV during fp8_linear" in verdict.evidence[0]
