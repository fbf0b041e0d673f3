"""EAGLE3's hidden states: rebuild the residual stream from what each half layer adds, and compare bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.language import eval_windows, provider_model
from minimax_m2.harness.models import tiny_m2
from minimax_m2.harness.provider import Provider


def capture_mismatch(provider: Provider, *, sequences: int = 2, length: int = 48) -> str:
    """Say which captured state is not the stream at its layer's entry, or nothing.

    State k is the embedding plus everything that attention and experts of the layers before k added, each sum rounded
    once to the model's dtype, so it must agree in every bit; the last key is the stream before the final norm.
    """
    folder = tiny_m2()
    if folder is None:
        return "suites/data/tiny-m2 is not here: run from a checkout"
    model = provider_model(provider, folder)
    layers = model.config.num_hidden_layers
    added: dict[tuple[str, int], Tensor] = {}
    ids = eval_windows(folder, windows=sequences, length=length).to(model.device)

    def tap(step: str, layer: int, x: Tensor) -> None:
        added[step, layer] = x.clone()

    _, states = model(ids, capture=range(layers + 1), tap=tap)
    stream = added["embedding", -1]
    for layer in range(layers + 1):
        captured = states[layer].reshape(stream.shape)
        if not torch.equal(captured, stream):
            row = int((captured != stream).any(-1).nonzero()[0])
            return f"state {layer} differs from the stream at that layer's entry, first at token {row}"
        if layer < layers:
            for half in ("o_proj", "experts"):
                stream = (stream.double() + added[half, layer].double()).to(stream.dtype)
    return ""
