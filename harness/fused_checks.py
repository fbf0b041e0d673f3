"""What kernels that sum over ranks are asked on GPUs: the same of ranks on one, where they can be, and on several."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case
from minimax_m2.harness.cuda_graph import captured
from minimax_m2.harness.fused_ranks import EPS, PLACE, Ranks, drawn_rows, held_rows, summed_rows, summing_over
from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import gpu_unit
from minimax_m2.harness.sampling import sampled

CASES = ("add_rms_norm", "add_rms_norm_quant", "qk_norm_rope")
COUNT = 24
ROWS = [(1, 3072), (2, 3072), (5, 256), (33, 1024), (64, 3072), (7, 8192)]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Sums in a graph, replays of it, rows of each sum.
IN_A_GRAPH, REPLAYS, TOKENS, WIDTH = 20, 500, (1, 3, 64), 3072


def judged_cases(ranks: Ranks, op: str) -> dict[str, Any]:
    """Judge the op's sampled cases, those of M2's widths first, by the budgets of one rank."""
    provider, verdicts = summing_over(ranks), []
    for case in islice(_cases(provider, op), COUNT):
        verdicts.append(judge(case, provider))
    wrong = [verdict.explain() for verdict in verdicts if not verdict.passed]
    return {"op": op, "passed": len(verdicts) - len(wrong), "wrong": wrong}


def _cases(provider: Any, name: str) -> Iterator[Case]:
    op = find_op(name)
    drawn = [*(op.shape(shape) for shape in op.shapes), *sampled(op, 4000)]
    return (case for case in drawn if provider.refuses(op, case) is None)


def judged_rows(ranks: Ranks) -> list[str]:
    """Sums of whole shares, by the budget of their reduction: what is wrong."""
    told = []
    for seed, (tokens, width) in enumerate(ROWS):
        for dtype in DTYPES:
            if width * dtype.itemsize > 1 << 14:
                continue
            rows = drawn_rows(ranks.size, tokens=tokens, width=width, dtype=dtype, seed=seed)
            found = held_rows(rows, summed_rows(ranks, rows))
            told += [f"{tokens} x {width} {dtype}: {each}" for each in found if not each.passed]
    return told


def replays(ranks: Ranks) -> dict[str, int]:
    """Replay graphs of sums of numbers that differ from sum to sum, with ranks that dawdle in turns; count wrong ones.

    Rank r brings ``(n + r + column) % 64`` to sum n, so that every sum is exact and none is like the one before.
    """
    norm, device = gpu_unit("sum_add_rms_norm"), torch.device("cuda", torch.cuda.current_device())
    words = norm.words_of(WIDTH, torch.bfloat16)
    column, weight = torch.arange(WIDTH, device=device), torch.ones(WIDTH, device=device).bfloat16()
    sums, wrong = 0, 0
    for tokens in TOKENS:
        residual = torch.zeros(tokens, WIDTH, device=device).bfloat16()
        state = {box.rank: (torch.zeros((), dtype=torch.int64, device=device), torch.zeros((), dtype=torch.int64,
                 device=device)) for box in ranks.boxes(words)}  # fmt: skip

        def once(box: Any, turn: int, tokens: int = tokens, residual: Tensor = residual, state: Any = state) -> None:
            number, bad = state[box.rank]
            parts = [((number + rank + column) % 64).bfloat16().expand(tokens, -1) for rank in range(ranks.size)]
            if turn % 7 == box.rank:
                torch.cuda._sleep(20_000)
            _, total = norm.sum_add_rms_norm(
                parts[box.rank].contiguous(), residual, weight, box, eps=EPS, place=PLACE + turn % 3
            )
            bad += (total != torch.stack(parts).sum(0)).sum()
            number += 1

        def many(box: Any, once: Any = once) -> None:
            for turn in range(IN_A_GRAPH):
                once(box, turn)

        ranks.each(words, many)
        torch.cuda.synchronize()
        graph, _ = captured(partial(ranks.each, words, many))
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
        sums += (REPLAYS + 1) * IN_A_GRAPH
        wrong += sum(int(bad) for _, bad in state.values())
    return {"sums": sums, "wrong": wrong}


def missing_rank(ranks: Ranks) -> dict[str, Any]:
    """Let all ranks but the last sum rows, three times: what rows are, whom mailboxes name, how long it took."""
    norm, device = gpu_unit("sum_add_rms_norm"), torch.device("cuda", torch.cuda.current_device())
    x, weight = torch.ones(3, WIDTH, device=device).bfloat16(), torch.ones(WIDTH, device=device).bfloat16()
    words = norm.words_of(WIDTH, torch.bfloat16)
    boxes = [box for box in ranks.boxes(words) if box.rank < ranks.size - 1]
    # Libraries are loaded before the clock starts.
    norm.sum_add_rms_norm(x[:0], x[:0], weight, ranks.boxes(words)[0], eps=EPS, place=PLACE)
    torch.cuda.synchronize()
    start = time.perf_counter()
    rows = [norm.sum_add_rms_norm(x, x, weight, box, eps=EPS, place=PLACE)[0] for box in boxes for _ in range(3)]
    torch.cuda.synchronize()
    return {
        "seconds": time.perf_counter() - start,
        "rows are nan": all(bool(y.isnan().all()) for y in rows),
        "missing": {str(box.rank): list(box.given_up() or ()) for box in boxes},
    }
