"""MiniMax-M2, whole: embedding, decoder layers, final norm, head, over a paged cache and any table of ops."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from minimax_m2.reference.communicator import Communicator, Single
from minimax_m2.reference.config import MiniMaxM2Config
from minimax_m2.reference.exchange import Exchange
from minimax_m2.reference.generation import greedy
from minimax_m2.reference.layer import DecoderLayer, Pass, Tap, added, sums_over
from minimax_m2.reference.paging import Batch, PagedCache
from minimax_m2.reference.rope import cos_sin_table
from minimax_m2.reference.sharding import Layout
from minimax_m2.reference.sharding_weights import refuse_other_share
from minimax_m2.reference.table import OpTable, op_table
from minimax_m2.reference.weights import Checkpoint, ModelWeights, Progress


class MiniMaxM2:
    """The one model: ``ops`` says who computes it, ``dtype`` in what.

    In float64 everything is float64. In bfloat16, float16 or float32 activations and weights have that dtype, the
    router, its logits and the routing weights float32.

    ops         a table, or anything ``op_table`` fills one from; None is the reference
    layer_ops   tables for single layers, by index, where they differ from ``ops``
    rope_dtype  dtype of the table of cosines and sines, which is made in float64: None is float64 for a float64
                model and float32 otherwise; engines that cast it to the model's dtype say so in their contract
    layout      where this rank stands; None: all ranks of the communicator share every layer (tensor parallelism).
                ``weights`` are then this rank's share, as ``sharding_weights.shard`` cuts it
    """

    def __init__(
        self,
        config: MiniMaxM2Config,
        weights: ModelWeights,
        *,
        ops: object = None,
        layer_ops: Mapping[int, object] | None = None,
        rope_dtype: torch.dtype | None = None,
        communicator: Communicator | None = None,
        layout: Layout | None = None,
    ) -> None:
        if len(weights.layers) != config.num_hidden_layers:
            raise ValueError(f"{len(weights.layers)} layers are given; num_hidden_layers={config.num_hidden_layers}")
        unknown = sorted(set(layer_ops or {}) - set(range(config.num_hidden_layers)))
        if unknown:
            raise ValueError(f"layer_ops names layer {unknown[0]}; layers are 0..{config.num_hidden_layers - 1}")
        self.config = config
        self.dtype = weights.norm.dtype
        self.device = weights.norm.device
        self.ops = _table(ops)
        communicator = communicator or Single()
        self.layout = layout or Layout(tp=communicator.size, rank=communicator.rank)
        refuse_other_share(weights, config, self.layout)
        self._counted_kv_heads = None if self.layout.tp == 1 else self.layout.heads(config).counted_kv_heads
        self._embed_tokens, self._norm, self._lm_head = weights.embed_tokens, weights.norm, weights.lm_head
        self._layers = [
            DecoderLayer.pack(layer, index=index, ops=_table((layer_ops or {}).get(index, self.ops)))
            for index, layer in enumerate(weights.layers)
        ]
        norm_sums = _refuse_other_sums([self.ops, *(layer.ops for layer in self._layers)], self.layout)
        if norm_sums and any(layer.o_proj_reduces for layer in self._layers):
            raise ValueError("o_proj sums over the ranks, and the norm after it would again; leave one of the two out")
        self._exchange = Exchange(self.layout, config, communicator, norm_sums=norm_sums)
        self._num_kv_heads = weights.layers[0].k_norm.shape[0] // config.head_dim
        self._rope_dtype = rope_dtype or (torch.float64 if self.dtype == torch.float64 else torch.float32)
        self._cos_sin = torch.empty(0, config.rotary_dim, dtype=self._rope_dtype, device=self.device)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.float64,
        ops: object = None,
        layer_ops: Mapping[int, object] | None = None,
        rope_dtype: torch.dtype | None = None,
        keep_quantized: bool = False,
        progress: Progress | None = None,
    ) -> MiniMaxM2:
        """Load a folder with ``config.json`` and safetensors in Hugging Face names.

        ``keep_quantized`` hands FP8 weights to the table's ``fp8_linear`` and ``experts`` as they are stored.
        Raises ValueError as MiniMaxM2Config and Checkpoint do.
        """
        checkpoint = Checkpoint(path)
        weights = checkpoint.load(dtype, keep_quantized=keep_quantized, progress=progress)
        return cls(checkpoint.config, weights, ops=ops, layer_ops=layer_ops, rope_dtype=rope_dtype)

    @overload
    def __call__(self, ids: Tensor, *, capture: None = None, tap: Tap | None = None) -> Tensor: ...
    @overload
    def __call__(
        self, ids: Tensor, *, capture: Collection[int], tap: Tap | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]: ...
    def __call__(
        self, ids: Tensor, *, capture: Collection[int] | None = None, tap: Tap | None = None
    ) -> Tensor | tuple[Tensor, dict[int, Tensor]]:
        """Compute the logits of every token of one sequence ``[T]`` or of equally long ones ``[B, T]``.

        returns  logits [T, V] or [B, T, V], float32 (float64 stays); with ``capture=(2, 31, 59)`` also
                 ``{layer: [T, H] or [B, T, H]}``, the residual stream at the entry of each such layer, as EAGLE3's
                 draft takes it; key 0 is the embedding, key num_hidden_layers the stream before the final norm.
        """
        if ids.dim() not in (1, 2):
            raise ValueError(f"ids has shape {list(ids.shape)}; expected [T] or [B, T]")
        rows = ids if ids.dim() == 2 else ids[None]
        cache = self.new_cache(tokens=[rows.shape[1]] * rows.shape[0])
        batch = cache.append(dict.fromkeys(range(rows.shape[0]), rows.shape[1]))
        logits, states = self.step(rows.flatten(), batch, cache, rows=None, capture=capture or (), tap=tap)
        logits = logits.reshape(*ids.shape, logits.shape[-1])
        if capture is None:
            return logits
        return logits, {key: state.reshape(*ids.shape, state.shape[-1]) for key, state in states.items()}

    def new_cache(self, *, tokens: Sequence[int], page_size: int = 16) -> PagedCache:
        """Allocate a cache that holds sequences of the lengths ``tokens``, without a page to spare."""
        return PagedCache.empty(
            self.config,
            num_pages=sum(-(-count // page_size) for count in tokens),
            page_size=page_size,
            num_kv_heads=self._num_kv_heads,
            dtype=self.dtype,
            device=self.device,
        )

    def prefill(self, chunks: Mapping[int, Tensor], cache: PagedCache, *, tap: Tap | None = None) -> Tensor:
        """Append ``chunks[sequence]``, ids ``[n]``, to each sequence of the cache.

        Lengths may differ and a sequence may come in several chunks, beside others that decode.
        returns  [n sequences that brought a token, V]: logits of each one's last token, in the order of ``chunks``
        """
        batch = cache.append({sequence: len(ids) for sequence, ids in chunks.items()})
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        return self.step(torch.cat([none, *chunks.values()]), batch, cache, rows=batch.last_rows, tap=tap)[0]

    def decode(self, ids: Tensor, cache: PagedCache, *, sequences: Sequence[int], tap: Tap | None = None) -> Tensor:
        """Append one token to each of ``sequences``: ids ``[B]`` -> logits ``[B, V]``."""
        if ids.shape != (len(sequences),) or len(set(sequences)) != len(sequences):
            raise ValueError(f"ids {list(ids.shape)} for sequences {list(sequences)}; give one id to each, once")
        return self.prefill(dict(zip(sequences, ids.split(1), strict=True)), cache, tap=tap)

    def generate(
        self,
        prompts: Sequence[Tensor],
        *,
        max_new_tokens: int,
        eos_token_ids: Collection[int] = (),
        page_size: int = 16,
    ) -> list[list[int]]:
        """Continue each prompt, ids ``[n]``, by the likeliest token until an end token or ``max_new_tokens``."""
        return greedy(self, prompts, max_new_tokens=max_new_tokens, eos_token_ids=eos_token_ids, page_size=page_size)

    def step(
        self,
        ids: Tensor,
        batch: Batch,
        cache: PagedCache,
        *,
        rows: Tensor | None,
        capture: Collection[int] = (),
        tap: Tap | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the T tokens of ``batch`` through the model; the cache takes their keys and values.

        ids [T]; rows [N] picks the tokens whose logits are wanted, None all; returns logits [N, V] and the states
        of ``capture``. Taps beside the layers' own: embedding (layer -1); final_norm and logits (num_hidden_layers).
        """
        self._refuse(ids, batch, capture)
        return self.unchecked_step(ids, batch, cache, rows=rows, capture=capture, tap=tap)

    def unchecked_step(
        self,
        ids: Tensor,
        batch: Batch,
        cache: PagedCache,
        *,
        rows: Tensor | None,
        capture: Collection[int] = (),
        tap: Tap | None = None,
        tokens: Sequence[int] | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Do what ``step`` does without a look at any value, so that nothing waits for the device.

        tokens  how many tokens each attention group brings, where the host knows it; None asks the other groups
        """
        config = self.config
        shared = Pass(
            config=config,
            batch=batch,
            cos_sin=self.cos_sin(batch.max_seq_len),
            exchange=self._exchange,
            tokens=self._exchange.tokens(ids) if tokens is None else tokens,
            counted_kv_heads=self._counted_kv_heads,
            tap=tap,
        )
        hidden, residual = self._embedding(ids), None
        shared.note("embedding", -1, hidden)
        states: dict[int, Tensor] = {}
        for layer, k_cache, v_cache in zip(self._layers, cache.k, cache.v, strict=True):
            hidden, residual, entry = layer(hidden, residual, k_cache, v_cache, shared)
            if layer.index in capture:
                states[layer.index] = entry
        if len(ids):
            eps, final = config.rms_norm_eps, config.num_hidden_layers - 1
            x, last = added(self.ops, hidden, residual, self._norm, eps, "experts", final)
        else:
            x, last = hidden, hidden
        if config.num_hidden_layers in capture:
            states[config.num_hidden_layers] = last
        shared.note("final_norm", config.num_hidden_layers, x)
        logits = self._logits(x, rows)
        shared.note("logits", config.num_hidden_layers, logits)
        return logits, states

    def cos_sin(self, positions: int) -> Tensor:
        """Return the table of cosines and sines, ``[P, R]``, of at least ``positions``.

        A longer one takes the place of the one before: whoever captures a step must hold on to the table it read.
        """
        if positions > len(self._cos_sin):
            # Twice as many as before: a sequence that grows by a token a step must not make a table at each.
            positions = min(max(positions, 2 * len(self._cos_sin)), self.config.max_position_embeddings)
            table = cos_sin_table(
                num_positions=positions, rotary_dim=self.config.rotary_dim, theta=self.config.rope_theta
            )
            self._cos_sin = table.to(self._rope_dtype).to(self.device)
        return self._cos_sin

    def _embedding(self, ids: Tensor) -> Tensor:
        weight, exchange = self._embed_tokens, self._exchange
        if not len(ids):
            return exchange.sum_vocabulary(weight[:0])
        if exchange.is_alone:
            return self.ops.embedding(ids, weight)
        return exchange.sum_vocabulary(self.ops.embedding(ids, weight, vocab_start=exchange.vocab_start))

    def _logits(self, x: Tensor, rows: Tensor | None) -> Tensor:
        weight = self._lm_head
        if not len(x):
            wide = torch.promote_types(x.dtype, torch.float32)
            return self._exchange.logits(x.new_empty(0, len(weight), dtype=wide))
        return self._exchange.logits(self.ops.lm_head(x, weight, rows=rows, vocab_size=len(weight)))

    def _refuse(self, ids: Tensor, batch: Batch, capture: Collection[int]) -> None:
        config = self.config
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
            raise ValueError(f"ids span {int(ids.min())}..{int(ids.max())}; expected 0..{config.vocab_size - 1}")
        if batch.max_seq_len > config.max_position_embeddings:
            raise ValueError(
                f"a sequence has {batch.max_seq_len} tokens; max_position_embeddings={config.max_position_embeddings}"
            )
        outside = [key for key in capture if not 0 <= key <= config.num_hidden_layers]
        if outside:
            raise ValueError(f"capture={outside[0]} is outside 0..{config.num_hidden_layers}, the entries of layers")


def _refuse_other_sums(tables: Sequence[OpTable], layout: Layout) -> bool:
    """Whether norms sum over the ranks. Raises ValueError where they disagree, or for another number of ranks."""
    norms = {sums_over(table.add_rms_norm) for table in tables}
    if len(norms) > 1:
        raise ValueError(
            f"norms sum over {' and '.join(map(str, sorted(norms)))} ranks; what one layer leaves unsummed the next "
            "adds up, so all tables need the same add_rms_norm"
        )
    for count in norms | {sums_over(table.qk_norm_rope_cache) for table in tables}:
        if count not in (0, layout.tp):
            raise ValueError(f"an op sums over {count} ranks itself, the layout's heads stand over tp={layout.tp}")
    return norms != {0}


def _table(ops: object) -> OpTable:
    return ops if isinstance(ops, OpTable) else op_table(ops)
