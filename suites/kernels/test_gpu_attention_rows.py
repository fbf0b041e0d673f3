"""Attention of a few rows in CUDA C++: which calls take it, how they share a GPU, its machine code, what it gives."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.harness.case import Case
from minimax_m2.harness.devices import absence
from minimax_m2.harness.graph_capture import capture_failures
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import ours
from minimax_m2.kernels.gpu import attention_rows, toolkit
from minimax_m2.kernels.gpu.attention_rows import Cut, cut

M2: dict[str, Any] = {
    "capability": 90, "compiler": "nvcc", "rows": 6, "head_dim": 128, "dtype": torch.bfloat16, "cache": torch.bfloat16,
    "scaled": False, "aligned": True,
}  # fmt: skip
WHY = absence("gpu") or (
    None if torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0) else "needs a GPU of sm_90"
)


@pytest.mark.parametrize(
    "change",
    [
        {"capability": 80}, {"capability": 100}, {"compiler": None}, {"rows": 9}, {"rows": 0}, {"head_dim": 64},
        {"dtype": torch.float16, "cache": torch.float16}, {"cache": torch.float8_e4m3fn}, {"scaled": True},
        {"aligned": False},
    ],
    ids=str,
)  # fmt: skip
def test_few_rows_of_bfloat16_on_sm_90_take_it(change: dict[str, Any]) -> None:
    assert attention_rows.fits(**M2)
    assert not attention_rows.fits(**M2 | change)


# What an H200 holds of clusters of 1 to 16 programs, a multiprocessor each.
HELD = (132, 66, 39, 30, 22, 17, 15, 15, 9, 7, 7, 7, 7, 7, 7, 7)


def held(chosen: Cut) -> int:
    return HELD[chosen.programs - 1] * (8 // chosen.warps)


@pytest.mark.parametrize(
    ("pairs", "length", "expected"),
    [
        (1, 1, (4, 3, 16)), (7, 16384, (4, 3, 16)), (7, 16385, None), (8, 1, (4, 3, 8)), (8, 4096, (4, 3, 8)),
        (8, 4097, (8, 3, 9)), (8, 32768, (8, 3, 9)), (8, 32769, None), (9, 100, (8, 3, 9)), (10, 100, (8, 3, 8)),
        (15, 8192, (8, 3, 8)), (16, 8192, (8, 3, 6)), (16, 8193, None), (24, 8192, (8, 3, 4)), (40, 8192, (8, 3, 2)),
        (67, 4096, (8, 3, 2)), (256, 8192, (8, 3, 2)), (256, 8193, None),
    ],
)  # fmt: skip
def test_pairs_and_keys_choose_a_cut_or_triton(pairs: int, length: int, expected: tuple[int, int, int] | None) -> None:
    assert cut(pairs, length, held) == expected


@pytest.mark.parametrize(("pairs", "length"), [(1, 100), (8, 100), (64, 100)])
def test_what_a_device_does_not_hold_is_left_to_triton(pairs: int, length: int) -> None:
    def none(_: Cut) -> int:
        return 0

    assert cut(pairs, length, none) is None


@pytest.mark.parametrize(("gap", "expected"), [(0, True), (8, True), (2, False), (1, False)])
def test_rows_must_begin_where_a_thread_reads(gap: int, expected: bool) -> None:
    q, cache = torch.zeros(1, 6, 128, dtype=torch.bfloat16), torch.zeros(3, 16, 1, 128 + gap, dtype=torch.bfloat16)

    assert attention_rows.readable(q, (cache[..., :128], cache[..., :128])) is expected


@pytest.mark.parametrize(("pages", "expected"), [(1 << 24, True), ((1 << 24) + 1, False)])
def test_32_bits_count_a_cache(pages: int, expected: bool) -> None:
    q, cache = (torch.empty(size, dtype=torch.bfloat16, device="meta") for size in ((1, 6, 128), (pages, 16, 1, 128)))

    assert attention_rows.readable(q, (cache, cache)) is expected


@pytest.mark.parametrize(("longest", "expected"), [(-200, 0), (0, 0), (5, 5), (10_000, 64)])
def test_keys_are_guessed_within_the_table(longest: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[attention_rows.Arguments] = []

    def launched(*arguments: Any) -> int:
        given.append(arguments[3]._obj)
        return 0

    stream, library = SimpleNamespace(cuda_stream=0), SimpleNamespace(minimax_m2_attention_rows=launched)
    monkeypatch.setattr(toolkit, "loaded", lambda *_: library)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    q, cache = torch.zeros(1, 6, 128, dtype=torch.bfloat16), torch.zeros(4, 16, 1, 128, dtype=torch.bfloat16)
    table, ones = torch.zeros(1, 4, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    attention_rows.launch(
        q, cache, cache, table, ones[:1], ones, torch.empty_like(q), Cut(8, 3, 9), scale=1.0, max_query_len=1,
        max_seq_len=longest, capacity=64,
    )  # fmt: skip

    assert [x.expected for x in given] == [expected]


@pytest.mark.gpu
@pytest.mark.nightly
def test_machine_code_keeps_everything_in_registers(tmp_path: Path) -> None:
    if toolkit.compiler() is None:
        pytest.skip("nvcc is not here")
    import triton

    library = tmp_path / "attention_rows.so"
    subprocess.run(toolkit.command("attention_rows", "90a", library), capture_output=True, text=True, check=True)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", library], capture_output=True, text=True, check=True).stdout

    assert usage.count("STACK:0 ") == usage.count("REG:") > 0, usage


def _cases() -> Iterator[Case]:
    """Lengths around a tile and a warp's turn, pages of every kind, as many rows as there are columns, every cut."""
    op = find_op("attention")
    for S in (1, 15, 16, 17, 511, 512, 513, 1025, 2049, 4096):
        yield op.case(B=1, S=S, queries="one", Hk=1, group=6, D=128, page=16, seed=S)
    for page in (1, 8, 64, 128):
        yield op.case(B=3, S=130, queries="one", Hk=2, group=8, D=128, page=page, ids="int64", pad=3, gap=8)
    for B in (32, 45):
        yield op.case(B=B, S=300, queries="one", Hk=2, group=6, D=128, page=16, seed=B)
    # 8, 9, 16, 24 and 40 pairs, each cut otherwise, some of more keys than clusters of eight take.
    for B, Hk, S in ((1, 8, 700), (1, 8, 4200), (3, 3, 700), (2, 8, 700), (3, 8, 300), (5, 8, 300)):
        yield op.case(B=B, S=S, queries="one", Hk=Hk, group=2, D=128, page=24, seed=B)
    yield op.case(B=3, S=3, queries="more", Hk=1, group=1, D=128, page=16)
    yield op.case(B=2, S=3, queries="all", Hk=2, group=2, D=128, page=8)
    for regime in ("heavy", "tiny", "huge", "equal", "signed_zero"):
        yield op.case(B=2, S=130, queries="one", Hk=2, group=6, D=128, page=16, regime=regime)


