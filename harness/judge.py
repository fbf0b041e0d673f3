"""Judge one call: build the case, ask the reference for its budget, run the provider, compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.arena import LARGE, NAN, Poison
from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case
from minimax_m2.harness.compare import ALPHA, Comparison
from minimax_m2.harness.devices import torch_device
from minimax_m2.harness.expectation import Expectation, Outputs, expectation
from minimax_m2.harness.layout import Misplaced, demand_layout, demand_own_memory
from minimax_m2.harness.op import Declared, Op, Pack, Spoilt, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.returned import outputs_of
from minimax_m2.harness.verdict import Outcome, Verdict, describe
from minimax_m2.harness.watched import Watched, built_anew, demand_independence, raw
from minimax_m2.harness.worker import Ended

# A case's false-alarm rate is shared by the two ways to call an op, whether a provider offers both or not: what a
# corruption must overcome is then the same for every provider.
ALPHA_OF_A_CALL = ALPHA / 2
# Hex digits of the hash of the outputs' bits that a verdict bears.
BITS = 16

# Bytes of memory to be written above which inputs are drawn anew and not copied.
COPIED_UP_TO = 2**24


class Known(NamedTuple):
    """What is known of a case under a contract: ``compared`` holds comparisons by a hash of the outputs' bits."""

    right: Expectation
    unnoticed: tuple[str, ...]
    applied: frozenset[str]
    compared: dict[bytes, list[Comparison]]


@lru_cache(maxsize=64)
def _expected(case: Case, contract: str) -> Known:
    op = find_op(case.op)
    found = expectation(op, case, json.loads(contract))
    unnoticed, applied = [], set()
    for name, wrong in found.corruptions():
        output, _, kind = name.partition(":")
        applied.add(kind)
        if all(c.passed for c in found.judge(wrong, alpha=ALPHA_OF_A_CALL, suspect=output)):
            unnoticed.append(name)
    return Known(found, tuple(unnoticed), frozenset(applied), {})


def expected(op: Op, case: Case, declared: Declared) -> tuple[Expectation, tuple[str, ...]]:
    """The expectation of a case under a provider's contract, and the corruptions that it fails to notice."""
    known = _expected(case, _full(op, case, declared))
    return known.right, known.unnoticed


def _full(op: Op, case: Case, declared: Declared) -> str:
    return json.dumps(op.full_contract(case, declared))


