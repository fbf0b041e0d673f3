"""Kernels of several GPUs sum by words in each other's memory: no order of arrival deceives them or has them stuck."""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minimax_m2.harness.fused_sums import Places
from minimax_m2.harness.mailbox_model import Mistaken, Protocol, Stuck, search

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.harness.cubin import compiled, launches_of
from minimax_m2.kernels.gpu import mailbox, sum_add_rms_norm, toolkit
from minimax_m2.kernels.gpu.sum_qk_norm_rope_cache import sum_qk_norm_rope_cache

CPU = torch.device("cpu")
TWO, THREE = Protocol(words=2), Protocol(ranks=3)
LAYER = (("statistics", "o_proj", "experts"),)
# Rank 1 leaves out o_proj.
SKIPPING = (*LAYER, ("statistics", "experts"))
# Rank 1 makes two sums change places.
REORDERED = (*LAYER, ("statistics", "experts", "o_proj"))


@pytest.mark.parametrize("protocol", [TWO, replace(TWO, flags=8), replace(TWO, words=1, sums=LAYER), THREE], ids=str)
def test_every_run_of_the_protocol_takes_what_was_sent_and_goes_on(protocol: Protocol) -> None:
    assert search(protocol) > 100


@pytest.mark.parametrize(
    ("wrong", "fault", "told"),
    [
        (replace(TWO, halves=1), Stuck, "ranks wait in turns"),
        (replace(TWO, flags=2), Mistaken, "took rows of turn"),
        (replace(TWO, halves=3, flags=3), Mistaken, "took rows of turn"),
        (replace(TWO, whole=False), Mistaken, "took what nobody sent"),
        (replace(TWO, sums=SKIPPING, places=False), Mistaken, r"took \w+ of turn 1 for (o_proj|experts)"),
        (replace(TWO, sums=REORDERED, places=False), Mistaken, r"took \w+ of turn 1 for (o_proj|experts)"),
    ],
    ids=["one half", "one bit of turn", "three halves, a flag each", "flag apart from its words", "a sum left out",
         "sums in another order"],
)  # fmt: skip
def test_a_protocol_with_less_is_deceived_or_stuck(wrong: Protocol, fault: type[Exception], told: str) -> None:
    with pytest.raises(fault, match=told):
        search(wrong)


