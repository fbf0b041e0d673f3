"""Arrays of many nights as few bytes: whole thousandths, their low and high bytes apart, gzip.

A thousandth of a log is 0.1 %: finer than any night. Noise of 1 % takes five bits so, as it must.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np

from minimax_m2.harness.history.panel import Floats

MISSING = -32768
LARGEST = 32767


def packed(about: dict[str, Any], arrays: list[Floats]) -> str:
    """Text of a description and its arrays, which a page opens by itself: length, JSON, then the arrays' planes."""
    text = json.dumps(about, separators=(",", ":"), allow_nan=False).encode()
    parts = [len(text).to_bytes(4, "little"), text, *(planes(array) for array in arrays)]
    return base64.b64encode(gzip.compress(b"".join(parts), 9, mtime=0)).decode()


def planes(values: Floats) -> bytes:
    """Thousandths of each value, the small ones of either sign first: all low bytes, then all high bytes."""
    whole = np.where(np.isfinite(values), np.clip(np.rint(values * 1000), -LARGEST, LARGEST), MISSING).astype(np.int32)
    unsigned = ((whole << 1) ^ (whole >> 31)).astype(np.uint32) & 0xFFFF
    flat = unsigned.ravel()
    return (flat & 0xFF).astype(np.uint8).tobytes() + (flat >> 8).astype(np.uint8).tobytes()


def unpacked(text: str) -> tuple[dict[str, Any], bytes]:
    """The description and the planes, as a test reads them back."""
    content = gzip.decompress(base64.b64decode(text))
    end = 4 + int.from_bytes(content[:4], "little")
    return json.loads(content[4:end]), content[end:]
