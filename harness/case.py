"""A case: a flat recipe of ints and enum names that builds the same tensors, bit for bit, on every device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property

Field = int | str
LARGEST_JSON = 400


class Case(Mapping[str, Field]):
    """One recipe: ``{"op": "routing", "T": 3, "E": 8, "K": 2, "regime": "normal", "seed": 7}``.

    Its ``id`` is the first 8 hex digits of the SHA-256 of its canonical JSON. Raises ValueError when the JSON would
    exceed 400 bytes: a case is a recipe, never data.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        for name, value in fields.items():
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise ValueError(f"case field {name}={value!r} is a {type(value).__name__}; use an int or an enum name")
        if not isinstance(fields.get("op"), str):
            raise ValueError(f"case {dict(fields)!r} names no op; add 'op'")
        self._fields = dict(fields)
        if len(self.json) >= LARGEST_JSON:
            raise ValueError(f"case is {len(self.json)} bytes of JSON; the limit is {LARGEST_JSON}: draw fewer fields")

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Read a case back; raises ValueError naming what is not a case."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"case {text[:80]!r} is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"case {text[:80]!r} is not a JSON object")
        return cls(fields)

    @property
    def op(self) -> str:
        return str(self._fields["op"])

    @cached_property
    def json(self) -> str:
        """Canonical text: keys sorted, no spaces."""
        return json.dumps(self._fields, sort_keys=True, separators=(",", ":"))

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(self.json.encode()).hexdigest()[:8]

    def number(self, name: str) -> int:
        """An integer field; KeyError names the case that lacks it."""
        value = self[name]
        if not isinstance(value, int):
            raise ValueError(f"case field {name}={value!r} of {self.json} is not an integer")
        return value

    def word(self, name: str) -> str:
        """An enum-name field."""
        value = self[name]
        if not isinstance(value, str):
            raise ValueError(f"case field {name}={value!r} of {self.json} is not a name")
        return value

    def but(self, **changes: Field) -> Case:
        """The same case with some fields changed."""
        return Case({**self._fields, **changes})

    def __getitem__(self, name: str) -> Field:
        try:
            return self._fields[name]
        except KeyError:
            raise KeyError(f"case {self.json} has no field {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __hash__(self) -> int:
        return hash(self.json)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Case) and self.json == other.json

    def __str__(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self._fields.items() if k != "op")

    __repr__ = __str__
