"""Two providers on one case: times from interleaved blocks, verdicts on what was timed, the roof beside them.

Here they are chosen, timed and judged; ``commands_bench`` asks for it and shows it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.compare import Comparison
from minimax_m2.harness.devices import absence
from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.graph_stopwatch import GraphStopwatch, Uncapturable
from minimax_m2.harness.judge import BITS, bits_of, expected, malformed
from minimax_m2.harness.judged_pieces import by_pieces
from minimax_m2.harness.judged_rows import judged
from minimax_m2.harness.op import Declared, Op
from minimax_m2.harness.paired import Pairing, PairRecord, clocks, paired
from minimax_m2.harness.peers import PEERS, NotHere, apart, device_of, known_variant, on_gpu
from minimax_m2.harness.provider import Provider, from_file
from minimax_m2.harness.record import SAMPLES, Canary, Record, Timing
from minimax_m2.harness.roofline import Roof, measure, measure_gpu
from minimax_m2.harness.run import run_name
from minimax_m2.harness.stopwatch import Remote, Stopwatch, Timed
from minimax_m2.harness.verdict import Outcome, Verdict, describe
from minimax_m2.harness.worker import Worker
from minimax_m2.harness.wrong_use import asked

# So many draws are timed in turn, as long as together they stay below this size.
DRAWS, DRAWN_BYTES = 4, 1 << 26
TIMED_ON = ("cpu", "gpu")
# The dtype of quantised factors, where a device multiplies in it.
CODES = "float8_e4m3fn"


class Refused(RuntimeError):
    """One of two providers does not run a case; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Side:
    """A provider to time, the variant that was asked for, and the worker it lives in, if any."""

    provider: Provider
    asked: str
    worker: Worker | None

    @property
    def clock(self) -> str:
        """How its times are taken."""
        return "graph" if self.provider.device == "gpu" else "stopwatch"

    def variant(self, op: Op) -> str:
        """The variant to time: the one asked for, or the best."""
        return self.asked or self.provider.variants_of(op.name)[-1]

    def timed(self, op: Op, cases: Sequence[Case]) -> Timed:
        texts, variant = [case.json for case in cases], self.variant(op)
        if self.provider.device == "gpu":
            return GraphStopwatch(self.provider, op, cases, variant)
        if self.worker is None:
            return Stopwatch(self.provider, texts, variant)
        return Remote(self.worker, texts, variant)

    def judged(self, op: Op, cases: Sequence[Case], timed: Timed) -> Verdict:
        """The verdict on what the timed calls returned: that of the first draw that is wrong, or of the last."""
        verdicts = [self._judged(op, case, timed, draw) for draw, case in enumerate(cases)]
        return next((v for v in verdicts if not v.passed), verdicts[-1])

    def _judged(self, op: Op, case: Case, timed: Timed, draw: int) -> Verdict:
        declared, outputs = self.provider.contract.get(op.name, {}), timed.outputs(draw)
        if isinstance(timed, GraphStopwatch):
            outcome, evidence, found = judged(op, case, declared, timed.given(draw), outputs)
            comparisons = tuple(found)
        elif op.pieces is not None:
            outcome, evidence, comparisons = by_pieces(op, case, declared, outputs)
        else:
            outcome, evidence, comparisons = self._compared(op, case, declared, outputs)
        return Verdict(
            outcome=outcome, op=op.name, case=case, provider=self.provider.name, device=self.provider.device,
            variant=self.variant(op), evidence=(evidence,), comparisons=comparisons,
            utilisation=max((c.utilisation for c in comparisons), default=0.0),
            bits=bits_of(tuple(o.detach().cpu() for o in outputs)).hex()[:BITS] if comparisons else "",
        )  # fmt: skip

    @staticmethod
    def _compared(
        op: Op, case: Case, declared: Declared, outputs: Outputs
    ) -> tuple[Outcome, str, tuple[Comparison, ...]]:
        right, _ = expected(op, case, declared)
        if (fault := malformed(right, outputs)) is not None:
            return *fault, ()
        comparisons = tuple(right.judge(outputs))
        wrong = [describe(c) for c in comparisons if not c.passed]
        return Outcome.WRONG if wrong else Outcome.PASS, "; ".join(wrong), comparisons


def compared(
    op: Op, case: Case, shape: str, setting: dict[str, Field], sides: tuple[Side, Side], seconds: float, roof: Roof
) -> PairRecord:
    """Time two sides on one case. Raises Refused where one of them does not take it."""
    for one in sides:
        refusal = one.provider.refuses(op, case) if one.provider.offers(op.name) else f"it does not offer {op.name}"
        if refusal is not None:
            raise Refused(f"{one.provider.name}: {refusal}")
    cases = draws(op, case)
    first, second = (one.timed(op, cases) for one in sides)
    try:
        pairing: Pairing = paired(first, second, seconds=seconds)
    except Uncapturable as error:
        raise Refused(str(error)) from error
    label, seen = run_name(), clocks(sides[0].provider.device)
    records = []
    for one, timed, call, samples in zip(sides, (first, second), pairing.calls, (pairing.a, pairing.b), strict=True):
        took = timing(op, case, shape, call, samples, roof, clock=one.clock)
        verdict = believable(op, one.judged(op, cases, timed), took, roof)
        records.append(Record.of(verdict, run=label, timing=took, purpose="compare", canary=Canary.of(roof)))
    return PairRecord(
        a=records[0], b=records[1], ratio=pairing.ratio, low=pairing.low, high=pairing.high, blocks=pairing.blocks,
        others=0.0, processes=1 if sides[0].worker is None and sides[1].worker is None else 2, setting=setting,
        date=datetime.now(UTC).date().isoformat(), clocks=seen,
    )  # fmt: skip


