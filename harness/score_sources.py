"""The score on our CPU kernels' own sources: lines rewritten one at a time, compiled, and judged as a provider is.

A line of a header is judged in one op after the other that includes it, until one shows that it is wrong. Where the
compiler makes the same objects of the right line everywhere, nobody can tell, and it is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial

from minimax_m2.harness.bad_calls import answered, bad_calls_of
from minimax_m2.harness.op import Op, all_ops
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.rebuilding import DoesNotCompile, Place, all_rewrites, places_of, provider_of, rebuilt, runs
from minimax_m2.harness.rewriting import Rewrite
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.score import KERNELS, Kill, first_kill
from minimax_m2.harness.worker import Ended

A_BAD_CALL = "a bad call"
# Cases among which bad calls find theirs, as many as the conformance suite takes.
DRAWN_FOR_BAD_CALLS = 12
# Places that a line is judged in before it is said to survive.
JUDGED = 4

Planted = tuple[str, Rewrite]
Progress = Callable[[str, float], None]

# A source and an operator whose first rewrite is judged in every score: seconds to compile, and one of each kind.
FEW = (
    ("rotate_head.h", "halves exchanged"),
    ("rotate_head.h", "bound 1 further"),
    ("row_vectors.h", "a tail taken for whole"),
    ("moe_align.cpp", "a step too few"),
    ("kv_cache.cpp", "row of another"),
    ("group_quant.h", "unscaled"),
    ("expert_choice.h", "branches exchanged"),
    ("moe_align.cpp", "or equal"),
)


def planted(each: int, stems: Iterable[str]) -> list[Planted]:
    """Rewrites to judge: up to ``each`` of an operator in a source, spread over its lines; 0: the few of every score.

    Those that compute the same are left out.
    """
    wanted = set(stems)
    found: dict[tuple[str, str], list[Planted]] = {}
    for stem, rewrite in all_rewrites():
        if stem in wanted and reason(rewrite) is None:
            found.setdefault((rewrite.file, rewrite.defect), []).append((stem, rewrite))
    if each == 0:
        return [found[place][0] for place in FEW if place in found]
    return [one for places in found.values() for one in places[:: -(-len(places) // each)]]


def score_sources(
    chosen: Iterable[Planted], *, cases: int, progress: Progress = lambda text, share: None
) -> Iterator[Kill]:
    """Compile and judge each rewrite; what the compiler refuses is not counted."""
    made = list(chosen)
    for position, (_, rewrite) in enumerate(made):
        progress(f"kernels: {rewrite.name}", position / len(made))
        with suppress(DoesNotCompile):
            yield fate(rewrite, cases)


def fate(rewrite: Rewrite, cases: int) -> Kill:
    """Compile and judge a rewrite place by place, until it is caught or has been judged in ``JUDGED``.

    Where no object of any place differs it is ``equal``; where those do that this machine cannot run alone, it survives
    without an example. Raises DoesNotCompile.
    """
    start, met, examples, equal = time.perf_counter(), list[str](), 0, True
    checks: tuple[str, ...] = ()
    for place in places_of(rewrite.file):
        folder = rebuilt(place, rewrite) if equal or runs(place) else None
        if folder is None:
            continue
        equal = False
        if not runs(place):
            continue
        checks, more = judged(place, partial(provider_of, folder, "ours rewritten", place.isa), cases)
        met.append(place.stem)
        examples += more
        if checks or len(met) == JUDGED:
            break
    return Kill(
        name=rewrite.name, subject=met[-1] if checks else (met or [places_of(rewrite.file)[0].stem])[0], group=KERNELS,
        checks=checks, examples=examples, seconds=time.perf_counter() - start, equal=equal,
    )  # fmt: skip


def judged(place: Place, make: Callable[[], Provider], cases: int) -> tuple[tuple[str, ...], int]:
    """The checks that the first wrong example of any op of a place fails, and how many examples that took."""
    examples = 0
    for op in (op for op in all_ops().values() if (op.stem or op.name) == place.stem):
        for examine in (partial(first_kill, op, make, cases), partial(refusals, op, make)):
            try:
                checks, more = examine()
            except Ended as error:
                checks, more = (error.outcome.value,), 1
            examples += more
            if checks:
                return checks, examples
    return (), examples


def refusals(op: Op, make: Callable[[], Provider]) -> tuple[tuple[str, ...], int]:
    """Whether some bad call is answered, and how many were made until then."""
    provider = make()
    bad = list(bad_calls_of(op, sampled(op, DRAWN_FOR_BAD_CALLS)))
    for made, found in enumerate(bad, 1):
        if answered(found, op, provider):
            return (A_BAD_CALL,), made
    return (), len(bad)


AHEAD, ROOM, TOGETHER = (
    "it says what is fetched ahead, which no result hangs on",
    "a scratch is larger than what is kept in it",
    "it says how much is computed at once; each sum runs over its inputs in one order",
)
# Rewrites that compute the same, by source, operator and a part of the line, as it was or became: why nobody can tell.
EQUIVALENT: tuple[tuple[str, str, str, str], ...] = (
    ("attention.cpp", "least for largest", "ITEM_ROWS / group", "queries are divided among items, a query an item"),
    ("code_block.h", "not equal", "int CODE_VECTORS = ", TOGETHER),
    ("code_block.h", "not equal", "if (s != 0) multiply_code_rows", AHEAD),
    ("column_block.h", "not equal", "int ROWS = ", TOGETHER),
    ("copy_row.h", "not equal", "alignof(int32_t) != 0", "registers and memcpy copy the same bytes, aligned or not"),
    ("delta_rule.h", "or equal", "args.state_index[b] <= 0", "a sequence with a state writes its rows later"),
    ("expert_blocks.h", "1 more", "const int64_t last = ", AHEAD),
    ("expert_blocks.h", "sum for difference", "const int64_t last = ", AHEAD),
    ("expert_blocks.h", "largest for least", "const int64_t next = ", AHEAD),
    ("expert_choice.h", "a step too many", "int i = 0; i <= n; i += N", "ranks behind the last have room, no reader"),
    ("expert_slots.h", "or equal", "id <= 0 ? -1", "a word of 0 is expert 0 by weight 0, which adds 0 to numbers"),
    ("expert_slots.h", "1 more", "next(plan.first.begin()", "a counter more is that of no expert"),
    ("experts_int8.cpp", "or equal", "if (bad <= 0)", "a call whose first id is refused has no slots yet"),
    ("experts_mixture.h", "largest for least", "even(std::max(slab_of(", ROOM),
    ("fp8_linear.cpp", "1 more", "std::min(blocks, b + 1)", AHEAD),
    ("fp8_linear.cpp", "largest for least", "even(std::max(slab_of(", ROOM),
    ("group_quant.h", "or equal", "top <= SMALLEST_ABSMAX", "at the bound both sides are the bound"),
    ("node_shares.h", "not equal", "if (nodes != 1) return 0;", "it says whose blocks a thread takes first"),
    ("node_shares.h", "or equal", "node <= MAX_NODE_IDS", "only a machine of 65 nodes could tell"),
    ("node_shares.h", "a step too many", "i <= nodes_; ++i", "what is left of the first node's blocks is nothing"),
    ("row_products.h", "least for largest", "int64_t row_bytes = ", TOGETHER),
    ("row_products.h", "not advanced", "offset += 64", AHEAD),
    ("row_products.h", "not advanced", "row += stride", AHEAD),
    ("row_products.h", "not equal", "int BLOCK_ROWS = ", TOGETHER),
    ("row_products.h", "not equal", "int block_columns(", TOGETHER),
)


def reason(rewrite: Rewrite) -> str | None:
    """Why nobody can tell a rewrite from what is right; None where somebody can."""
    for file, defect, part, why in EQUIVALENT:
        if (rewrite.file, rewrite.defect) == (file, defect) and (part in rewrite.after or part in rewrite.before):
            return why
    return None
