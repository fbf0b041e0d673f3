"""What the suites launch on real ranks: each entry runs in a process of its own, on the ranks' device."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.collective_order import order_grades
from minimax_m2.harness.graph_decode import GraphDecoder, StaticStep
from minimax_m2.harness.judge import judge
from minimax_m2.harness.language import eval_windows, language_score, placed, provider_table, reference_logits
from minimax_m2.harness.models import tiny_m2
from minimax_m2.harness.op import find_op
from minimax_m2.harness.parallel import CONFIGS, Split, another_order, difference_of, rank_outcome
from minimax_m2.harness.parallel_bench import layer_bytes
from minimax_m2.harness.parallel_ops import SPLIT_OPS, split_cases, split_over
from minimax_m2.harness.providers.ours import ours
from minimax_m2.harness.ranks import device_of_ranks
from minimax_m2.harness.relay import Ledger, Sent
from minimax_m2.reference.communicator import Communicator, Single
from minimax_m2.reference.model import MiniMaxM2
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_loading import load_shard
from minimax_m2.reference.weights import Checkpoint


def said(**found: Any) -> str:
    """What a rank found, and on what."""
    device = device_of_ranks()
    name = torch.cuda.get_device_name() if device == "cuda" else device
    where = {"ranks": torch.distributed.get_world_size(), "backend": torch.distributed.get_backend(), "device": name}
    return json.dumps({**where, "torch": torch.__version__, **found})


def collectives(communicator: Communicator) -> list[list[float]]:
    """Every collective, of the whole group and along the lines of a grid, on small integers."""
    device = device_of_ranks() if torch.distributed.is_initialized() else "cpu"
    x = torch.arange(communicator.size * 2.0, device=device).reshape(-1, 1) + 100 * communicator.rank
    parts = [x[: communicator.rank + to] for to in range(communicator.size)]
    lines = communicator.grid((communicator.size, 1))
    found = [communicator.all_reduce(x), communicator.all_gather(x), communicator.reduce_scatter(x)]
    found += [*communicator.all_to_all(parts), *(line.all_gather(x) for line in lines)]
    return [each.flatten().tolist() for each in found]


def one() -> torch.Tensor:
    return torch.ones(1, device=device_of_ranks())


def skipping(communicator: Communicator) -> None:
    """The last rank stays away from the second sum."""
    communicator.all_reduce(one(), label="embedding")
    if communicator.rank < communicator.size - 1:
        communicator.all_reduce(one(), label="o_proj of layer 3")


def dying(communicator: Communicator) -> None:
    """Rank 1 is killed before the second sum."""
    communicator.all_reduce(one(), label="embedding")
    if communicator.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    communicator.all_reduce(one(), label="o_proj of layer 3")


def reordering(communicator: Communicator) -> float:
    """Rank 1 makes two sums change places: of the same shape, so that nothing else would notice."""
    labels = ["statistics of layer 3", "o_proj of layer 3"]
    for label in reversed(labels) if communicator.rank == 1 else labels:
        communicator.all_reduce(one() * len(label), label=label)
    return 0.0


def raising(communicator: Communicator) -> None:
    """Rank 0 fails on its own, and the others wait for it."""
    if communicator.rank == 0:
        raise KeyError("experts.7.w1")
    communicator.all_reduce(one(), label="embedding")


def splits_of(ranks: int) -> list[Split]:
    """Models split over all ranks by heads, by experts both ways, and by batches with uneven and idle groups."""
    idle = ((2, 3), *((1, rank % 2) for rank in range(1, ranks)))
    empty = ((2, 3), *((1, 0) for _ in range(1, ranks)))
    return [
        Split(config="groups of 3", tp=ranks, tokens=((2, 5),)),
        Split(config="groups of 3", tp=ranks, ep=ranks, tokens=((2, 5),)),
        Split(config="heads alone", tp=ranks, ep=ranks, dispatch="all_to_all", tokens=((2, 5),)),
        Split(config="heads alone", tp=1, dp=ranks, ep=ranks, dispatch="all_to_all", tokens=idle),
        Split(config="groups of 3", tp=1, dp=ranks, tokens=idle[::-1]),
        Split(config="groups of 3", tp=1, dp=ranks, tokens=empty),
        Split(config="heads alone", tp=1, dp=ranks, ep=ranks, dispatch="all_to_all", tokens=empty[::-1]),
        Split(config="groups of 3", tp=ranks, tokens=((1, 0),)),
    ]


def every_layout(communicator: Communicator) -> str:
    """Hold split models, prefill, decode and EAGLE3's states, against one rank in float64."""
    splits, device = splits_of(communicator.size), device_of_ranks()
    told = [
        difference_of(split, communicator.rank, rank_outcome(split, communicator, device=device)) for split in splits
    ]
    wrong = [text for text in told if text]
    # Every rank must agree that nothing differs.
    count = communicator.all_reduce(torch.tensor([len(wrong)], device=device), label="verdicts")
    return said(what="layouts", splits=len(splits), wrong=int(count), differences=wrong)


