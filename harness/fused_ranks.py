"""Kernels that sum over ranks, as a provider: each rank's share of a case goes in, and the case's own judge decides.

The ranks are processes with a GPU each, or stand together on one GPU with a stream each. Rows are cut so that no sum
rounds: a rank has its columns and zeros; heads are cut as the model cuts them. What sums of whole shares round to is
held against ``reduced``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.budget import Arithmetic, Budgeted
from minimax_m2.harness.compare import Comparison, compare
from minimax_m2.harness.op import Op
from minimax_m2.harness.parallel_ops import placed_heads, qkv_share
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.ours import Contracts, gpu_unit
from minimax_m2.harness.symmetric import shared_mailbox
from minimax_m2.reference.add_rms_norm import add_rms_norm
from minimax_m2.reference.communicator import Communicator
from minimax_m2.reference.contract import Contract
from minimax_m2.reference.reduction import reduced
from minimax_m2.reference.sharding import cut, head_cut, heads, span

# What a sum is called here.
PLACE = 7
EPS = 1e-6


class Ranks:
    """The ranks whose kernels this process launches, and how it hears of the others' results.

    make   mailboxes of the ranks here for rows of so many words; all processes ask for the same, in the same order
    voice  None where all ranks are here
    """

    def __init__(self, make: Callable[[int], Sequence[Any]], size: int, voice: Communicator | None) -> None:
        self._make, self.size, self.voice = make, size, voice
        self._boxes: dict[int, Sequence[Any]] = {}

    def boxes(self, words: int) -> Sequence[Any]:
        """The mailboxes of the ranks here."""
        if words not in self._boxes:
            self._boxes[words] = self._make(words)
        return self._boxes[words]

    def each(self, words: int, call: Callable[[Any], Any]) -> list[Any]:
        """Call with the mailbox of every rank that is here, side by side on the device."""
        boxes = self.boxes(words)
        if len(boxes) == 1:
            return [call(boxes[0])]
        main, found = torch.cuda.current_stream(), []
        streams = [torch.cuda.Stream() for _ in boxes]
        for stream in streams:
            stream.wait_stream(main)
        for box, stream in zip(boxes, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(call(box))
        for stream in streams:
            main.wait_stream(stream)
        return found

    def gathered(self, parts: list[Tensor]) -> list[Tensor]:
        """The parts of all ranks, given those of the ranks here."""
        if self.voice is None:
            return parts
        return list(self.voice.all_gather(parts[0][None], label="parts"))


def on_one_gpu(ranks: int = 2, *, patience_s: float = 5.0) -> Ranks:
    """Ranks that share the current GPU."""
    box = gpu_unit("mailbox")
    device = torch.device("cuda", torch.cuda.current_device())

    def make(words: int) -> Sequence[Any]:
        found: Sequence[Any] = box.together(
            ranks, rows=box.MOST_ROWS, words=words, device=device, patience_s=patience_s
        )
        return found

    return Ranks(make, ranks, None)


def on_a_gpu_each(voice: Communicator, *, patience_s: float = 5.0) -> Ranks:
    """This process's rank of those that share memory."""
    return Ranks(lambda words: [shared_mailbox(voice, words, patience_s=patience_s)], voice.size, voice)


def summing_over(ranks: Ranks) -> Provider:
    """Our kernels that sum over ranks, under the names of the ops that they are on one rank."""
    norm, box = gpu_unit("sum_add_rms_norm"), gpu_unit("mailbox")

    def refuses(op: Op, case: Any) -> str | None:
        if not 0 < case.number("T") <= box.MOST_ROWS:
            return f"mailboxes hold 1 to {box.MOST_ROWS} rows; others are summed by a collective"
        if op.name.startswith("add_rms_norm"):
            group = case.number("group") if op.name == "add_rms_norm_quant" else None
            if not norm.fits(case.number("H"), getattr(torch, case.word("dtype")), group=group):
                return f"rows of {case['H']} cannot be cut into runs of {norm.CHUNK} bytes, or those into groups"
        elif case["stats"] != "none" or case.number("Hq") % case.number("Hk"):
            return "a kernel that sums statistics is given none, and ranks share whole groups of heads"
        return None

    functions = {
        "add_rms_norm": lambda *given, **more: _normed(ranks, norm.sum_add_rms_norm, *given, **more),
        "add_rms_norm_quant": lambda *given, **more: _normed(ranks, norm.sum_add_rms_norm_quant, *given, **more),
        "qk_norm_rope": lambda *given, **more: _rotated(ranks, *given, **more),
    }
    return Provider(
        name="ours summing over ranks", device="gpu", functions=functions.get, contract=Contracts("gpu"),
        refuses=refuses,
    )  # fmt: skip


