"""The error budget: a value in float64 that carries how far a correct kernel may stray from it.

``Budgeted`` goes through a reference's formula in place of a tensor. Beside the value it carries

    var      variance of the error that is independent from element to element
    shared   errors that many elements have in common (rstd of a row, scale of a group): ``sum_s coef_s * eps_s``
    bound    worst case of the error, deterministic
    limited  the part of ``var`` that a contraction over R effective terms made, over ``sqrt(R)``: elements of a row
             are linear in the same R errors, so ``(sum limited)^2`` is what their correlations add up to
    jump     the largest single step a re-quantised code can make (Bernstein's atom), 0 where nothing is quantised
    allowed  for a freshly quantised value only: lowest and highest code that a correct kernel may produce
    grid     spacing of the points on which a kernel's value lies; ``None``: the arithmetic's own. What a rounding
             leaves, and sums of such numbers, lie on coarser grids, where a further rounding errs by few values only

Errors are propagated to first order. A rounding to a format with precision p is modelled as uniform noise of half
a spacing, variance ``half_ulp^2 / 3``. Every primitive adds the rounding of the arithmetic it runs in. A primitive
without a rule raises. The rules stand in ``harness/budget_{movement,arithmetic,functions,composites}.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.formats import FORMATS, Format, half_ulp, lowest_bit, rounding_variance

RULES: dict[str, Callable[..., Any]] = {}
# A divisor that may be zero is at least this.
SMALLEST = 1e-300


class Arithmetic(NamedTuple):
    """What the kernel computes in between its named rounding sites.

    format    format of every elementary operation
    exp_ulps  accuracy of ``exp`` in ulp of that format (vLLM's and SGLang's CPU kernels: 20)
    lanes     partial sums that a sum is made in at least, which end in a tree; 1: one term after the other
    tensor_core  the kind that adds products, see ``budget_tensor_core``; None: float32 additions
    """

    format: Format = FORMATS["float32"]
    exp_ulps: float = 1.0
    lanes: int = 1
    tensor_core: str | None = None

    @property
    def unit(self) -> float:
        """Unit roundoff: half a spacing at 1."""
        return 2.0**-self.format.precision


class Shared(NamedTuple):
    """One family of errors that several elements have in common: element i errs by ``coef[i] * eps[label[i]]``."""

    source: int
    coef: Tensor
    label: Tensor


_sources = itertools.count()


def new_source() -> int:
    """The name of a family of shared errors that nothing else has."""
    return next(_sources)


@dataclass(frozen=True, slots=True, eq=False)
class Budgeted:
    """A float64 value with its propagated error; see the module's docstring for the fields."""

    value: Tensor
    var: Tensor
    bound: Tensor
    arithmetic: Arithmetic
    shared: tuple[Shared, ...] = ()
    limited: Tensor | None = None
    jump: Tensor | None = None
    allowed: tuple[Tensor, Tensor] | None = field(default=None)
    grid: Tensor | None = None

    @classmethod
    def exact(cls, value: Tensor, arithmetic: Arithmetic | None = None) -> Budgeted:
        """Wrap an input: the kernel reads the very same number."""
        value = value.to(torch.float64)
        zero = torch.zeros_like(value)
        return cls(value, zero, zero, arithmetic or Arithmetic())

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of the error of each element, shared components included."""
        total = self.var
        for part in self.shared:
            total = total + part.coef.square()
        return total.sqrt()

    @property
    def is_exact(self) -> Tensor:
        """Elements whose error is known to be nil."""
        return self.bound == 0

    # -- shape ---------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return self.value.device

    def size(self, dim: int | None = None) -> Any:
        return self.value.size() if dim is None else self.value.size(dim)

    def numel(self) -> int:
        return self.value.numel()

    def moved(self, move: Callable[[Tensor], Tensor]) -> Budgeted:
        """Apply a pure data movement (view, index, transpose) to the value and to every part of its error."""
        return Budgeted(
            value=move(self.value),
            var=move(self.var),
            bound=move(self.bound),
            arithmetic=self.arithmetic,
            shared=tuple(Shared(s.source, move(s.coef), move(s.label)) for s in self.shared),
            limited=None if self.limited is None else move(self.limited),
            jump=None if self.jump is None else move(self.jump),
            allowed=None if self.allowed is None else (move(self.allowed[0]), move(self.allowed[1])),
            grid=None if self.grid is None else move(self.grid),
        )

    def __getitem__(self, index: Any) -> Budgeted:
        return self.moved(lambda t: t[index])

    # -- operators -----------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Budgeted:
        return RULES["add"](self, other)

    def __radd__(self, other: Any) -> Budgeted:
        return RULES["add"](other, self)

    def __sub__(self, other: Any) -> Budgeted:
        return RULES["sub"](self, other)

    def __rsub__(self, other: Any) -> Budgeted:
        return RULES["sub"](other, self)

    def __mul__(self, other: Any) -> Budgeted:
        return RULES["mul"](self, other)

    def __rmul__(self, other: Any) -> Budgeted:
        return RULES["mul"](other, self)

    def __truediv__(self, other: Any) -> Budgeted:
        return RULES["div"](self, other)

    def __rtruediv__(self, other: Any) -> Budgeted:
        return RULES["div"](other, self)

    def __matmul__(self, other: Any) -> Budgeted:
        return RULES["matmul"](self, other)

    def __rmatmul__(self, other: Any) -> Budgeted:
        return RULES["matmul"](other, self)

    def __neg__(self) -> Budgeted:
        return replace(
            self, value=-self.value, shared=tuple(s._replace(coef=-s.coef) for s in self.shared), allowed=None
        )

    @property
    def mT(self) -> Budgeted:
        return self.moved(lambda t: t.mT)

    @property
    def T(self) -> Budgeted:
        return self.moved(lambda t: t.T)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__") or name not in RULES:
            raise AttributeError(f"no budget rule for {name!r}; write the reference with {', '.join(sorted(RULES))}")
        return lambda *args, **kwargs: RULES[name](self, *args, **kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__.strip("_")
        # Tensor.__rsub__(t, b) means b - t: torch names the reflected operators by a leading r.
        if name in ("rsub", "rdiv", "rtruediv", "rmatmul", "radd", "rmul"):
            name, args = name[1:], args[::-1]
        name = {"truediv": "div", "true_divide": "div", "get": "device"}.get(name, name)
        if name not in RULES:
            raise TypeError(f"no budget rule for {name!r}; write the reference with {', '.join(sorted(RULES))}")
        return RULES[name](*args, **(kwargs or {}))


def as_budgeted(x: object) -> Budgeted:
    """Assert that a reference kept its budget; a plain tensor means that it left the formula somewhere."""
    if not isinstance(x, Budgeted):
        raise TypeError(f"the reference returned a {type(x).__name__} where a Budgeted value was due")
    return x


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the budget rule of the named torch functions."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def new_shared(std: Tensor, label_of: Tensor, like: Tensor) -> Shared:
    """A fresh family of shared errors: ``std`` and ``label_of`` broadcast to the shape of ``like``."""
    return Shared(new_source(), std.expand(like.shape), label_of.expand(like.shape))


def element_labels(value: Tensor) -> Tensor:
    """A different label for every element of ``value``."""
    return torch.arange(value.numel(), device=value.device).view(value.shape)


def grid_of(x: Budgeted) -> Tensor:
    """Spacing of the points on which a kernel holds ``x``: a known number lies on multiples of its lowest bit."""
    spacing = 2 * half_ulp(x.value, x.arithmetic.format) if x.grid is None else x.grid
    return torch.where(x.is_exact, lowest_bit(x.value), spacing)


def with_roundoff(
    x: Budgeted, *, ulps: float = 0.5, exact: Tensor | None = None, grid: Tensor | None = None
) -> Budgeted:
    """Add the rounding of one elementary operation whose result is ``x``: ``ulps`` spacings of the arithmetic.

    ``exact`` marks elements computed from exact operands by a correctly rounded operation: there a representable
    result is not rounded at all, and any other errs by a known amount. (Products of a few significant bits lie on so
    few points between two neighbours that uniform noise would understate their error by up to a factor of 3.)
    ``grid`` is the spacing of the points on which the unrounded result lies. Results below the smallest normal number
    may be flushed to zero.
    """
    fmt = x.arithmetic.format
    worst = half_ulp(x.value, fmt) * (2.0 * ulps)
    tiny = x.value.abs() < 2.0**fmt.emin
    worst = torch.where(tiny, x.value.abs().clamp_min(worst), worst)
    noise = worst / 3**0.5
    if grid is not None:
        noise = torch.where(tiny, noise, rounding_variance(x.value, fmt, grid).sqrt())
        worst = torch.where(tiny | (grid < 4 * worst), worst, 0.0)
    if exact is not None:
        known = (x.value.to(fmt.dtype).to(torch.float64) - x.value).abs()
        noise = torch.where(exact & ~tiny, known, noise)
        nothing = exact & ((known == 0) & ~tiny | (x.value == 0))
        noise, worst = (torch.where(nothing, 0.0, error) for error in (noise, worst))
    return replace(x, var=x.var + noise.square(), bound=x.bound + worst, allowed=None)


import minimax_m2.harness.budget_composites  # noqa: E402
import minimax_m2.harness.budget_functions  # noqa: E402
import minimax_m2.harness.budget_quantisers  # noqa: E402, F401