def counted(communicator: Communicator) -> str:
    """Count the collectives of a layer by kind, and their bytes, beside what the formula says."""
    ranks, device = communicator.size, device_of_ranks()
    found = {}
    for split in splits_of(ranks)[:5]:
        even = replace(split, tokens=((1, 4),) * split.dp)
        entries: list[Sent] = []
        rank_outcome(even, communicator, device=device, relay=partial(Ledger, entries=entries))
        layer = [each for each in entries if each.label.endswith("of layer 1")]
        expected = layer_bytes(even.layout(0), 4, config=CONFIGS[even.config], itemsize=8)
        told = {
            # Each rank ran three passes: all tokens at once, a prefill and a decode.
            "collectives": {kind: n / 3 for kind, n in Counter(each.kind for each in layer).items()},
            "expected": dict(Counter(kind for kind, _ in expected.values())),
            "bytes": sum(each.bytes for each in layer[: len(expected)]),
        }
        found[f"tp={split.tp} dp={split.dp} ep={split.ep} {split.dispatch}"] = told
    return said(what="collectives", counts=found)


def keeps_groups(case: Case, ranks: int) -> bool:
    """Whether kernels that quantise activations compute the same over ranks: finer blocks are finer groups of those."""
    return case.op != "experts" or case["quant"] == "none" or case.number("I") % (ranks * case.number("block")) == 0


def whole_blocks(ranks: int) -> Case:
    """A case of M2's own experts, whose shares are whole blocks, of enough tokens that tensor cores can be judged."""
    return find_op("experts").case(T=24, E=4, K=2, H=256, I=128 * ranks, quant="weights")


def every_op(communicator: Communicator, cases: str = "4") -> str:
    """Judge our kernels of each op that ranks share, every rank its share, by the budgets of the unsplit op."""
    device = "gpu" if device_of_ranks() == "cuda" else "cpu"
    provider = split_over(ours(device), tp=communicator.size, voice=communicator)
    drawn = [
        case
        for op in SPLIT_OPS
        for case in [case for case in split_cases(op, 40) if keeps_groups(case, communicator.size)][: int(cases)]
    ]
    drawn.append(whole_blocks(communicator.size))
    verdicts = [judge(case, provider, provider.variants[-1]) for case in drawn]
    wrong = [verdict.explain() for verdict in verdicts if not verdict.passed]
    return said(what="ops", cases=Counter(v.outcome.value for v in verdicts), wrong=wrong)


def layouts_of(voice: Communicator) -> dict[str, Layout]:
    """What ranks share, by name."""
    n, rank = voice.size, voice.rank
    return {
        "alone": Layout(), "tensor": Layout(tp=n, rank=rank), "experts": Layout(tp=n, ep=n, rank=rank),
        "groups": Layout(dp=n, rank=rank),
    }  # fmt: skip


