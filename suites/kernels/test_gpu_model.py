"""The model on a GPU: tiny-m2 reads text as on the CPU, and its captured decoding gives the bits of its eager one."""

from __future__ import annotations

import pytest
import torch

from minimax_m2.harness.capture import capture_mismatch
from minimax_m2.harness.continuation import continued
from minimax_m2.harness.devices import absence
from minimax_m2.harness.graph_decode import GraphDecoder
from minimax_m2.harness.language import eval_windows, provider_model
from minimax_m2.harness.model_bench import Plan, timed_plan
from minimax_m2.harness.models import own_steps, score_models, tiny_m2
from minimax_m2.harness.providers.ours import ours
from minimax_m2.reference.config import MiniMaxM2Config

FOLDER = tiny_m2()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(FOLDER is None, reason="suites/data/tiny-m2 is part of the checkout only"),
    pytest.mark.skipif(absence("gpu") is not None, reason=f"a model on a GPU needs one: {absence('gpu')}"),
]


def test_it_reads_text_as_the_reference_does() -> None:
    assert FOLDER is not None
    rows = {row.provider: row for row in score_models([ours("gpu")], FOLDER, windows=1, length=128, run="now")}
    plain, fast = rows["reference bfloat16"].score, rows["ours gpu bfloat16"].score
    assert plain is not None
    assert fast is not None, rows["ours gpu bfloat16"].reason
    assert fast.divergence <= 2 * plain.divergence
    assert rows["ours gpu fp8"].score is not None, rows["ours gpu fp8"].reason


def test_every_step_is_ours_and_captured_states_are_the_stream() -> None:
    own, steps = own_steps(ours("gpu"))

    assert own == steps
    assert capture_mismatch(ours("gpu")) == ""


@pytest.mark.parametrize("keep_quantized", [False, True])
def test_captured_decoding_gives_the_bits_of_eager_decoding(keep_quantized: bool) -> None:
    assert FOLDER is not None
    model = provider_model(ours("gpu"), FOLDER, keep_quantized=keep_quantized)
    ids = eval_windows(FOLDER, windows=2, length=40).to(model.device)
    caches = [model.new_cache(tokens=[48, 48]) for _ in range(2)]
    for cache in caches:
        model.prefill({0: ids[0, :20], 1: ids[1, :9]}, cache)
    layers = range(model.config.num_hidden_layers + 1)
    # Larger than the batch: what pads it must move nothing.
    decoder = GraphDecoder(model, caches[0], sequences=3, max_seq_len=48, capture=layers)
    for token in range(20, 28):
        batch = caches[0].append({0: 1, 1: 1})
        captured = decoder.step(ids[:, token], batch)
        eager = model.decode(ids[:, token], caches[1], sequences=[0, 1])

        assert bool(torch.isfinite(eager).all())
        # Both paths split keys by the longest sequence that they were told of.
        assert captured.argmax(-1).tolist() == eager.argmax(-1).tolist()
        replayed = [captured, *(decoder.states[key][:2] for key in layers)]
        same, states = model.unchecked_step(decoder.ids, decoder.batch, caches[0], rows=None, capture=layers)
        again = [same[:2], *(states[key][:2] for key in layers)]
        # EAGLE3's states, too: a replay hands the draft this step's, not those of the capture.
        assert all(torch.equal(one, other) for one, other in zip(replayed, again, strict=True))


def test_a_continuation_of_graphs_is_the_greedy_one() -> None:
    assert FOLDER is not None
    model = provider_model(ours("gpu"), FOLDER)
    windows = eval_windows(FOLDER, windows=3, length=40).to(model.device)
    prompts = [windows[0, :20], windows[1, :9], windows[2, :33]]
    assert continued(model, prompts, max_new_tokens=24) == model.generate(prompts, max_new_tokens=24)


def test_a_layer_of_full_width_is_right_and_timed() -> None:
    plan = Plan(layers=1, loads=((2, 64),), prompts=((2, 64),), tokens=4)
    with torch.inference_mode():
        found = list(timed_plan(plan, MiniMaxM2Config(), device="gpu"))
    assert [(record.kind, record.outcome) for record in found] == [
        ("model proof", "pass"), ("model proof", "pass"), ("model step", "pass"), ("model step", "pass")
    ], found  # fmt: skip
