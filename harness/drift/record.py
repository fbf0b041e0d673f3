"""What a drift run found, as JSON: the schema that pages and later commands read.

A file ``<run>.drift.json`` holds one object:

    schema, kind            2, "drift"
    run, machine            as in every record
    model, layers, tokens   what was run: its name, how many layers, how many tokens, and ``tokens_id``, a hash of them
    dtype, candidate, reference           names
    asked                                 the command's arguments, see ``Asked``: what gets the candidate again
    spent                   see ``spent.Spent``: seconds, peak_bytes (the largest resident set), parts
    columns                 the names of steps, in the order of a pass: the columns of the heatmap
    cells                   one object a place and phase, see ``lockstep.Cell``: layer (-1 is before the first,
                            ``layers`` behind the last), step, op, phase, outcome, used (null: no finite share),
                            test, mean_z2, evidence, explanation
    runs                    one object a whole run, see ``running.Found``: mode ("free" or "pinned"), curve (relative
                            rms error of the residual stream at each layer's entry, then of the logits), low and high
                            (the band in which right models stray), leaves (the first entry outside it, or null),
                            flips, agreement, divergence, tokens (one object a position that differs)

``used`` is error over budget: the heatmap colours log(used), 1 is the edge.
"""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from minimax_m2.harness.drift.calls import columns
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.lockstep import ABSENT, Cell, ranked
from minimax_m2.harness.drift.recording import Recording
from minimax_m2.harness.drift.running import Flip, Found, Odd
from minimax_m2.harness.drift.spent import NOTHING, Spent
from minimax_m2.harness.drift.subjects import tokens_id
from minimax_m2.harness.drift.trajectory import Subject
from minimax_m2.harness.record import machine
from minimax_m2.harness.run import run_name

SCHEMA = 2
SUFFIX = ".drift.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a command was asked to look at; paths are as they were written."""

    candidate: str
    reference: str = "fp64"
    model: str = ""
    tokens: str = ""
    length: int = 128
    quantized: bool = False
    dtype: str = "bfloat16"
    plant: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """The options of a command line that asks the same."""
        words = ["--candidate", self.candidate]
        words += [] if self.reference == "fp64" else ["--reference", self.reference]
        words += ["--model", self.model] if self.model else []
        words += ["--tokens", self.tokens] if self.tokens else []
        words += ["--length", str(self.length), *(["--quantized"] if self.quantized else [])]
        words += [] if self.dtype == "bfloat16" else ["--dtype", self.dtype]
        return shlex.join([*words, *(word for p in self.plant for word in ("--plant", p))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One drift run; see the module's docstring."""

    run: str
    model: str
    layers: int
    tokens: int
    tokens_id: str
    dtype: str
    candidate: str
    reference: str
    asked: Asked
    cells: tuple[Cell, ...] = ()
    runs: tuple[Found, ...] = ()
    spent: Spent = NOTHING
    machine: dict[str, str | int] = field(default_factory=machine)
    kind: str = "drift"
    schema: int = SCHEMA

    @classmethod
    def of(
        cls, subject: Subject, candidate: Candidate | Recording, asked: Asked, *, cells: tuple[Cell, ...] = (),
        runs: tuple[Found, ...] = (), spent: Spent = NOTHING,
    ) -> Drift:  # fmt: skip
        """Record what was found of a candidate in a model."""
        return cls(
            run=run_name(),
            model=subject.name,
            layers=subject.config.num_hidden_layers,
            tokens=len(subject.ids),
            tokens_id=tokens_id(subject.ids),
            dtype=str(subject.dtype).removeprefix("torch."),
            candidate=candidate.name,
            reference=asked.reference,
            asked=asked,
            cells=cells,
            runs=runs,
            spent=spent,
        )

    @property
    def columns(self) -> list[str]:
        return columns([cell.place for cell in self.cells])

    @property
    def ranked(self) -> list[Cell]:
        return ranked(self.cells)

    @property
    def wrong(self) -> list[Cell]:
        return [cell for cell in self.ranked if cell.is_wrong]

    @property
    def own(self) -> int:
        """Places that are the candidate's."""
        return len({cell.place for cell in self.cells if cell.outcome != ABSENT})

    @property
    def json(self) -> str:
        found: dict[str, Any] = asdict(self) | {"columns": self.columns}
        for cell in found["cells"]:
            cell["used"] = cell["used"] if math.isfinite(cell["used"]) else None
        return json.dumps(found, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Drift:
        """Read it back. Raises ValueError naming what is no drift run of this schema."""
        try:
            found: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{text[:60]!r} is not JSON: {error}") from error
        if not isinstance(found, dict) or (found.get("kind"), found.get("schema")) != ("drift", SCHEMA):
            raise ValueError(f"{text[:60]!r} is no drift run of schema {SCHEMA}")
        found.pop("columns", None)
        if set(found) != {f.name for f in fields(cls)}:
            raise ValueError(f"a drift run lacks or adds fields: {sorted(set(found) ^ {f.name for f in fields(cls)})}")
        cells = (c | {"used": math.inf if c["used"] is None else c["used"]} for c in found.pop("cells"))
        runs, asked, spent = (found.pop(name) for name in ("runs", "asked", "spent"))
        return cls(
            asked=Asked(**asked | {"plant": tuple(asked["plant"])}),
            cells=tuple(Cell(**c | {"evidence": tuple(c["evidence"])}) for c in cells),
            runs=tuple(_found(r) for r in runs),
            spent=Spent(**spent),
            **found,
        )


def _found(raw: dict[str, Any]) -> Found:
    flips = tuple(Flip(**flip) for flip in raw.pop("flips"))
    odd = tuple(Odd(**one) for one in raw.pop("odd"))
    lists: dict[str, Any] = {name: tuple(raw.pop(name)) for name in ("curve", "low", "high")}
    return Found(flips=flips, odd=odd, **lists, **raw)


def kept(found: Drift, folder: Path = Path("runs")) -> Path:
    """Write a run's record into the folder of all runs."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{found.run}{SUFFIX}"
    path.write_text(found.json)
    return path


def read_drift(path: Path) -> Drift:
    """A drift run's file. Raises FileNotFoundError, or ValueError where it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; `m2check drift` writes runs/<run>{SUFFIX}")
    return Drift.from_json(path.read_text())
