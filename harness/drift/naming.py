"""A naming file: what another engine calls the tensors between a model's steps.

TOML, with one entry a tap of ``TAPS``; ``docs/drift.md`` holds an example. Beside the names:

    name      what the engine is called in tables
    dump      a safetensors file, relative to this one, or
    modules   a Python file with ``load(folder) -> torch.nn.Module``, whose forward hooks are asked; "transformers"
    heads_first   taps whose heads stand before their tokens, ``[Hq, T, D]``
    unjudged      a reason for each step that must not be judged
    contract      where the engine rounds, by op, as a provider declares it
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimax_m2.harness.op import find_op
from minimax_m2.reference.config import MiniMaxM2Config

LAYER = "{layer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A tensor between two steps.

    sizes  its shape but for the tokens, in names of ``sizes_of``
    dtype  what it is compared in; None is the model's
    """

    sizes: tuple[str, ...]
    dtype: str | None = None
    in_layer: bool = True


TAPS = {
    "ids": Tap(sizes=(), dtype="int64", in_layer=False),
    "embedding": Tap(sizes=("H",), in_layer=False),
    "entry": Tap(sizes=("H",)),
    "input_norm": Tap(sizes=("H",)),
    "qkv": Tap(sizes=("QKV",)),
    "q_norm": Tap(sizes=("QW",)),
    "k_norm": Tap(sizes=("KW",)),
    "query": Tap(sizes=("Hq", "D")),
    "key": Tap(sizes=("Hk", "D")),
    "value": Tap(sizes=("Hk", "D")),
    "attention": Tap(sizes=("Hq", "D")),
    "o_proj": Tap(sizes=("H",)),
    "middle": Tap(sizes=("H",)),
    "post_attention_norm": Tap(sizes=("H",)),
    "router_logits": Tap(sizes=("E",), dtype="float32"),
    "routing_weights": Tap(sizes=("K",), dtype="float32"),
    "routing_ids": Tap(sizes=("K",), dtype="int64"),
    "experts": Tap(sizes=("H",)),
    "stream": Tap(sizes=("H",), in_layer=False),
    "final_norm": Tap(sizes=("H",), in_layer=False),
    "logits": Tap(sizes=("V",), dtype="float32", in_layer=False),
}
"""In the order of a pass. ``entry`` and ``middle`` are the residual stream before a layer and between its halves,
``stream`` the one behind the last; ``query`` and ``key`` are rotated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """A naming file, read; ``taps`` holds the patterns of each tap, several of which stand side by side."""

    path: Path
    name: str
    taps: Mapping[str, tuple[str, ...]]
    dump: str = ""
    modules: str = ""
    heads_first: frozenset[str] = frozenset()
    unjudged: Mapping[str, str] = field(default_factory=dict)
    contract: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def names(self, tap: str, layer: int) -> list[str]:
        """What the engine calls the parts of a tap."""
        return [pattern.replace(LAYER, str(layer)) for pattern in self.taps[tap]]

    def wanted(self, layers: int) -> list[str]:
        """Every tensor that the file speaks of."""
        places = [(tap, layer) for tap in self.taps for layer in range(layers if TAPS[tap].in_layer else 1)]
        return [name for tap, layer in places for name in self.names(tap, layer)]


def sizes_of(config: MiniMaxM2Config) -> dict[str, int]:
    """What the names in a tap's shape stand for."""
    return {
        "H": config.hidden_size,
        "D": config.head_dim,
        "Hq": config.num_attention_heads,
        "Hk": config.num_key_value_heads,
        "QW": config.q_width,
        "KW": config.kv_width,
        "QKV": config.q_width + 2 * config.kv_width,
        "E": config.num_local_experts,
        "K": config.num_experts_per_tok,
        "V": config.vocab_size,
    }


def read_naming(path: Path) -> Naming:
    """Read a naming file. Raises ValueError, or FileNotFoundError, in one sentence that names file and entry."""
    if not path.is_file():
        raise FileNotFoundError(f"naming file {str(path)!r} does not exist")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    known = ("name", "dump", "modules", "heads_first", "unjudged", "contract", "taps")
    for key in raw:
        if key not in known:
            raise ValueError(f"{path}: {key!r} is unknown; a naming file has {', '.join(known)}")
    found = Naming(
        path=path, name=str(raw.get("name", path.stem)), taps=_taps(path, raw.get("taps")),
        dump=_words(path, raw, "dump"), modules=_words(path, raw, "modules"),
        heads_first=frozenset(raw.get("heads_first", ())), unjudged=raw.get("unjudged", {}),
        contract=raw.get("contract", {}),
    )  # fmt: skip
    if bool(found.dump) == bool(found.modules):
        raise ValueError(f'{path}: write dump = "FILE.safetensors" or modules = "FILE.py", one of them')
    for tap in found.heads_first:
        _refuse_unknown_tap(path, "heads_first", tap)
    for op, fields in found.contract.items():
        try:
            find_op(op).full_contract(find_op(op).case(), fields)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: [contract.{op}]: {error.args[0]}") from error
    return found


def _words(path: Path, raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{path}: {key} = {value!r}; write one file's name in quotes")
    return value


def _taps(path: Path, raw: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(raw, dict) or not raw:
        raise ValueError(f'{path} has no table [taps]; write [taps] and qkv = "layers.{LAYER}.qkv_proj"')
    found: dict[str, tuple[str, ...]] = {}
    for tap, names in raw.items():
        _refuse_unknown_tap(path, "[taps]", tap)
        patterns = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, list) else ()
        if not patterns or not all(isinstance(name, str) and name for name in patterns):
            raise ValueError(f"{path}: [taps] {tap} = {names!r}; write a name in quotes, or a list of such")
        for name in patterns:
            if (LAYER in name) != TAPS[tap].in_layer:
                told = f"must hold {LAYER}" if TAPS[tap].in_layer else f"stands in no layer and must not hold {LAYER}"
                raise ValueError(f"{path}: [taps] {tap} = {name!r} {told}")
        found[tap] = patterns
    return found


def _refuse_unknown_tap(path: Path, where: str, tap: str) -> None:
    if tap not in TAPS:
        raise ValueError(f"{path}: {where} {tap!r} is no tap; taps are {', '.join(TAPS)}")
