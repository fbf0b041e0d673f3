"""What the suites launch on real ranks of kernels that sum over them: each entry runs in a process with a GPU."""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from minimax_m2.harness.fused_checks import CASES, judged_cases, judged_rows, missing_rank, replays
from minimax_m2.harness.fused_ranks import on_a_gpu_each
from minimax_m2.harness.fused_sums import FusedSums
from minimax_m2.harness.graph_decode import GraphDecoder
from minimax_m2.harness.language import eval_windows, language_score, placed, provider_table, reference_logits
from minimax_m2.harness.models import tiny_m2
from minimax_m2.harness.parallel import another_order
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.relay import Relay
from minimax_m2.reference.communicator import Communicator, Single
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_loading import load_shard
from minimax_m2.reference.weights import Checkpoint

COMPILING_S = 60.0


def said(**found: Any) -> str:
    """What a rank found, and on what."""
    where = {"ranks": torch.distributed.get_world_size(), "device": torch.cuda.get_device_name()}
    return json.dumps({**where, "torch": torch.__version__, "kind": "fused ranks", **found})


def real(communicator: Communicator) -> Communicator:
    """The ranks without the roll: kernels wait for each other themselves."""
    assert isinstance(communicator, Relay)
    return communicator.inner


def fused_cases(communicator: Communicator) -> str:
    """Judge the kernels by the budgets of one rank, and of the reduction."""
    ranks = on_a_gpu_each(real(communicator), patience_s=COMPILING_S)
    found = [judged_cases(ranks, op) for op in CASES]
    wrong = [text for each in found for text in each["wrong"]] + judged_rows(ranks)
    return said(what="cases", passed={each["op"]: each["passed"] for each in found}, wrong=wrong)


def fused_replays(communicator: Communicator) -> str:
    """Replay graphs of sums by the thousand."""
    return said(what="replays", **replays(on_a_gpu_each(real(communicator), patience_s=COMPILING_S)))


def fused_missing(communicator: Communicator) -> str:
    """The last rank never comes; it stays until the others have given it up."""
    found = missing_rank(on_a_gpu_each(real(communicator), patience_s=1.0))
    communicator.all_reduce(torch.zeros(1, device="cuda"), label="end")
    return said(what="missing", **found)


def model_of(communicator: Communicator, dtype: torch.dtype, *, fused: bool, keep: bool = False) -> Any:
    """tiny-m2 with its heads over the ranks, and what says whether a rank was missing."""
    folder = tiny_m2()
    assert folder is not None, "the suites' checkpoint is in the checkout"
    checkpoint, voice = Checkpoint(folder), communicator
    layout, ops = Layout(tp=voice.size, rank=voice.rank), provider_table(ours("gpu"))
    weights = placed(load_shard(checkpoint, layout, dtype, keep_quantized=keep), "cuda")
    sums = FusedSums(ops, real(voice), checkpoint.config, dtype=dtype, patience_s=COMPILING_S) if fused else None
    table = sums.table if sums else ops
    return MiniMaxM2(checkpoint.config, weights, communicator=voice, layout=layout, ops=table), sums


def fused_model(communicator: Communicator) -> str:
    """Let tiny-m2 read text, windows of 48 tokens each, with sums by NCCL and inside the kernels, and on one rank."""
    folder = tiny_m2()
    assert folder is not None, "the suites' checkpoint is in the checkout"
    ids, expected = eval_windows(folder, windows=4, length=48), reference_logits(folder, windows=4, length=48)
    found = {}
    for dtype, keep in (("bfloat16", False), ("e4m3", True)):
        for name in ("alone", "tensor", "fused"):
            voice = Single() if name == "alone" else communicator
            model, sums = model_of(voice, torch.bfloat16, fused=name == "fused", keep=keep)
            logits = torch.stack([model(window.to("cuda")).cpu() for window in ids])
            if sums:
                sums.raise_if_missing()
            score = language_score(logits, expected, ids)
            found[f"{name} {dtype}"] = {"cross_entropy": score.cross_entropy, "divergence": score.divergence}
    return said(what="tiny-m2", scores=found)


def fused_decode(communicator: Communicator) -> str:
    """Decode three sequences by a graph whose kernels sum: its bits are those of the same step without a graph.

    In float32 logits and EAGLE3's states are one rank's, but for sums in another order.
    """
    folder = tiny_m2()
    assert folder is not None, "the suites' checkpoint is in the checkout"
    ids = eval_windows(folder, windows=3, length=24).to("cuda")
    (model, sums), (alone, _) = (
        model_of(voice, torch.float32, fused=voice is communicator) for voice in (communicator, Single())
    )
    config, models = model.config, (model, alone)
    layers, told = range(config.num_hidden_layers + 1), []
    caches = [each.new_cache(tokens=[24] * 3) for each in models]
    static = GraphDecoder(model, caches[0], sequences=3, max_seq_len=24, capture=layers)
    for each, cache in zip(models, caches, strict=True):
        each.prefill({s: ids[s, : 20 - 5 * s] for s in range(3)}, cache)
    for turn in range(3):
        last = torch.stack([ids[s, 20 + turn] for s in range(3)])
        batches = [cache.append(dict.fromkeys(range(3), 1)) for cache in caches]
        logits = static.step(last, batches[0]).clone()
        states = {key: state.clone() for key, state in static.states.items()}
        static.run()
        same = torch.equal(logits, static.logits) and all(torch.equal(states[k], static.states[k]) for k in layers)
        expected, theirs = alone.step(last, batches[1], caches[1], rows=None, capture=layers)
        pairs = [(logits, expected), *((states[key], theirs[key]) for key in layers)]
        far = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        told.append({"same_bits": same, "far": far})
    sums.raise_if_missing()
    return said(what="decode", allowed=another_order(config, unit=2.0**-24), steps=told)


def _summed(communicator: Communicator, labels: list[str]) -> None:
    """Sum rows under each label, and ask who was missing."""
    fused = FusedSums(provider_table(ours("gpu")), real(communicator), MiniMaxM2Config(), patience_s=2.0)
    x, weight = torch.ones(2, 3072, device="cuda").bfloat16(), torch.ones(3072, device="cuda").bfloat16()
    # Libraries are built and loaded before anybody waits in a kernel.
    fused.table.add_rms_norm(x, x, weight, eps=1e-6, label="start")
    torch.cuda.synchronize()
    communicator.all_reduce(torch.zeros(1, device="cuda"), label="start")
    for label in labels:
        fused.table.add_rms_norm(x, x, weight, eps=1e-6, label=label)
    fused.raise_if_missing()


def fused_skipping(communicator: Communicator) -> None:
    """The last rank leaves out a sum, and stays: memory of a process that ended cannot be written to."""
    is_last = communicator.rank == communicator.size - 1
    _summed(communicator, ["o_proj of layer 2"] if is_last else ["o_proj of layer 2", "o_proj of layer 3"])
    time.sleep(30)


def fused_reordering(communicator: Communicator) -> None:
    """The last rank makes two sums change places."""
    labels = ["o_proj of layer 3", "experts of layer 3"]
    _summed(communicator, labels[::-1] if communicator.rank == communicator.size - 1 else labels)
