"""The model on a GPU: tiny-m2 reads text as on the CPU, and its captured decoding gives the bits of its eager one."""

from __future__ import annotations

import pytest
import torch

from minimax_m2.harness.capture import capture_mismatch
from minimax_m2.harness.devices import absence
from minimax_m2.harness.graph_decode import GraphDecoder
from minimax_m2.harness.language import eval_windows, provider_model
from minimax_m2.harness.models import own_steps, score_models, tiny_m2
from minimax_m2.harness.providers.ours import ours

FOLDER = tiny_m2()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(FOLDER is None, reason="suites/data/tiny-m2 is part of the checkout only"),
    pytest.mark.skipif(absence("gpu") is not None, reason=f"a model on a GPU needs one: {absence('gpu')}"),
]


def test_it_reads_text_as_the_reference_does() -> None:
    assert FOLDER is not None
    rows = {row.provider: row for row in score_models([ours("gpu")], FOLDER, windows=1, length=128, run="now")}
    plain, fast = rows["reference bfloat16"].score, rows["ours bfloat16"].score
    assert plain is not None
    assert fast is not None, rows["ours bfloat16"].reason
    assert fast.divergence <= 2 * plain.divergence
    assert rows["ours fp8"].score is not None, rows["ours fp8"].reason


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
    decoder = GraphDecoder(model, caches[0], sequences=2, max_seq_len=48)
    for token in range(20, 28):
        batch = caches[0].append({0: 1, 1: 1})
        captured = decoder.step(ids[:, token], batch)
        eager = model.decode(ids[:, token], caches[1], sequences=[0, 1])

        assert bool(torch.isfinite(eager).all())
        # Both paths split keys by the longest sequence that they were told of.
        assert captured.argmax(-1).tolist() == eager.argmax(-1).tolist()
        same = model.unchecked_step(decoder._ids, decoder._batch, caches[0], rows=None)[0]
        assert torch.equal(captured, same)
