"""What a page shows beside the nights: drift runs, the harness's own score, devices, the detector's own test."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minimax_m2.harness.devices import absence
from minimax_m2.harness.history.pages import Extras
from minimax_m2.harness.levels import LevelRecord, read_levels

# Figures of a replay that takes minutes; `replay.py` prints them, docs/nightly.md says when.
SELFTEST = Path(__file__).with_name("selftest.toml")


def extras(drift: Sequence[Path], trust: Path | None, levels: Sequence[Path] = ()) -> Extras:
    """Read the files. Raises ValueError naming the one that is none, FileNotFoundError for one that is not there."""
    return Extras(
        drift=[drift_run(path) for path in drift],
        trust=[] if trust is None else scores(trust),
        devices=devices(read_levels(levels)),
        levels=[level_row(record) for record in read_levels(levels)],
        selftest=tomllib.loads(SELFTEST.read_text()),
    )


def drift_run(path: Path) -> dict[str, Any]:
    """A drift run's JSON, checked by its own reader."""
    from minimax_m2.harness.drift.record import read_drift

    return json.loads(read_drift(path).json)


def scores(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON objects, or one list of them."""
    text = path.read_text()
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}; m2check score --json writes it") from error
    if not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path} holds no objects; m2check score --json writes it")
    return found


def level_row(record: LevelRecord) -> dict[str, Any]:
    """One op at one level, as the page shows it."""
    shown = "passed" if record.passed else "FAILED"
    date = f"{record.run[:4]}-{record.run[4:6]}-{record.run[6:8]}"
    return {"device": record.device, "level": record.level, "op": record.op, "tests": shown, "night": date,
            "commit": record.commit, "host": record.host}  # fmt: skip


def devices(shown: Sequence[LevelRecord] = ()) -> list[dict[str, Any]]:
    """What runs on this machine, at which level, and why not; below a device's own level, what tests recorded."""
    from minimax_m2.harness.providers.ours import instruction_set_table

    found = [
        {"device": "cpu", "level": name, "shows": "our kernels of this instruction set", "standing": _lacking(lacking)}
        for name, lacking in instruction_set_table().items()
        if not name.startswith("in force")
    ]
    for device, levels in LEVELS.items():
        reason = absence(device)
        own = "here" if reason is None else f"not here: {reason}"
        for level, shows in levels.items():
            standing = own if level in ON_DEVICE else _of_tests(device, level, shown)
            found.append({"device": device, "level": level, "shows": shows, "standing": standing})
    return found


def _of_tests(device: str, level: str, shown: Sequence[LevelRecord]) -> str:
    mine = [record for record in shown if record.device == device and record.level.startswith(level)]
    if not mine:
        return f"no record here: pytest -m {device} --levels FILE writes one"
    return f"{sum(record.passed for record in mine)} of {len(mine)} ops pass, {max(record.run for record in mine)[:8]}"


def _lacking(features: str) -> str:
    return f"not here: lacks {features}" if features else "here"


ON_DEVICE = ("G2", "N5")
LEVELS = {
    "gpu": {"G0": "Triton's interpreter", "G1": "compiled, its machine code read", "G2": "run on the device"},
    "npu": {
        "N0": "Triton's interpreter",
        "N1": "lowered for Ascend",
        "N2": "compiled for 910B3 and 910_9391",
        "N3a": "the lowered program run against float64",
        "N3b": "the planned program run on a poisoned buffer",
        "N4": "calls that match torch_npu's schemas, a model on a fake device",
        "N5": "run on silicon",
    },
}
