"""A loaded target: its forward with captured layer outputs, its logits, and nothing about drafts or sampling.

The forward leaves out what serving does not need: no logits (asked for separately, for the positions that matter), no
mask building (masks come from the cache's row lengths), no gradient (the caller decides that). Families whose layers
are all alike run on fused projections read straight from the files; the others run Hugging Face's module.

Shapes: B rows, Q query positions, K keys, L captured layers, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from deepspec.targets import family_of
from deepspec.targets.body import Body, BodyInputs, Captured
from deepspec.targets.cache import RowCache, causal_mask
from deepspec.targets.directory import read_spec, stop_token_ids
from deepspec.targets.family import Family, TargetSpec
from deepspec.targets.layer_tensors import EMBEDDING, check_tensors
from deepspec.targets.layers import FusedLayer, additive, attend, rms_norm
from deepspec.targets.rotary import Rotary
from deepspec.targets.weights import Weights, read_tables

PACKED_BELOW = 0.8
"""A batch is packed when a smaller share of its positions is real: packing costs four copies a layer."""


@dataclass(frozen=True)
class TargetOutput:
    """One forward of the target.

    Args:
        final_BQD: last hidden state after the final norm.
        states_BQLD: raw outputs of the captured layers, in the order asked for.
    """

    final_BQD: Tensor
    states_BQLD: Tensor


class Target:
    """A target model ready to run; made by `load`.

    Args:
        spec: what it is.
        body: its forward, which captures the layers of `layer_ids`.
        embedding_VD, head_VD: its tables.
        layer_ids: decoder layers whose outputs `forward` returns; -1 is the embedding.
    """

    def __init__(
        self, spec: TargetSpec, body: Body, embedding_VD: Tensor, head_VD: Tensor, layer_ids: tuple[int, ...]
    ) -> None:
        self.spec = spec
        self.family: Family = family_of(spec)
        self.layer_ids = layer_ids
        self.eos_token_ids = stop_token_ids(spec)
        self._body = body
        self._embedding = embedding_VD
        self._head = head_VD
        self._windows = frozenset(layer.window for layer in spec.layers)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        layer_ids: tuple[int, ...] = (),
        fused: bool = True,
    ) -> "Target":
        """Load a target from a directory of safetensors weights.

        Args:
            path: the directory.
            device: e.g. "cpu", "cuda:0".
            dtype: what the weights are cast to, e.g. "float32", "bfloat16".
            layer_ids: decoder layers whose outputs `forward` returns; -1 is the embedding.
            fused: run fused projections where the family allows it.

        Raises:
            UnsupportedTarget: see `read_spec`, `Weights` and `check_tensors`.
        """
        spec = read_spec(path)
        weights = Weights(spec.path)
        check_tensors(spec, family_of(spec), weights.stored)
        if fused and family_of(spec).uniform_layers:
            place = {"device": torch.device(device), "dtype": getattr(torch, dtype)}
            embedding_VD, head_VD = read_tables(weights, spec, **place)
            return cls(
                spec, _fused_body(spec, weights, embedding_VD, layer_ids, **place), embedding_VD, head_VD, layer_ids
            )
        # Imported only here: transformers' modules cost seconds.
        from deepspec.targets.hugging_face import body_of, load_module

        module, head_VD = load_module(spec, device=device, dtype=dtype)
        return cls(spec, body_of(module, layer_ids), module.embed_tokens.weight, head_VD, layer_ids)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self._embedding.dtype

    @property
    def embedding_weight(self) -> Tensor:
        """Token embeddings [V, D], unscaled."""
        return self._embedding

    @property
    def head_weight(self) -> Tensor:
        """Weights [V, D] that turn final states into logits."""
        return self._head

    def allocate_cache(self, rows: int, capacity: int) -> RowCache:
        """An empty cache that fits this target."""
        return RowCache.allocate(self.spec, rows, capacity, device=self.device, dtype=self.dtype)

    def forward(
        self,
        input_ids_BQ: Tensor,
        *,
        position_ids_BQ: Tensor | None = None,
        cache: RowCache | None = None,
        attention_mask: Tensor | None = None,
        counts_B: Sequence[int] | None = None,
    ) -> TargetOutput:
        """Run the target over new positions.

        Args:
            input_ids_BQ: token ids, int64.
            position_ids_BQ: their positions; None: continuing each row of the cache (0 … Q-1 without one).
            cache: rows to read and extend; every row becomes Q longer (crop afterwards what is not kept).
            attention_mask: bool [B, 1, Q, K], True = visible; None: causal behind what each row has in the cache.
                Layers with a window see of it what lies in their window.
            counts_B: how many of the Q positions of each row are real, left-aligned; None: all. What is computed of the
                others is not to be used; where few are real they cost next to nothing.
        """
        num_queries = input_ids_BQ.shape[1]
        limit = num_queries if cache is None else cache.capacity
        masks: dict[int | None, Tensor | None] = {}
        for window in self._windows:
            if window is None and attention_mask is not None:
                masks[window] = attention_mask
                continue
            if cache is None:
                mask = causal_mask([0], num_queries, window=window, device=self.device)
            else:
                mask = cache.mask(num_queries, window)
            # Where a window needs no mask, everything is in it.
            masks[window] = (
                mask if attention_mask is None else attention_mask if mask is None else attention_mask & mask
            )
        if position_ids_BQ is None:
            position_ids_BQ = torch.arange(num_queries, device=input_ids_BQ.device)[None].expand_as(input_ids_BQ)
            if cache is not None:
                position_ids_BQ = position_ids_BQ + cache.starts()
        elif cache is None:
            limit = self.spec.max_position_embeddings
        real_N = None if counts_B is None else real_positions(counts_B, num_queries, self.device)
        final_BQD, captured = self._body(BodyInputs(input_ids_BQ, position_ids_BQ, cache, masks, limit, real_N))
        if self.layer_ids:
            states_BQLD = torch.stack([captured[layer] for layer in self.layer_ids], dim=2)
        else:
            states_BQLD = final_BQD.new_empty((*input_ids_BQ.shape, 0, final_BQD.shape[-1]))
        return TargetOutput(final_BQD, states_BQLD)

    def logits(self, final: Tensor) -> Tensor:
        """Logits [..., V] of final states [..., D], soft-capped where the target does that."""
        logits = F.linear(final, self._head)
        cap = self.spec.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _fused_body(
    spec: TargetSpec,
    weights: Weights,
    embedding_VD: Tensor,
    layer_ids: tuple[int, ...],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Body:
    family = family_of(spec)
    prefix = weights.find(EMBEDDING).removesuffix(EMBEDDING)
    layers = []
    for index in range(spec.num_layers):
        below = f"{prefix}layers.{index}."
        # Older checkpoints hold rotary frequencies too: they follow from config.json.
        names = [name for name in weights.below(below) if not name.endswith("rotary_emb.inv_freq")]
        parts = {name: weights.read(below + name, device=device, dtype=dtype) for name in names}
        layers.append(FusedLayer(parts, spec, family, where=f"{spec.path}, layer {index}"))
    norm_weight = weights.read(f"{prefix}norm.weight", shape=(spec.hidden_size,), device=device, dtype=dtype)
    rotary = Rotary(spec)
    wanted = frozenset(layer_ids)

    def forward(inputs: BodyInputs) -> tuple[Tensor, Captured]:
        input_ids_BQ, position_ids_BQ, real_N = inputs.input_ids_BQ, inputs.position_ids_BQ, inputs.real_N
        rows, queries = input_ids_BQ.shape
        if real_N is not None:
            # As one row of N tokens: all but attention goes token by token.
            input_ids_BQ, position_ids_BQ = (x.reshape(-1)[real_N][None] for x in (input_ids_BQ, position_ids_BQ))
        x_BQD = F.embedding(input_ids_BQ, embedding_VD)
        if spec.embedding_scale != 1.0:
            x_BQD = x_BQD * torch.tensor(spec.embedding_scale, dtype=x_BQD.dtype, device=x_BQD.device)
        cos, sin = rotary.lookup(position_ids_BQ, x_BQD.dtype, limit=inputs.limit)
        causal = inputs.masks[None] is None and queries > 1
        mask = additive(inputs.masks[None], x_BQD.dtype)
        captured: Captured = {-1: x_BQD} if -1 in wanted else {}
        for index, layer in enumerate(layers):
            asked, keys, values = layer.project(x_BQD, cos, sin)
            if real_N is not None:
                asked, keys, values = (
                    spread(x.transpose(1, 2), real_N, rows, queries).transpose(1, 2) for x in (asked, keys, values)
                )
            if inputs.cache is not None:
                keys, values = inputs.cache.update(keys, values, index)
            attended = attend(asked, keys, values, mask, scale=spec.attention_scale, causal=causal)
            if real_N is not None:
                attended = attended.transpose(1, 2).flatten(0, 1)[real_N][None].transpose(1, 2)
            x_BQD = layer.finish(x_BQD, attended)
            if index in wanted:
                captured[index] = x_BQD
        final_BQD = rms_norm(x_BQD, norm_weight, spec.rms_norm_eps, casts_first=family.norm_casts_first)
        if real_N is None:
            return final_BQD, captured
        states = {layer: spread(x, real_N, rows, queries) for layer, x in captured.items()}
        return spread(final_BQD, real_N, rows, queries), states

    return forward


def real_positions(counts_B: Sequence[int], num_queries: int, device: torch.device) -> Tensor | None:
    """Indices of the real positions in the flattened [B·Q] batch, int64 [N]; None if it is not worth packing them."""
    if sum(counts_B) >= PACKED_BELOW * len(counts_B) * num_queries:
        return None
    indices = [row * num_queries + column for row, count in enumerate(counts_B) for column in range(count)]
    return torch.tensor(indices, device=device)


def spread(x_1N: Tensor, real_N: Tensor, rows: int, queries: int) -> Tensor:
    """Values of real positions [1, N, …] at their places in the batch [B, Q, …]; zeros at the others."""
    rest = x_1N.shape[2:]
    return x_1N.new_zeros(rows * queries, *rest).index_copy_(0, real_N, x_1N[0]).view(rows, queries, *rest)
