"""Where a kernel rounds is part of what it promises: contracts and their named rounding sites.

A reference writes its formula once and names each place where an engine may round::

    gate_up = rounded(x @ w13.mT, contract.gate_up)

and the same line is read three ways:

* ``contract=EXACT``: every site is ``None``, ``rounded`` is the identity, the formula is the float64 oracle;
* a filled ``Contract`` over plain tensors: the formula emulates a kernel that rounds there;
* a filled ``Contract`` over ``harness.budget.Budgeted`` values: the formula propagates the error budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SITES = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn")


class Contract:
    """Fields of one op's rounding contract, read as attributes.

    A field is a rounding site (a dtype name of ``SITES``, or ``None`` for "does not round here") or a
    choice the op's reference documents. An undeclared field is an ``AttributeError`` that lists the declared ones,
    so that a misspelt site can never be an identity by accident.
    """

    __slots__ = ("fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = dict(fields)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            known = ", ".join(sorted(self.fields)) or "none"
            raise AttributeError(f"contract has no field {name!r}; declared fields: {known}") from None

    def __repr__(self) -> str:
        return f"Contract({self.fields!r})"


class _Exact(Contract):
    """The contract of the oracle: nothing rounds, every choice takes the reference's first alternative."""

    __slots__ = ()

    def __getattr__(self, name: str) -> None:
        return None


EXACT: Contract = _Exact({})


def rounded(x: Tensor, site: str | None) -> Tensor:
    """Round ``x`` to the format ``site`` and keep its working dtype; ``None`` rounds nothing.

    x  any shape, floating; returns the same shape and dtype.

    Raises ValueError for a site outside ``SITES``.
    """
    if site is None:
        return x
    if site not in SITES:
        raise ValueError(f"rounding site {site!r} is unknown; use one of {', '.join(SITES)} or None")
    if torch.overrides.has_torch_function_unary(x):
        return torch.overrides.handle_torch_function(rounded, (x,), x, site)
    return x.to(getattr(torch, site)).to(x.dtype)
