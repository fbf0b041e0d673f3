"""What an engine makes of a batch once a step, before its layers: read from lengths on the host, reused by every layer.

A call outside a captured graph prepares anew, so it is right whatever its arguments hold. A captured one takes what the
call before it made of the same tensor: reading lengths would wait for the device. So a graph serves the lengths and
pages it was captured with; their contents may not change, while keys, values and queries may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Made = TypeVar("Made")


class Prepared(Generic[Made]):
    """What ``make`` gave for a tensor, kept as long as the tensor lives."""

    def __init__(self) -> None:
        self._made = WeakTensorKeyDictionary()

    def of(self, key: Tensor, make: Callable[[], Made]) -> Made:
        """Made anew, but while a graph is captured. Raises RuntimeError where nothing was made before the capture."""
        if not _capturing():
            self._made[key] = make()
        if key not in self._made:
            raise RuntimeError("lengths are read on the host: call once with these tensors before the capture")
        found: Made = self._made[key]
        return found


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
