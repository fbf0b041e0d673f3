"""What our NPU kernels launch on cases, and the table of their plans: ``python -m minimax_m2.harness.npu.reach``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import build, call
from minimax_m2.harness.npu.launches import Launch, launches_of
from minimax_m2.harness.npu.our_kernels import built, provider, shapes_of
from minimax_m2.harness.npu.planned import plan_of
from minimax_m2.harness.npu.static_cost import cost_of
from minimax_m2.harness.npu.toolchain import CARDS, Compiler, compiler
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.ours import function_of


def launches_on(name: str, cases: Iterable[Case]) -> list[Launch]:
    """The different launches of our kernel on these cases, none of which runs; what it refuses is left out."""
    op, ours, function = find_op(name), provider(), function_of("npu", name)
    if function is None:
        raise ValueError(f"{name} has no NPU kernel; use one of {', '.join(built())}")
    found: list[Launch] = []
    for case in cases:
        if ours.refuses(op, case):
            continue
        arguments = build(op, case, ours)
        found += launches_of(lambda arguments=arguments: call(op, function, arguments))  # type: ignore[misc]
    return list({launch.request("lower"): launch for launch in found}.values())


HEADER = (
    "| op | kernel | card | of the buffer | scalar loops | KiB moved | vector instructions | barriers | *estimate* |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)


def rows(by: Compiler, card: str) -> Iterator[str]:
    """A row of the table a kernel, at the largest of its op's shapes of M2's widths."""
    for name in built():
        for launch in launches_on(name, shapes_of(name)[-1:]):
            answer = by.ask(launch.request("plan", card))
            if answer.error:
                raise RuntimeError(f"{launch.name}: {answer.error}")
            plan, cost = plan_of(answer), cost_of([launch], by, card)
            least = cost.least_us(card)
            yield (
                f"| {name} | {launch.name} | {card} | {plan.buffer_share:.0%} | {plan.scalar_loops} "
                f"| {cost.bytes / 1024:,.0f} | {cost.vector_instructions:,} | {cost.barriers:,} "
                f"| {'' if least is None else f'*{least:.2f} us*'} |"
            )


def main() -> None:
    sys.stdout.write(HEADER)
    with compiler() as by:
        for card in CARDS:
            sys.stdout.writelines(f"{row}\n" for row in dict.fromkeys(rows(by, card)))


if __name__ == "__main__":
    main()