def bits_of(outputs: Outputs) -> bytes:
    """A hash of the outputs' bits, which lie on the host."""
    digest = hashlib.blake2b()
    for output in outputs:
        digest.update(output.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def _compared(outputs: Outputs, known: Known) -> tuple[bytes, list[Comparison]]:
    """Judge outputs of the right shapes, with their hash; equal bits, as of ``<op>`` and ``<op>_out``, once."""
    bits = bits_of(outputs)
    if bits not in known.compared:
        known.compared[bits] = known.right.judge(outputs, alpha=ALPHA_OF_A_CALL)
    return bits, known.compared[bits]


def judge(case: Case, provider: Provider, variant: str = "") -> Verdict:
    """Run a provider on a case and say what happened. Where it offers ``<op>_out`` too, both are judged."""
    op = find_op(case.op)

    def verdict(outcome: Outcome, *evidence: str, **more: Any) -> Verdict:
        return Verdict(
            outcome=outcome, op=op.name, case=case, provider=provider.name, device=provider.device, variant=variant,
            evidence=evidence, **more,
        )  # fmt: skip

    try:
        refusal, declared = provider.refuses(op, case), provider.contract.get(op.name, {})
    except Ended as error:
        return verdict(error.outcome, str(error))
    if refusal is not None:
        return verdict(Outcome.UNSUPPORTED, refusal)
    known = _expected(case, _full(op, case, declared))
    right, unnoticed = known.right, known.unnoticed
    if unnoticed and declared and not expected(op, case, {})[1]:
        # The case can judge a kernel, but not one that rounds so often: no fault of either.
        return verdict(Outcome.UNSUPPORTED, f"the contract's own noise hides {', '.join(unnoticed)} in so small a case")
    if unnoticed:
        return verdict(Outcome.VACUOUS, f"the budget would let these corruptions pass: {', '.join(unnoticed)}")
    comparisons, passed, hashed = list[Comparison](), dict[str, Outputs](), dict[str, bytes]()
    for name, call, spoilt in _ways(op, case, provider, known):
        way = name if spoilt is None else f"{name} on {spoilt.named}"
        try:
            with provider.enter(variant):
                outputs, written = call()
        except (Ended, Misplaced) as error:
            return verdict(error.outcome, f"{way}: {error}")
        # SystemExit too: a provider that leaves must not take the run with it, least of all with exit code 0.
        except (Exception, SystemExit) as error:
            if spoilt is not None and isinstance(error, ValueError) and spoilt.named in str(error):
                continue
            if isinstance(error, MemoryError | torch.OutOfMemoryError):
                return verdict(Outcome.OUT_OF_MEMORY, f"{way}: {type(error).__name__}: {error}")
            return verdict(Outcome.RAISED, f"{way} raised {type(error).__name__}: {error}")
        if written:
            return verdict(Outcome.WROTE_INPUT, f"{way} wrote to its input {written}")
        fault = malformed(right, outputs) or misplaced(right, outputs, provider.device)
        if fault is not None:
            return verdict(fault[0], f"{way}: {fault[1]}")
        on_host = tuple(o.detach().cpu() for o in outputs)
        if spoilt is None:
            passed[name] = on_host
        else:
            if told := spoilt.implausible(on_host):
                return verdict(Outcome.WRONG, f"{way}: {told}")
            on_host = tuple(_mended(o, spoilt.rows, whole) for o, whole in zip(on_host, passed[name], strict=True))
        hashed[way], found = _compared(on_host, known)
        comparisons += found
        failed = [c for c in found if not c.passed]
        if failed:
            outcome = Outcome.NOT_A_NUMBER if _new_nan(right, on_host) else Outcome.WRONG
            return verdict(
                outcome, *(f"{way}: {describe(c)}" for c in failed), comparisons=tuple(comparisons),
                utilisation=max(c.utilisation for c in found),
            )  # fmt: skip
    utilisation = max(c.utilisation for c in comparisons)
    return verdict(
        Outcome.PASS, comparisons=tuple(comparisons), utilisation=utilisation, due=right.kinds, applied=known.applied,
        bits=hashed[op.name].hex()[:BITS],
    )  # fmt: skip


def repeat(case: Case, provider: Provider, variant: str = "") -> bool:
    """Whether two calls on equal inputs give equal bits."""
    op = find_op(case.op)
    function = provider.function(op.name)
    results = []
    for _ in range(2):
        arguments = build(op, case, provider)
        with provider.enter(variant):
            outputs = outputs_of(op, call(op, function, arguments), arguments)
            # Copied at once: a provider may return the same memory again.
            results.append([torch.clone(o, memory_format=torch.contiguous_format) for o in outputs])
    return all(torch.equal(raw(a), raw(b)) for a, b in zip(*results, strict=True))


def _mended(spoilt: Tensor, rows: Tensor, whole: Tensor) -> Tensor:
    """Rows that were spoilt as they are in ``whole``, so that the others can be judged."""
    return torch.where(rows.view(-1, *[1] * (whole.ndim - 1)), whole, spoilt)


def _ways(
    op: Op, case: Case, provider: Provider, known: Known
) -> Iterator[tuple[str, Callable[[], tuple[Outputs, str]], Spoilt | None]]:
    """Every call to judge: on the case's arguments, then on those with spoilt rows where the op has such."""

    def accepted(outputs: Outputs) -> bool:
        return all(c.passed for c in _compared(tuple(o.detach().cpu() for o in outputs), known)[1])

    yield from ((name, call, None) for name, call in calls(op, case, provider, known.right, None, accepted))
    spoilt = op.spoil(case, _fresh(op, case)) if op.spoil is not None else None
    if spoilt is not None:
        yield from ((name, call, spoilt) for name, call in calls(op, case, provider, known.right, spoilt.arguments))


def calls(
    op: Op,
    case: Case,
    provider: Provider,
    right: Expectation,
    given: dict[str, Any] | None = None,
    accepted: Callable[[Outputs], bool] = lambda outputs: False,
) -> Iterator[tuple[str, Callable[[], tuple[Outputs, str]]]]:
    """The ways to call an op: ``<op>``, and ``<op>_out`` with poisoned outputs where the provider has it.

    Each is called twice, in memory that holds other poison; a result that is ``accepted`` must not depend on it.
    ``given`` stands for the case's own arguments; each call gets a copy.
    """
    function, out_variant = provider.function(op.name), provider.functions(f"{op.name}_out")

    def watched(built: dict[str, Any], poison: Poison, out: bool) -> Watched:
        return Watched(op, built, device=provider.device, poison=poison, right=right if out else None)

    def twice(called: Callable[..., Any], out: bool) -> tuple[Outputs, str]:
        def invoke(arguments: dict[str, Any], outputs: list[Tensor]) -> Any:
            return call(op, called, arguments, outputs)

        built = build(op, case, provider, given)
        first = watched(built, NAN, out)
        outputs = first.call(invoke)
        written = first.written()
        if written:
            return outputs, written
        if not out:
            demand_layout(op, first.returned, first.arguments.values())
        elif given is not None or all(dtype.is_floating_point for dtype in right.dtypes.values()):
            # What is left of NaN in outputs that hold it is seen at once.
            return outputs, written
        # The first result is held, so nothing else may lie where it does; a state is not advanced twice.
        anew = built_anew(op, built)
        again = watched(build(op, case, provider, given) if anew else built, LARGE if given is None else NAN, out)
        other = again.call(invoke)
        written = again.written()
        if not out:
            demand_own_memory(op, again.returned, first.returned)
        if given is None and malformed(right, outputs) is malformed(right, other) is None and accepted(outputs):

            def repeat() -> Outputs:
                return watched(build(op, case, provider) if anew else built, NAN, out).call(invoke)

            demand_independence(right, outputs, other, repeat)
        return outputs, written

    yield op.name, lambda: twice(function, False)
    if out_variant is not None:
        yield f"{op.name}_out", lambda: twice(out_variant, True)


def build(op: Op, case: Case, provider: Provider, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fresh arguments, a copy of those given if any, on the provider's device; packed by it where an op packs."""
    drawn = _fresh(op, case) if given is None else deepcopy(given)
    return {name: on_device(value, provider) for name, value in drawn.items()}


def _fresh(op: Op, case: Case) -> dict[str, Any]:
    drawn = _drawn(op.inputs, case)
    # A cache to be written may be spread over gigabytes that nobody touches: drawing it is cheaper than a copy, so it
    # is given away.
    if any(drawn[name].untyped_storage().nbytes() > COPIED_UP_TO for name in op.mutates):
        _drawn.cache_clear()
        return drawn
    return deepcopy(drawn)


@lru_cache(maxsize=1)
def _drawn(inputs: Callable[[Case, Bits], dict[str, Any]], case: Case) -> dict[str, Any]:
    """The inputs of the last case: every variant and call asks for the same ones."""
    return inputs(case, Bits(case))


def on_device(value: Any, provider: Provider) -> Any:
    """A value as a provider takes it: packed by it where an op packs, on its device, strides and gaps kept."""
    if isinstance(value, Pack):
        pack = provider.functions(value.function)
        if pack is None:
            raise ValueError(f"provider {provider.name!r} offers the op but not {value.function}; define both")
        return pack(**{k: on_device(v, provider) for k, v in value.arguments.items()})
    if isinstance(value, Tensor) and provider.device != "cpu":
        return moved(value, torch_device(provider.device))
    return value


def moved(value: Tensor, device: str) -> Tensor:
    """Copy to a device with strides and gaps kept."""
    whole = value.new_empty(0).set_(value.untyped_storage())
    return torch.as_strided(whole.to(device), value.shape, value.stride(), value.storage_offset())


def call(op: Op, function: Callable[..., Any], arguments: dict[str, Any], outputs: list[Tensor] | None = None) -> Any:
    """Call as the op's signature says, with the outputs of an ``_out`` variant if any."""
    return op.bind(function, arguments, outputs or ())()


def blank(op: Op, right: Expectation, provider: Provider) -> list[Tensor]:
    """The outputs to hand to ``<op>_out``; written inputs are passed as such."""
    names = [name for name in right.dtypes if name not in op.mutates]
    return [poisoned(right.shapes[name], right.dtypes[name], provider.device) for name in names]


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Memory that nobody has written yet: NaN, or the largest integer."""
    place = torch_device(device)
    if dtype.is_floating_point:
        return torch.full(shape, torch.nan, device=place).to(dtype)
    return torch.full(shape, torch.iinfo(dtype).max, dtype=dtype, device=place)


def malformed(right: Expectation, outputs: Outputs) -> tuple[Outcome, str] | None:
    """Say which output is missing, no tensor, or of another shape or dtype; None where their values can be judged."""
    if len(outputs) != len(right.dtypes):
        return Outcome.WRONG_SHAPE, f"returned {len(outputs)} values, expected {len(right.dtypes)}"
    for (name, dtype), output in zip(right.dtypes.items(), outputs, strict=True):
        if not isinstance(output, Tensor):
            return Outcome.WRONG_DTYPE, f"{name} is a {type(output).__name__}, expected a tensor"
        if tuple(output.shape) != right.shapes[name]:
            return Outcome.WRONG_SHAPE, f"{name} has shape {list(output.shape)}, expected {list(right.shapes[name])}"
        if output.dtype != dtype:
            return Outcome.WRONG_DTYPE, f"{name} has dtype {output.dtype}, expected {dtype}"
    return None


def misplaced(right: Expectation, outputs: Outputs, device: str) -> tuple[Outcome, str] | None:
    """Say which output lies on another device than the case's tensors did."""
    expected_type = torch_device(device)
    for name, output in zip(right.dtypes, outputs, strict=True):
        if output.device.type != expected_type:
            return Outcome.WRONG_LAYOUT, f"{name} lies on {output.device}, expected {expected_type}"
    return None


def _new_nan(right: Expectation, outputs: Outputs) -> bool:
    perfect = right.perfect()
    return any(
        bool((got.double().isnan() & ~want.double().isnan()).any()) for got, want in zip(outputs, perfect, strict=True)
    )
