"""A long lock-step run that ends and goes on: a file holds what was found behind each layer, and what it carries on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minimax_m2.harness.drift.lockstep import Cell
from minimax_m2.harness.drift.spent import Spent
from minimax_m2.harness.drift.trajectory import Halfway


def keep(path: Path, where: Halfway, cells: Sequence[Cell], *, asked: str, spent: Spent) -> None:
    """Write where a run stands. Whoever reads meanwhile finds the file of the layer before."""
    found = [asdict(cell) | {"used": cell.used if math.isfinite(cell.used) else None} for cell in cells]
    tensors = {f"hidden.{i}": hidden for i, (hidden, _) in enumerate(where.streams)}
    tensors |= {f"residual.{i}": residual for i, (_, residual) in enumerate(where.streams)}
    metadata = {"layer": str(where.layer), "asked": asked, "cells": json.dumps(found)}
    metadata |= {"spent": json.dumps(asdict(spent))}
    beside = path.with_name(f"{path.name}.part")
    save_file({name: x.clone() for name, x in tensors.items()}, beside, metadata=metadata)
    os.replace(beside, path)


def resumed(path: Path, *, asked: str) -> tuple[Halfway, list[Cell], Spent]:
    """Where a run stands, and what it took. Raises ValueError for a file of another run, or of none."""
    try:
        with safe_open(path, "pt") as opened:
            known = opened.metadata() or {}
            if known.get("asked") != asked:
                raise ValueError(f"{path} is of another run ({known.get('asked')}); remove it, or name another file")
            count = len(list(opened.keys())) // 2
            streams = [(opened.get_tensor(f"hidden.{i}"), opened.get_tensor(f"residual.{i}")) for i in range(count)]
    except SafetensorError as error:
        raise ValueError(f"{path} is no file that a run kept: {error}; remove it") from error
    cells = (c | {"used": math.inf if c["used"] is None else c["used"]} for c in json.loads(known["cells"]))
    found = [Cell(**c | {"evidence": tuple(c["evidence"])}) for c in cells]
    return Halfway(layer=int(known["layer"]), streams=streams), found, Spent(**json.loads(known["spent"]))