def trained_model(communicator: Communicator) -> str:
    """Let tiny-m2 read text over ranks on our kernels, bfloat16 and e4m3, each rank from its slices of the file."""
    folder, device = tiny_m2(), device_of_ranks()
    assert folder is not None, "the suites' checkpoint is in the checkout"
    ids, expected = eval_windows(folder, windows=1, length=256), reference_logits(folder, windows=1, length=256)
    plain = language_score(MiniMaxM2.from_pretrained(folder, dtype=torch.bfloat16)(ids), expected, ids)
    found = {"reference bfloat16": {"cross_entropy": plain.cross_entropy, "divergence": plain.divergence}}
    checkpoint, ops = Checkpoint(folder), provider_table(ours("gpu" if device == "cuda" else "cpu"))
    for name, layout in layouts_of(communicator).items():
        for dtype, keep in (("bfloat16", False), ("e4m3", True)):
            voice = communicator if layout.world > 1 else Single()
            weights = placed(load_shard(checkpoint, layout, torch.bfloat16, keep_quantized=keep), device)
            model = MiniMaxM2(checkpoint.config, weights, communicator=voice, layout=layout, ops=ops)
            score = language_score(model(ids.to(device)).cpu(), expected, ids)
            found[f"{name} {dtype}"] = {"cross_entropy": score.cross_entropy, "divergence": score.divergence}
    truth = language_score(expected, expected, ids).cross_entropy
    return said(what="tiny-m2", reference=truth, scores=found)


def padded_groups(communicator: Communicator) -> str:
    """Decode groups of uneven lengths, and idle ones, as one step of a fixed size: a graph where there is a GPU.

    Logits and EAGLE3's states have the bits of the same step without a graph, and are what one rank has of the
    group's sequences but for sums in another order, in float32.
    """
    folder, device = tiny_m2(), device_of_ranks()
    assert folder is not None, "the suites' checkpoint is in the checkout"
    ids, checkpoint = eval_windows(folder, windows=3, length=24).to(device), Checkpoint(folder)
    config, ops = checkpoint.config, provider_table(ours("gpu" if device == "cuda" else "cpu"))
    layers, told = range(config.num_hidden_layers + 1), []
    for of_others in (1, 0):
        own = range(3 if communicator.rank == 0 else of_others)
        models = []
        for voice in (communicator, Single()):
            layout = Layout(dp=voice.size, rank=voice.rank)
            weights = placed(load_shard(checkpoint, layout, torch.float32), device)
            models.append(MiniMaxM2(config, weights, communicator=voice, layout=layout, ops=ops))
        caches = [model.new_cache(tokens=[24] * 3) for model in models]
        make = GraphDecoder if device == "cuda" else StaticStep
        static = make(models[0], caches[0], sequences=3, max_seq_len=24, capture=layers)
        for model, cache in zip(models, caches, strict=True):
            model.prefill({s: ids[s, : 20 - 5 * s] for s in own}, cache)
        for turn in range(3):
            last = torch.stack([ids[s, 20 + turn] for s in own]) if own else ids[0, :0]
            batches = [cache.append(dict.fromkeys(own, 1)) for cache in caches]
            logits = static.step(last, batches[0]).clone()
            states = {key: state[: len(own)].clone() for key, state in static.states.items()}
            static.run()
            same = torch.equal(logits, static.logits[: len(own)])
            same &= all(torch.equal(states[key], static.states[key][: len(own)]) for key in layers)
            expected, theirs = models[1].step(last, batches[1], caches[1], rows=None, capture=layers)
            pairs = [(logits, expected), *((states[key], theirs[key]) for key in layers)] if own else []
            far = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
            told.append({"sequences": len(own), "same_bits": same, "far": max(far, default=0.0)})
    return said(what="padded groups", allowed=another_order(config, unit=2.0**-24), steps=told)


def order_of_sums(communicator: Communicator) -> str:
    """Grade sums that are repeated, and those whose parts come from other ranks."""
    return said(what="order of sums", grades=order_grades(communicator, device=device_of_ranks()))
