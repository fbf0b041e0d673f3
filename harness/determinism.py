"""The card of a cell: under which changes that cannot matter its results stay the same to the bit.

    D0  called again                    D1  beside other work on the machine
    D2  a token alone, tokens permuted  D3  on every variant that the provider has
    D4  split over two ranks            D5  on every other device that the provider has

``D0+ D1+ D2- D3+ D5?`` holds what could be asked here, + where every bit agreed; what a case or a provider cannot be
asked is left out. D5 is asked of the provider of the same name on the other devices of a run, and is unknown, ``?``,
where none of them runs the case.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.judge import repeat
from minimax_m2.harness.op import Op, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.relation import Exactness, Relation, Standing, given_by, placed, relate, relations_of

BATCH = ("a token alone", "tokens permuted")
RANKS = " over ranks"
MARKS = {True: "+", False: "-", None: "?"}
BUSY = 128
"""Rows and columns of the products that keep the machine busy."""


def card(case: Case, provider: Provider, variant: str = "", elsewhere: Sequence[Provider] = ()) -> str:
    """Every level that a case can ask of a provider, which is ``elsewhere`` on other devices: ``D0+ D1+ D2- D5?``."""
    return " ".join(f"{level}{MARKS[held]}" for level, held in levels(case, provider, variant, elsewhere))


def levels(
    case: Case, provider: Provider, variant: str = "", elsewhere: Sequence[Provider] = ()
) -> Iterator[tuple[str, bool | None]]:
    """Levels from D0 to D5, and whether results kept every bit; None: nobody here could say."""
    op = find_op(case.op)
    yield "D0", repeat(case, provider, variant)
    with beside_other_work():
        busy = outputs(op, case, provider, variant)
    quiet = outputs(op, case, provider, variant)
    yield "D1", equal(busy, quiet)
    yield from _related("D2", op, case, provider, variant, [r for r in relations_of(op.name) if r.name in BATCH])
    others = [name for name in provider.variants_of(op.name) if name != variant]
    if others:
        yield "D3", all(equal(outputs(op, case, provider, name), quiet) for name in others)
    split = [relation for relation in relations_of(op.name) if relation.name.endswith(RANKS)]
    yield from _related("D4", op, case, provider, variant, split)
    yield "D5", _same_on(elsewhere, op, case, quiet)


def _same_on(elsewhere: Sequence[Provider], op: Op, case: Case, here: Outputs) -> bool | None:
    """Whether other devices gave the same bits; what raises there gave none."""
    asked = [p for p in elsewhere if p.offers(op.name) and p.refuses(op, case) is None]
    try:
        found = [outputs(op, case, p, variant) for p in asked for variant in p.variants_of(op.name)]
    except Exception:
        return False
    return all(equal(there, here) for there in found) if found else None


def _related(
    level: str, op: Op, case: Case, provider: Provider, variant: str, relations: list[Relation]
) -> Iterator[tuple[str, bool]]:
    found = [relate(relation, op, case, provider, variant, Exactness.BITS).standing for relation in relations]
    told = [standing is Standing.HOLDS for standing in found if standing in (Standing.HOLDS, Standing.BROKEN)]
    if told:
        yield level, all(told)


def outputs(op: Op, case: Case, provider: Provider, variant: str) -> Outputs:
    """What a provider returns for a case, then what it wrote."""
    with provider.enter(variant):
        return given_by(provider, op, placed(op.inputs(case, Bits(case)), provider))


def equal(a: Outputs, b: Outputs) -> bool:
    """Whether two calls returned the same bits."""
    pairs = [(x.contiguous().reshape(-1), y.contiguous().reshape(-1)) for x, y in zip(a, b, strict=True)]
    return all(x.dtype == y.dtype and torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in pairs)


@contextmanager
def beside_other_work() -> Iterator[None]:
    """Keep another thread multiplying matrices for as long as the block runs."""
    done, begun = threading.Event(), threading.Event()

    def work() -> None:
        x = torch.ones(BUSY, BUSY)
        while not done.is_set():
            x = (x @ x).clamp(max=1)
            begun.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()
