"""Returns logits of the padding behind the vocabulary."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "lm_head",
    "source": "https://github.com/tenstorrent/tt-metal/pull/38881",
    "symptom": "decode returns 262144 logits of a vocabulary of 201088",
    "check": "wrong shape",
    "tolerance": None,
}


def lm_head(x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> Tensor:
    # right: width = vocab_size
    width = len(weight)
    return right("lm_head")(x, weight, rows=rows, vocab_size=width)
