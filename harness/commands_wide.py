"""``m2check bench --model`` and ``m2check generate --model``: whole models on a device, over ranks where asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
import typer
from rich.table import Table

from minimax_m2.harness.ablation import ablated
from minimax_m2.harness.continuation import continued
from minimax_m2.harness.devices import absence, synchronise
from minimax_m2.harness.language import eval_windows, provider_model
from minimax_m2.harness.model_bench import Plan, timed_plan
from minimax_m2.harness.models import tiny_m2
from minimax_m2.harness.paired import PairRecord
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.ranks import RanksFailed, launch, shortage
from minimax_m2.harness.record import Log, Record
from minimax_m2.harness.run import new_log
from minimax_m2.harness.wrong_use import WrongUse, asked
from minimax_m2.reference.config import MiniMaxM2Config

# Ranks that compile for minutes are not missing.
COMPILING = 600.0
FIELDS = {"layers": MiniMaxM2Config().num_hidden_layers, "tokens": 32, "ranks": 1, "seed": 0}
WORDS = {"sums": ("ranks", "symmetric", "fused")}


def wide_plan(setting: dict[str, Any], loads: Sequence[str], prompts: Sequence[str]) -> tuple[Plan, int]:
    """The plan and the number of ranks of ``--set, --load, --prompt``; ValueError for what none of them takes.

    loads, prompts  ``8x4096``: sequences and what each holds before a decode, or brings; prompts are the loads if none
    """
    unknown = sorted(set(setting) - {*FIELDS, *WORDS})
    if unknown:
        raise ValueError(f"model m2 has no field {unknown[0]!r}; it has {', '.join([*FIELDS, *WORDS])}")
    found: dict[str, Any] = {**FIELDS, "sums": "ranks", **setting}
    for name, least in {**dict.fromkeys(FIELDS, 1), "seed": 0}.items():
        if not isinstance(found[name], int) or found[name] < least:
            raise ValueError(f"{name}={found[name]!r}; expected a number from {least}")
    if found["sums"] not in WORDS["sums"]:
        raise ValueError(f"sums={found['sums']!r} is unknown; use {', '.join(WORDS['sums'])}")
    if found["layers"] > MiniMaxM2Config().num_hidden_layers:
        raise ValueError(f"layers={found['layers']}; MiniMax-M2 has {MiniMaxM2Config().num_hidden_layers}")
    decoded = tuple(_load(text) for text in loads)
    brought = tuple(_load(text) for text in prompts) or decoded
    plan = Plan(
        layers=found["layers"], loads=decoded, prompts=brought, tokens=found["tokens"], seed=found["seed"],
        sums=found["sums"],
    )  # fmt: skip
    return plan, found["ranks"]


def _load(text: str) -> tuple[int, int]:
    sequences, _, held = text.partition("x")
    if not (sequences.isdigit() and held.isdigit() and int(sequences) and int(held)):
        raise ValueError(f"load {text!r} names no sequences and tokens; write 8x4096")
    return int(sequences), int(held)


def bench_model(
    model: str, device: str, setting: dict[str, Any], *, loads: Sequence[str], prompts: Sequence[str], ablate: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Time a decode step and the time to the first token of a model of M2's widths, proven first."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, RUNS, WRONG, console, finish, working

    with asked():
        if model != "m2":
            raise ValueError(f"model {model!r} is unknown to bench; it times m2, compare --model times the others")
        plan, ranks = wide_plan(setting, loads or ["1x4096"], prompts)
        if plan.sums != "ranks" and (device != "gpu" or ranks == 1):
            raise ValueError(
                f"sums={plan.sums} adds over GPUs that see each other's memory; set device gpu and ranks=2"
            )
        if ablate and (ranks > 1 or loads or prompts):
            raise ValueError("--ablate compares on one rank, by batches of its own; leave ranks, --load, --prompt out")
    said = f"m2check bench --model {model} --device {device}"
    options = [f"--set {name}={value}" for name, value in setting.items()]
    options += [f"--load {text}" for text in loads] + [f"--prompt {text}" for text in prompts]
    again = " ".join([said, *options, *(["--ablate"] if ablate else [])])
    if (reason := shortage(device, ranks) or absence(device)) is not None:
        finish(NOTHING_MEASURED, "nothing was measured", reason, "m2check doctor")
    _, log = new_log(RUNS)
    records: list[Record] = []
    if ablate:
        ablation(plan, device, log, again, as_json=as_json)
    with log, working() as bar:
        task = bar.add_task("starting", total=None)
        try:
            for record in _records(plan, ranks, device, lambda text: bar.update(task, description=text)):
                log.append(record.json)
                records.append(record)
        except RanksFailed as error:
            finish(WRONG, f"the model over {ranks} ranks did not run", str(error), again)
    if as_json:
        for record in records:
            typer.echo(record.json)
    else:
        console.print(_table(records))
    wrong = [record for record in records if record.outcome not in ("pass", "unsupported")]
    if wrong:
        finish(WRONG, f"the {wrong[0].case['phase']} of {wrong[0].provider} is wrong", wrong[0].evidence[0], again)
    if not any(record.timing for record in records):
        finish(NOTHING_MEASURED, "nothing was measured", records[-1].evidence[0], again)
    finish(0, f"{plan.layers} layers over {ranks} ranks timed", f"records: {log.path}", again)


def ablation(plan: Plan, device: str, log: Log, again: str, *, as_json: bool) -> NoReturn:
    """Compare a model with each of its fused ops in parts, and exit with what came of it."""
    from minimax_m2.harness.cli import NOTHING_MEASURED, WRONG, console, finish, working

    pairs: list[PairRecord] = []
    with log, working() as bar, torch.inference_mode():
        task = bar.add_task("starting", total=None)
        try:
            for pair in ablated(
                plan, MiniMaxM2Config(), device=device, tell=lambda text: bar.update(task, description=text)
            ):  # fmt: skip
                log.append(pair.json)
                pairs.append(pair)
        except MemoryError as error:
            finish(NOTHING_MEASURED, "nothing was measured", str(error), again)
    if as_json:
        for pair in pairs:
            typer.echo(pair.json)
    else:
        console.print(_ablation_table(pairs))
    wrong = [side for pair in pairs for side in (pair.a, pair.b) if not side.passed]
    if wrong:
        finish(WRONG, f"a model {wrong[0].variant or 'whole'} is wrong", wrong[0].evidence[0], again)
    finish(0, f"{len(pairs)} comparisons of {plan.layers} layers", f"records: {log.path}", again)


def _ablation_table(pairs: list[PairRecord]) -> Table:
    table = Table("fusion", "phase", "batch", "whole us", "in parts us", "worth", "95 % interval")
    for pair in pairs:
        times = [side.timing.median_us if side.timing else float("nan") for side in (pair.a, pair.b)]
        table.add_row(
            str(pair.setting["fusion"]), str(pair.a.case["phase"]), str(pair.setting["B"]), f"{times[0]:.4g}",
            f"{times[1]:.4g}", f"{pair.ratio:.3f}", f"{pair.low:.3f} to {pair.high:.3f}",
        )  # fmt: skip
    return table


def _records(plan: Plan, ranks: int, device: str, tell: Callable[[str], None]) -> Iterator[Record]:
    if ranks == 1:
        with torch.inference_mode():
            yield from timed_plan(plan, MiniMaxM2Config(), device=device, tell=tell)
        return
    tell(f"{plan.layers} layers over {ranks} ranks")
    entry = "minimax_m2.harness.model_bench:bench_rank"
    first, *_ = launch(entry, asdict(plan), device, ranks=ranks, device=device, deadline_s=COMPILING)
    yield from (Record.from_json(line) for line in first)


def _table(records: list[Record]) -> Table:
    table = Table("phase", "layers", "ranks", "B", "S", "ms", "tokens/s", "of the byte floor", "verdict", "evidence")
    for r in records:
        case = r.case
        cells = ["", "", ""]
        if r.timing is not None:
            per_step = int(case["B"]) * (1 if case["phase"] == "decode" else int(case["S"]))
            ms = r.timing.median_us / 1e3
            # A layer alone makes no tokens.
            pace = "" if case["phase"] == "layer" else f"{per_step / ms * 1e3:.4g}"
            cells = [f"{ms:.4g}", pace, f"{100 * r.timing.share:.0f} %"]
        sizes = [str(case[name]) for name in ("layers", "tp", "B", "S")]
        table.add_row(str(case["phase"]), *sizes, *cells, r.outcome, r.evidence[0])
    return table


def generate_text(model: str, device: str, tokens: int) -> None:
    """Continue held-out text by tiny-m2 on our kernels, and print what it says."""
    from minimax_m2.harness.cli import finish

    with asked():
        if model != "tiny-m2":
            raise ValueError(f"model {model!r} has nothing to say; generate --model takes tiny-m2")
        if (reason := absence(device)) is not None:
            raise WrongUse(f"device {device!r} is not here: {reason}")
        folder = tiny_m2()
        if folder is None:
            raise WrongUse("tiny-m2 is not here: run from a checkout")
    prompt = eval_windows(folder, windows=1, length=64)[0]
    found = provider_model(ours(device), folder, keep_quantized=True)
    with torch.inference_mode():
        continued(found, [prompt.to(found.device)], max_new_tokens=2)
        synchronise(device)
        start = time.perf_counter()
        (said,) = continued(found, [prompt.to(found.device)], max_new_tokens=tokens)
    seconds = time.perf_counter() - start
    typer.echo(_text(folder, said))
    pace = f"{len(said) / seconds:.0f} tokens/s, the prompt of {len(prompt)} and the capture included"
    finish(0, f"{len(said)} tokens in {seconds:.3f} s", pace, f"m2check run --device {device}")


def _text(folder: Path, ids: list[int]) -> str:
    """What ids say, or the ids where no tokenizer is installed."""
    if find_spec("tokenizers") is None:
        return " ".join(map(str, ids))
    from tokenizers import Tokenizer

    return str(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids))
