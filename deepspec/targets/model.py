"""A loaded target: its forward with captured layer outputs, its logits, and nothing about drafts or sampling.

The forward leaves out what serving does not need: no logits (asked for separately, for the positions that matter), no
mask building (masks come from the cache's row lengths), no gradient (the caller decides that). Families whose layers
are all alike run on fused projections read straight from the files; the others run Hugging Face's module.

Shapes: B rows, Q query positions, K keys, L captured layers, D hidden, V vocabulary.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepspec.targets import family_of
from deepspec.targets.cache import Masks, RowCache, causal_mask
from deepspec.targets.family import Family, TargetSpec, text_config
from deepspec.targets.layers import FusedLayer, additive, attend, rms_norm
from deepspec.targets.rotary import Rotary
from deepspec.targets.weights import Weights, read_tables

Captured = dict[int, Tensor]
Runner = Callable[[Tensor, Tensor, RowCache | None, Masks, int], tuple[Tensor, Captured]]


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
        run: the forward of its body: (ids, positions, cache, masks, bound of the positions) -> final states, captured.
            The masks are by the layers' windows, each as in `causal_mask`.
        embedding_VD, head_VD: its tables.
        layer_ids: decoder layers whose outputs `forward` returns; -1 is the embedding.
    """

    def __init__(
        self, spec: TargetSpec, run: Runner, embedding_VD: Tensor, head_VD: Tensor, layer_ids: tuple[int, ...]
    ) -> None:
        self.spec = spec
        self.family: Family = family_of(spec)
        self.layer_ids = layer_ids
        self.eos_token_ids = stop_token_ids(spec.path, self.family)
        self._run = run
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
            UnsupportedTarget: see `TargetSpec.read` and `Weights`; or the weights are not those of such a target.
        """
        spec = TargetSpec.read(path)
        weights = Weights(spec.path)
        if fused and family_of(spec).uniform_layers:
            place = {"device": torch.device(device), "dtype": getattr(torch, dtype)}
            embedding_VD, head_VD = read_tables(weights, spec, **place)
            return cls(
                spec, _fused_runner(spec, weights, embedding_VD, layer_ids, **place), embedding_VD, head_VD, layer_ids
            )
        # Imported only here: transformers' modules cost seconds.
        from deepspec.targets.hugging_face import load_body, runner

        body, head_VD = load_body(spec, device=device, dtype=dtype)
        return cls(spec, runner(body, layer_ids), body.embed_tokens.weight, head_VD, layer_ids)

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
    ) -> TargetOutput:
        """Run the target over new positions.

        Args:
            input_ids_BQ: token ids, int64.
            position_ids_BQ: their positions; None: continuing each row of the cache (0 … Q-1 without one).
            cache: rows to read and extend; every row becomes Q longer (crop afterwards what is not kept).
            attention_mask: bool [B, 1, Q, K], True = visible; None: causal behind what each row has in the cache.
                Layers with a window see of it what lies in their window.
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
        final_BQD, captured = self._run(input_ids_BQ, position_ids_BQ, cache, masks, limit)
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


def _fused_runner(
    spec: TargetSpec,
    weights: Weights,
    embedding_VD: Tensor,
    layer_ids: tuple[int, ...],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Runner:
    family = family_of(spec)
    prefix = weights.find("embed_tokens.weight").removesuffix("embed_tokens.weight")
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

    def run(
        input_ids_BQ: Tensor, position_ids_BQ: Tensor, cache: RowCache | None, masks: Masks, limit: int
    ) -> tuple[Tensor, Captured]:
        x_BQD = F.embedding(input_ids_BQ, embedding_VD)
        if spec.embedding_scale != 1.0:
            x_BQD = x_BQD * torch.tensor(spec.embedding_scale, dtype=x_BQD.dtype, device=x_BQD.device)
        cos, sin = rotary.lookup(position_ids_BQ, x_BQD.dtype, limit=limit)
        causal = masks[None] is None and input_ids_BQ.shape[1] > 1
        mask = additive(masks[None], x_BQD.dtype)
        captured: Captured = {-1: x_BQD} if -1 in wanted else {}
        for index, layer in enumerate(layers):
            queries, keys, values = layer.project(x_BQD, cos, sin)
            if cache is not None:
                keys, values = cache.update(keys, values, index)
            attended = attend(queries, keys, values, mask, scale=spec.attention_scale, causal=causal)
            x_BQD = layer.finish(x_BQD, attended)
            if index in wanted:
                captured[index] = x_BQD
        return rms_norm(x_BQD, norm_weight, spec.rms_norm_eps, casts_first=family.norm_casts_first), captured

    return run


def stop_token_ids(path: Path, family: Family) -> tuple[int, ...]:
    """Ids that end an answer: those of generation_config.json (else config.json) and the chat format's end of turn."""
    found: set[int] = set()
    config = _json_or_empty(path / "config.json")
    for source in (_json_or_empty(path / "generation_config.json"), config, text_config(family, config)):
        declared = source.get("eos_token_id")
        if declared is not None:
            found.update(declared if isinstance(declared, list) else [declared])
            break
    for token in _json_or_empty(path / "tokenizer.json").get("added_tokens", ()):
        if token.get("content") in family.chat.end_of_turn_tokens:
            found.add(int(token["id"]))
    return tuple(sorted(found))


def _json_or_empty(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    value = json.loads(file.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
