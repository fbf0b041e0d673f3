"""What a call of an op gives: what it returned, as a tuple or shaped as it was, and what it wrote."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from minimax_m2.harness.op import Op


def values_of(returned: Any) -> tuple[Tensor, ...]:
    """What a call returned as a tuple."""
    return () if returned is None else tuple(returned) if isinstance(returned, tuple | list) else (returned,)


def outputs_of(op: Op, returned: Any, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """All that a call gave, in the op's order: what it returned, then the arguments that it wrote."""
    return (*values_of(returned), *(arguments[name] for name in op.mutates))


def shaped_as(returned: Any, values: Iterable[Tensor]) -> Any:
    """Other values in place of those that a call returned: nothing, one tensor, or a tuple."""
    given = tuple(values)
    return None if returned is None else given if isinstance(returned, tuple | list) else given[0]