@pytest.mark.gpu
@pytest.mark.skipif(WHY is not None, reason=f"{WHY}")
@pytest.mark.parametrize("case", [pytest.param(case, id=f"G2-{case.id}") for case in _cases()])
def test_rows_are_right(case: Case) -> None:
    verdict = judge(case, ours("gpu"))

    assert verdict.passed, verdict.explain()


@pytest.mark.gpu
@pytest.mark.skipif(WHY is not None, reason=f"{WHY}")
@pytest.mark.parametrize("programs", range(1, 17))
@pytest.mark.parametrize("warps", [4, 8])
def test_any_number_of_programs_shares_a_head(warps: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_rows, "cut", lambda pairs, length, held: Cut(warps, 3, programs))
    op = find_op("attention")
    # Fewer tiles than warps, programs without any, and several turns of each warp.
    for S in (5, 130, 1000):
        verdict = judge(op.case(B=2, S=S, queries="one", Hk=3, group=7, D=128, page=24, seed=S), ours("gpu"))

        assert verdict.passed, verdict.explain()


@pytest.mark.gpu
@pytest.mark.skipif(WHY is not None, reason=f"{WHY}")
def test_captured_changed_and_compiled_calls_agree() -> None:
    op = find_op("attention")
    cases = [op.case(B=B, S=200, queries="one", Hk=8, group=6, D=128, page=16) for B in (1, 2, 8)]

    assert list(capture_failures(op, cases, ours("gpu"), backend="aot_eager")) == []


@pytest.mark.gpu
@pytest.mark.skipif(WHY is not None, reason=f"{WHY}")
@pytest.mark.parametrize("programs", [3, 9, 15, 16])
def test_what_only_the_data_knows_spoils_its_own_sequence(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from minimax_m2.kernels.gpu.attention import attention

    monkeypatch.setattr(attention_rows, "cut", lambda pairs, length, held: Cut(4, 3, programs))
    g = torch.Generator(device="cuda").manual_seed(0)
    q = torch.randn(5, 6, 128, device="cuda", dtype=torch.bfloat16, generator=g)
    k, v = torch.randn(2, 32, 16, 1, 128, device="cuda", dtype=torch.bfloat16, generator=g)
    table = torch.arange(32, dtype=torch.int32, device="cuda").view(2, 16)

    def found(
        lengths: tuple[int, int], starts: tuple[int, ...], page: int = 0, longest: int = 256, where: int = 9
    ) -> str:
        changed = table.clone()
        changed[1, where] = page or changed[1, where]
        tensors = (torch.tensor(x, device="cuda") for x in (lengths, starts))
        y = attention(q, k, v, changed, *tensors, scale=0.1, max_query_len=1, max_seq_len=longest)
        return "".join("n" if row.isnan().all() else "0" if not row.any() else "y" for row in y)

    assert found((200, 256), (0, 1, 2)) == "yy000"
    assert found((200, 256), (2, 3, 4)) == "00yy0"
    # The promised maximum is a guess of where to begin: no result hangs on it.
    assert found((200, 256), (0, 1, 2), longest=100) == "yy000"
    assert found((200, 256), (0, 1, 2), longest=10_000) == "yy000"
    assert found((200, 256), (0, 1, 2), page=32) == "yn000"
    assert found((200, 256), (0, 1, 2), page=-1) == "yn000"
    # The last tile's program stores nothing where programs are no power of two.
    assert found((200, 256), (0, 1, 2), page=-1, where=15) == "yn000"
    assert found((200, 256), (0, 1, 2), page=2**30) == "yn000"
    assert found((257, 256), (0, 1, 2)) == "ny000"
    assert found((200, -1), (0, 1, 2)) == "yn000"
    assert found((200, 0), (0, 1, 2)) == "y0000"
    assert found((200, 256), (0, 1, 4)) == "yynn0"
    assert found((200, 256), (0, 1, 9)) == "ynnnn"
    assert found((200, 256), (0, 0, 1)) == "y0000"
