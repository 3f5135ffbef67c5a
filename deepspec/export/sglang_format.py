"""SGLang's drafts: DFlash and DSpark with a Qwen3 body; layers are counted by whose output is read, as ours are.

Source: SGLang 0.5.23 (models/dflash, models/dspark, speculative/dflash_utils); spec page "Engines".
"""

from collections.abc import Mapping
from typing import Any

from deepspec.drafts.layouts import dflash_config
from deepspec.drafts.layouts.fields import BONUS, SLOTS
from deepspec.errors import IncompatibleDraft
from deepspec.export.described import Described, head_fields
from deepspec.export.engine_format import EngineFormat
from deepspec.export.matrix import Cell, Layout
from deepspec.export.vllm_format import own


def _required(described: Described, cell: Cell, target_name: str) -> Mapping[str, Any]:
    del target_name
    read = {"mask_token_id": described.config.mask_token_id, "target_layer_ids": described.layer_ids}
    common = {
        "architectures": [cell.architecture],
        "block_size": described.written["block_size"],
        "num_target_layers": described.spec.num_layers,
        **read,
    }
    if cell.layout is Layout.IN_PLACE:
        nested = {**read, "block_size": described.written["block_size"]}
        return {**common, dflash_config.NESTED: {**nested, "causal": False}}
    return {**common, **head_fields(described), SLOTS: True, BONUS: False}


def _refuse(described: Described, where: str) -> None:
    if min(described.layer_ids) < 0:
        raise IncompatibleDraft(
            f"field target_layer_ids is {described.layer_ids}: SGLang reads outputs of layers, not the embedding's.",
            where=where,
            remedy="Train with draft.target_layer_ids from 0 on, or export with --format vllm.",
        )


FORMAT = EngineFormat(name="sglang", required=_required, own=own, refuse=_refuse).format()
