"""The tables of docs/models_gpu.md, made from recorded steps of whole models and from nothing else.

``python -m minimax_m2.harness.model_tables ci/results/gpu-h200-20261122-model.jsonl`` prints them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from minimax_m2.harness.record import Record, parsed

HEADERS = {
    "decode": (
        "| layers | GPUs | sums by | batch | context | ms a step | tokens/s | of the byte floor |",
        "|---|---|---|---|---|---|---|---|",
    ),
    "prefill": (
        "| layers | GPUs | sums by | batch | context | ms to the first token | prompt tokens/s |",
        "|---|---|---|---|---|---|---|",
    ),
}


KINDS = ("model step", "model proof")


def read_model_steps(path: Path) -> list[Record]:
    """The steps of whole models in a file and the proofs beside them; ValueError names a line that is no record."""
    lines = [found for _, found in parsed(path, lambda text: None) if found.get("kind") in KINDS]
    return [Record.from_json(json.dumps(found)) for found in lines]


def model_table(records: Sequence[Record], phase: str) -> str:
    """Markdown: one row a load, the reason where it was not timed."""
    chosen = [record for record in records if record.kind == "model step" and record.case["phase"] == phase]
    order = sorted(chosen, key=lambda r: [str(r.case["sums"]), *(int(r.case[n]) for n in ("tp", "layers", "S", "B"))])
    return "\n".join([*HEADERS[phase], *(_row(record, phase) for record in order)])


def layer_table(records: Sequence[Record]) -> str:
    """Markdown: what a layer adds to a step, one row a load; empty where none was timed."""
    rows = [
        f"| {_at(r)} | {r.timing.median_us:.1f} | {100 * r.timing.share:.0f} % |"
        for r in records
        if r.kind == "model step" and r.case["phase"] == "layer" and r.timing is not None
    ]
    head = "| layers | GPUs | sums by | batch | context | us a layer | of the byte floor |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows]) if rows else ""


def forms_table(path: Path) -> str:
    """Markdown: what a layer of a token takes in each single form that was tried, and half of one."""
    found: dict[str, dict[str, str]] = {}
    for _, line in parsed(path, lambda text: None):
        if line["run"] == 1 and line["batch"] == 1 and "layer_us" in line and len(line["forms"]) == 1:
            found.setdefault(line["forms"][0], {})[line["what"]] = f"{line['layer_us']:.1f}"
    rows = [f"| {form} | {us.get('a layer', '')} | {us.get('half a layer', '')} |" for form, us in found.items()]
    return "\n".join(["| form | a layer us | half a layer us |", "|---|---|---|", *rows])


def caption(records: Sequence[Record], path: Path) -> str:
    """The line above a table: that it is measured, from which record, and on what."""
    machine = records[0].machine
    return (
        f"*measured* ({path.parent.parent.name}/{path.parent.name}/{path.name}, "
        f"{machine.get('accelerator', machine['processor'])}, torch {machine['torch']})"
    )


def proof_table(records: Sequence[Record]) -> str:
    """Markdown: what of each model was held against the reference, the verdict and its evidence."""
    rows = [
        f"| {r.case['layers']} | {r.case['tp']} | {_sums(r)} | {r.case['phase']} | {r.outcome} | {r.evidence[0]} |"
        for r in records
        if r.kind == "model proof"
    ]
    return "\n".join(["| layers | GPUs | sums by | phase | verdict | evidence |", "|---|---|---|---|---|---|", *rows])


def language_table(path: Path) -> str:
    """Markdown: what a trained model on our kernels made of a text, on one GPU and over ranks, from a ranks' record."""
    (found,) = (line for _, line in parsed(path, lambda text: None) if line.get("what") == "tiny-m2")
    rows = [f"| reference float64 | {found['reference']:.4f} | 0 |"]
    for name, score in found["scores"].items():
        rows.append(f"| {name} | {score['cross_entropy']:.4f} | {score['divergence']:.1e} |")
    return "\n".join(["| layout and weights | cross-entropy | divergence |", "|---|---|---|", *rows])


def _sums(record: Record) -> str:
    case = record.case
    by = {"ranks": "NCCL", "symmetric": "peers' memory", "fused": "peers' memory, in the norms"}
    return "" if case["tp"] == 1 else by[str(case["sums"])]


def _at(record: Record) -> str:
    """The first cells of a row: what was timed, at which load."""
    case = record.case
    return " | ".join([str(case["layers"]), str(case["tp"]), _sums(record), str(case["B"]), str(case["S"])])


def _row(record: Record, phase: str) -> str:
    case, cells = record.case, [_at(record)]
    if record.timing is None:
        return f"| {' | '.join([*cells, record.evidence[0], *[''] * (2 if phase == 'decode' else 1)])} |"
    ms = record.timing.median_us / 1e3
    if phase == "decode":
        cells += [f"{ms:.2f}", f"{int(case['B']) / ms * 1e3:.0f}", f"{100 * record.timing.share:.0f} %"]
    else:
        cells += [f"{ms:.0f}", f"{int(case['B']) * int(case['S']) / ms * 1e3:.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        records = read_model_steps(path)
        tables = [proof_table(records), *(model_table(records, phase) for phase in HEADERS), layer_table(records)]
        sys.stdout.write("".join(f"{caption(records, path)}\n{table}\n\n" for table in tables if table))


if __name__ == "__main__":
    main()