@contextmanager
def side(text: str, *, own_process: bool, device: str = "cpu") -> Iterator[Side]:
    """A provider by ``NAME``, ``NAME:VARIANT`` or file; a peer of a CPU has a process of its own whether asked or not.

    Raises NotHere with the reason where a peer is absent, WrongUse for an unknown name or variant.
    """
    # Here, because cli registers these commands.
    from minimax_m2.harness.cli import built_in

    name, _, variant = text.partition(":")
    with ExitStack() as stack:
        with asked():
            worker: Worker | None = None
            if device == "gpu" and name in PEERS:
                provider = on_gpu(name)
            elif device == "cpu" and (own_process or name in PEERS):
                worker, provider = stack.enter_context(apart(name))
            else:
                provider = from_file(name, device=device) if name.endswith(".py") else built_in(name, device)
            found = Side(provider, known_variant(name, variant, provider.variants), worker)
        yield found


def device_for(names: Sequence[str], asked_for: str = "") -> str:
    """Where providers are compared: where one is asked for, else where the peers among them run.

    Raises ValueError for an unknown device and for peers of two, NotHere where it is absent.
    """
    found = {device_of(name) for name in (text.partition(":")[0] for text in names) if name in PEERS}
    if len(found) > 1:
        raise ValueError(f"{' and '.join(names)} run on {' and '.join(sorted(found))}; compare peers of one device")
    device = asked_for or next(iter(found), "cpu")
    if device not in TIMED_ON:
        raise ValueError(f"device={device!r} cannot be timed; use one of {', '.join(TIMED_ON)}")
    if (reason := absence(device)) is not None:
        raise NotHere(f"device {device!r} is not here: {reason}")
    return device


def roof_of(device: str, progress: Callable[[str], None]) -> Roof:
    """The measured roof of a device."""
    return measure_gpu() if device == "gpu" else measure(progress)


def settings(pairs: Sequence[str]) -> dict[str, Field]:
    """Case fields of ``--set``; ValueError for what is no assignment."""
    found: dict[str, Field] = {}
    for text in pairs:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"--set {text!r} is no assignment of a case field; write --set T=16")
        found[name] = int(value) if value.lstrip("-").isdigit() else value
    return found


def shaped(op: Op, shape: str, setting: dict[str, Field]) -> Case:
    """A shape of an op with some fields set; ValueError for an unknown shape, field or word.

    Drawn cases of many tokens or sequences are narrow, to be judged in little time; one that is timed is as wide as it
    is said.
    """
    if shape not in op.shapes:
        raise ValueError(f"op {op.name} has no shape {shape!r}; it has {', '.join(op.shapes)}")
    for name, value in setting.items():
        _demand_known(op, name, value)
    fields = {**op.shapes[shape], **setting}
    given = ((name, least, fields.get(name)) for name, least in op.narrow_from.items())
    many = {name: (least, value) for name, least, value in given if isinstance(value, int) and value >= least}
    case = op.case(**fields | {name: least - 1 for name, (least, _) in many.items()})
    return case.but(**{name: value for name, (_, value) in many.items()})


def _demand_known(op: Op, name: str, value: Field) -> None:
    """Raise ValueError for a word that a field does not have: an op may take what it does not know for its default."""
    values = op.factors.get(name, (value,))
    # Sizes are free, words are those there are.
    if value not in values and not (isinstance(value, int) and any(isinstance(one, int) for one in values)):
        raise ValueError(f"op {op.name} has no {name}={value}; it has {', '.join(map(str, values))}")


def draws(op: Op, case: Case) -> list[Case]:
    """The case with a few seeds, so that no call meets the inputs of the one before; one where they are large."""
    count = max(1, min(DRAWS, DRAWN_BYTES // max(1, op.cost(case).bytes)))
    return [case.but(seed=case.number("seed") + i) for i in range(count)]


def timing(
    op: Op, case: Case, shape: str, call: str, seconds: Sequence[float], roof: Roof, *, clock: str = "stopwatch"
) -> Timing:
    """Samples as a record keeps them."""
    cost = op.cost(case)
    return Timing(
        shape=shape, call=call, median_us=statistics.median(seconds) * 1e6, best_us=min(seconds) * 1e6,
        calls=len(seconds), bytes=cost.bytes, flops=cost.flops, roof_us=roof.seconds(cost, factors(case, roof)) * 1e6,
        clock=clock, samples_us=some_of(seconds),
    )  # fmt: skip


def some_of(seconds: Sequence[float]) -> tuple[float, ...]:
    """Up to ``SAMPLES`` of these in microseconds, in their order: whether they lie in one heap, or wander."""
    taken = [seconds[at * len(seconds) // SAMPLES] for at in range(SAMPLES)] if len(seconds) > SAMPLES else seconds
    return tuple(float(f"{1e6 * one:.3g}") for one in taken)


def factors(case: Case, roof: Roof) -> str:
    """The dtype that a case multiplies in at best: that of its codes where the device has such products."""
    coded = case.op == "fp8_linear" or case.get("quant") in ("weights", "both")
    codes = "int8" if case.get("quant") == "int8" else CODES if coded else ""
    return codes if codes in roof.flops else case.word("dtype") if "dtype" in case else "float32"


def believable(op: Op, verdict: Verdict, took: Timing, roof: Roof) -> Verdict:
    """A verdict, IMPOSSIBLE where right outputs came sooner than the device can move or multiply what they need."""
    cost = op.cost(verdict.case)
    told = roof.impossible(cost, factors(verdict.case, roof), took.median_us * 1e-6) if verdict.passed else ""
    return replace(verdict, outcome=Outcome.IMPOSSIBLE, evidence=(told,)) if told else verdict