def _normed(ranks: Ranks, op: Callable[..., Any], x: Tensor, residual: Tensor, weight: Tensor, **more: Any) -> Any:
    """Rank r brings its columns of x, and zeros."""

    def call(box: Any) -> Any:
        own = span(x.shape[1], parts=box.ranks, index=box.rank)
        share = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        share[:, own.start : own.stop] = x[:, own.start : own.stop]
        return op(share, residual.clone(), weight.clone(), box, place=PLACE, **more)

    words = gpu_unit("sum_add_rms_norm").words_of(x.shape[1], x.dtype)
    found = ranks.each(words, call)
    for other in found[1:]:
        _demand_same(found[0], other)
    if ranks.voice is not None:
        for mine in found[0]:
            _demand_same(ranks.gathered([mine.view(torch.uint8)]), [mine.view(torch.uint8)] * ranks.size)
    return found[0]


def _demand_same(one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    if not all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(one, other, strict=True)):
        raise ValueError("ranks that sum the same rows have other bits")


def _rotated(
    ranks: Ranks, qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor,
    positions: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int, **sizes: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Rank r brings its heads; k and v come by way of a cache. Statistics that are given are not asked for."""
    if stats is not None:
        raise ValueError("statistics are given; a kernel that sums them takes none")
    rope, tokens = gpu_unit("sum_qk_norm_rope_cache"), qkv.shape[0]

    def call(box: Any) -> tuple[Tensor, Tensor, Tensor]:
        own = heads(num_heads, num_kv_heads, tp=box.ranks, rank=box.rank)
        weights = (
            cut(weight, head_cut(which, head_dim=head_dim), dim=0).contiguous()
            for weight, which in ((q_weight, own.query), (k_weight, own.kv))
        )
        k, v = (torch.empty(1, tokens, len(own.kv), head_dim, dtype=qkv.dtype, device=qkv.device) for _ in range(2))
        q = rope.sum_qk_norm_rope_cache(
            qkv_share(qkv, own, num_heads, num_kv_heads, head_dim), *weights, cos_sin, positions, k, v,
            torch.arange(tokens, device=qkv.device), box, num_heads=len(own.query), num_kv_heads=len(own.kv),
            head_dim=head_dim, counted_kv_heads=own.counted_kv_heads, place=PLACE, **sizes,
        )  # fmt: skip
        return q, k[0], v[0]

    parts = [ranks.gathered(list(each)) for each in zip(*ranks.each(rope.WORDS, call), strict=True)]
    dealt = [heads(num_heads, num_kv_heads, tp=ranks.size, rank=rank) for rank in range(ranks.size)]
    query, kv = [own.query for own in dealt], [own.kv for own in dealt]
    counts = (num_heads, num_kv_heads, num_kv_heads)
    q, k, v = (placed_heads(p, which, n) for p, which, n in zip(parts, (query, kv, kv), counts, strict=True))
    return q, k, v


class Rows(NamedTuple):
    """Drawn shares of rows, one a rank, the residual stream and the norm's weight, on the host."""

    shares: list[Tensor]
    residual: Tensor
    weight: Tensor


def drawn_rows(ranks: int, *, tokens: int, width: int, dtype: torch.dtype, seed: int) -> Rows:
    """Shares of like size whose sum rounds, and a stream four times as large."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(tokens, width, generator=generator) for _ in range(ranks + 1)]
    weight = 1 + torch.randn(width, generator=generator) / 8
    return Rows([part.to(dtype) for part in parts[:-1]], (4 * parts[-1]).to(dtype), weight.to(dtype))


def summed_rows(ranks: Ranks, rows: Rows) -> tuple[Tensor, Tensor]:
    """``y, residual`` of the kernel, each rank bringing its share; the first rank's that is here."""
    norm, device = gpu_unit("sum_add_rms_norm"), torch.device("cuda", torch.cuda.current_device())
    residual, weight = rows.residual.to(device), rows.weight.to(device)
    shares = [share.to(device) for share in rows.shares]
    words = norm.words_of(residual.shape[1], residual.dtype)
    found = ranks.each(
        words, lambda box: norm.sum_add_rms_norm(shares[box.rank], residual, weight, box, eps=EPS, place=PLACE)
    )
    return found[0][0].cpu(), found[0][1].cpu()


def held_rows(
    rows: Rows, actual: tuple[Tensor, Tensor], *, running: str = "float32", variance_of: str = "unrounded"
) -> list[Comparison]:
    """Hold ``y, residual`` against the budget of a sum of shares as they travel, in ``running``, then the norm."""
    dtype = str(rows.residual.dtype).removeprefix("torch.")
    norm = Contract({"residual": dtype, "variance_of": variance_of, "normalised": None, "out": dtype})
    residual, weight = Budgeted.exact(rows.residual, Arithmetic()), rows.weight.double()
    expected: Any = add_rms_norm(_total(rows, running), residual, weight, eps=EPS, contract=norm)  # type: ignore[arg-type]
    return [compare(name, found, right) for name, found, right in zip(("y", "residual"), actual, expected, strict=True)]


def held_sum(rows: Rows, actual: Tensor) -> Comparison:
    """Hold a sum of shares against the budget of one that is rounded to their dtype at every addition."""
    return compare("sum", actual, _total(rows, str(rows.residual.dtype).removeprefix("torch.")))


def _total(rows: Rows, running: str) -> Any:
    sent: list[Any] = [Budgeted.exact(share, Arithmetic()) for share in rows.shares]
    return reduced(sent, contract=Contract({"partial": None, "running": running, "out": running}))
