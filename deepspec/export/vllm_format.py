"""vLLM's own configuration of drafts: an architecture of its registry, and fields that its classes read.

Source: vLLM 0.32.0 and 0.33.0 (registry, qwen3_eagle3, qwen3_dflash, qwen3_dspark, gemma4_dspark); spec page "Engines".
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deepspec.drafts.layouts import dflash_config, eagle3
from deepspec.drafts.layouts.fields import BONUS, SLOTS
from deepspec.errors import IncompatibleDraft
from deepspec.export.described import Described, head_fields
from deepspec.export.engine_format import EngineFormat
from deepspec.export.matrix import GEMMA4, Cell, Layout

_NORMS: Mapping[str, Any] = {
    "norm_before_residual": False,
    "norm_before_fc": False,
    "fc_norm": False,
    "norm_output": False,
}


def _required(described: Described, cell: Cell, target_name: str) -> Mapping[str, Any]:
    del target_name
    common = {
        "architectures": [cell.architecture],
        "draft_vocab_size": described.spec.vocab_size,
        # It counts layers by what goes into them, with the embedding's output as the first.
        eagle3.IDS: [layer + 1 for layer in described.layer_ids],
    }
    if cell.layout is Layout.UNROLLED:
        return {**common, **_NORMS}
    block = {"block_size": described.written["block_size"], "mask_token_id": described.config.mask_token_id}
    if cell.layout is Layout.IN_PLACE:
        read = {"mask_token_id": described.config.mask_token_id, "target_layer_ids": described.layer_ids}
        return {**common, **block, dflash_config.NESTED: {**read, "causal": False}}
    return {
        **common,
        **block,
        **head_fields(described),
        "target_layer_ids": described.layer_ids,
        SLOTS: True,
        BONUS: False,
    }


_KEYS_ARE_VALUES: Mapping[str, bool] = MappingProxyType({GEMMA4: True})
"""Families of which vLLM's class has no cache for values of their own."""


def _refuse(described: Described, where: str) -> None:
    if _KEYS_ARE_VALUES.get(described.spec.family, False) and not described.spec.value_from_keys:
        raise IncompatibleDraft(
            "attention_k_eq_v is not true: vLLM's class fills its cache only where keys serve as values.",
            where=where,
            remedy="Train for a target with attention_k_eq_v, or export with --format deepspec.",
        )


def speculative_config(method: str, draft: str, num_draft_tokens: int) -> dict[str, Any]:
    """What `--speculative-config` says to serve a draft as it was measured: its tokens are drawn, as ours are.

    By default vLLM proposes the likeliest tokens, of which answers at a temperature accept fewer. Answers at
    temperature 0 have the same proposals either way.

    Args:
        method: what vLLM calls the algorithm.
        draft: its directory.
        num_draft_tokens: proposed in a round.
    """
    return {
        "method": method,
        "model": draft,
        "num_speculative_tokens": num_draft_tokens,
        "draft_sample_method": "probabilistic",
    }


def own(written: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of vLLM's in our own words: what it says nested or counted otherwise."""
    return eagle3.own(dflash_config.own(written))


FORMAT = EngineFormat(name="vllm", required=_required, own=own, refuse=_refuse).format()