@pytest.mark.parametrize("sums", [SKIPPING, REORDERED], ids=["a sum left out", "sums in another order"])
def test_ranks_that_sum_different_things_wait_and_are_not_deceived(sums: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(Stuck):
        search(replace(TWO, sums=sums))


def test_python_declares_the_mailbox_as_the_source_does() -> None:
    folder = Path(str(sum_add_rms_norm.__file__)).parent
    body = (folder / "mailbox.cuh").read_text().partition("struct Mailbox {")[2].partition("};")[0]
    lines = re.sub(r"//.*|\[\w+\]", "", body).split(";")
    names = [found for line in lines for found in re.findall(r"(\w+)\s*(?:,|$)", line)]
    assert names == [field[0] for field in mailbox.CMailbox._fields_]
    assert f"kMostRanks = {mailbox.MOST_RANKS};" in (folder / "mailbox.cuh").read_text()
    assert ctypes.sizeof(mailbox.CMailbox) == 8 * mailbox.MOST_RANKS + 3 * 8 + 5 * 4 + 4


def test_labels_have_numbers_that_do_not_hang_on_what_came_before() -> None:
    one, other = Places(mailbox.PLACES), Places(mailbox.PLACES)
    labels = [f"{what} of layer {layer}" for layer in range(62) for what in LAYER[0]]
    assert [one.of(label) for label in labels] == [other.of(label) for label in reversed(labels)][::-1]
    numbers = {one.of(label) for label in labels}
    assert len(numbers) == len(labels)
    assert min(numbers) > 0
    assert max(numbers) < mailbox.PLACES
    assert one.label(one.of("experts of layer 3")) == "experts of layer 3"
    assert "never came to" in one.label(0)


def test_what_a_kernel_notes_of_a_missing_rank_is_read_back() -> None:
    box = boxes()[0]
    assert box.given_up() is None
    box.missing[0] = 1 << 60 | 2 << 56 | 0xABCDEF << 32 | 0x123456 << 8 | 5
    assert box.given_up() == (1, 0xABCDEF, 0x123456)
    box.missing[0] = 2 << 56 | 0xABCDEF << 32 | 0x123456 << 8 | 3
    assert box.given_up() == (1, 0xABCDEF, None)


@pytest.mark.parametrize(
    ("ranks", "rows", "told"), [(9, 8, "up to 8 ranks"), (2, 65, r"outside 1\.\.64"), (2, 0, r"outside 1\.\.64")]
)
def test_more_than_a_mailbox_takes_is_refused(ranks: int, rows: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        mailbox.together(ranks, rows=rows, words=2, device=CPU, patience_s=1)


def boxes(words: int = 1536) -> list[mailbox.Mailbox]:
    return mailbox.together(2, rows=4, words=words, device=CPU, patience_s=1)


@pytest.mark.parametrize(
    ("tokens", "width", "told"),
    [(5, 3072, "5 rows of 1536 words; the mailbox takes up to 4 of 1536"), (1, 1536, "1 rows of 768 words")],
)
def test_rows_that_the_mailbox_is_not_for_are_refused(tokens: int, width: int, told: str) -> None:
    x, weight = torch.zeros(tokens, width).bfloat16(), torch.ones(width).bfloat16()
    with pytest.raises(ValueError, match=told):
        sum_add_rms_norm.sum_add_rms_norm(x, x, weight, boxes()[0], eps=1e-6, place=1)


@pytest.mark.parametrize(
    ("width", "dtype", "group", "expected"),
    [
        (3072, torch.bfloat16, None, True), (3072, torch.bfloat16, 128, True), (3072, torch.float32, None, True),
        (3072, torch.float32, 128, False), (3072, torch.float16, 64, False), (3008, torch.bfloat16, 128, False),
        (3070, torch.bfloat16, None, False), (8192, torch.bfloat16, None, True), (8196, torch.bfloat16, None, False),
        (256, torch.float64, None, False),
    ],
)  # fmt: skip
def test_rows_of_whole_runs_are_taken(width: int, dtype: torch.dtype, group: int | None, expected: bool) -> None:
    assert sum_add_rms_norm.fits(width, dtype, group=group) is expected


@pytest.mark.parametrize(("capability", "expected"), [(80, "80"), (86, "80"), (90, "90"), (103, "100"), (120, "120")])
def test_a_gpu_runs_the_newest_code_it_can(capability: int, expected: str) -> None:
    assert sum_add_rms_norm.architecture(capability) == expected


def test_without_rows_nothing_is_launched() -> None:
    x, weight = torch.zeros(0, 3072).bfloat16(), torch.ones(3072).bfloat16()
    y, residual = sum_add_rms_norm.sum_add_rms_norm(x, x, weight, boxes()[0], eps=1e-6, place=1)
    assert y.shape == residual.shape == (0, 3072)
    assert rotated(tokens=0) == []


def rotated(tokens: int = 3) -> list[object]:
    """The launches of a rank of two: 24 query and 4 key/value heads, of which 3 are counted."""
    qkv, table = torch.zeros(tokens, 32 * 128).bfloat16(), torch.zeros(64, 64)
    k_cache, v_cache = (torch.zeros(4, 16, 4, 128).bfloat16() for _ in range(2))
    return list(
        launches_of(
            lambda: sum_qk_norm_rope_cache(
                qkv, torch.ones(24 * 128), torch.ones(4 * 128), table, torch.arange(tokens), k_cache,
                v_cache, torch.arange(tokens), boxes(2)[1], num_heads=24, num_kv_heads=4, head_dim=128, rotary_dim=64,
                q_width=6144, k_width=1024, eps=1e-6, counted_kv_heads=3, place=1 << 23,
            )
        )
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_the_rotation_that_sums_compiles_and_spills_nothing(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMAX_M2_GPU_ARCH", str(capability))
    (launch,) = rotated()

    found = compiled(launch, capability)  # type: ignore[arg-type]

    assert found.spilled_bytes == 0
    assert "ATOMG" in found.instructions, "a wait that is given up leaves no word"


@pytest.mark.gpu
@pytest.mark.nightly
@pytest.mark.skipif(toolkit.compiler() is None, reason="nvcc is not here")
@pytest.mark.parametrize("architecture", toolkit.ARCHITECTURES["sum_add_rms_norm"])
def test_the_norm_that_sums_compiles_for_every_architecture(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIMAX_M2_CACHE", str(tmp_path))
    assert toolkit.build("sum_add_rms_norm", architecture).exists()
