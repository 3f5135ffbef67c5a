"""The speculators package's drafts, which vLLM reads, too: the body in a section of its own, the target by name.

Source: speculators 0.9.0 and the reader in vLLM 0.32.0; spec page "Engines".
"""

from collections.abc import Mapping
from typing import Any

from deepspec.drafts.layouts.fields import SLOTS
from deepspec.drafts.layouts.speculators import BLOCK_IDS, EAGLE3_IDS, KIND, SECTION, own
from deepspec.export.described import Described, head_fields
from deepspec.export.engine_format import EngineFormat
from deepspec.export.matrix import Cell, Layout

_VERSION = "0.9.0"


def _required(described: Described, cell: Cell, target_name: str) -> Mapping[str, Any]:
    tokens = described.num_draft_tokens
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": tokens,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    common = {
        "architectures": [cell.architecture],
        KIND: cell.method,
        "speculators_version": _VERSION,
        "draft_vocab_size": described.spec.vocab_size,
        "target_hidden_size": None,
        "speculators_config": {
            "algorithm": cell.method,
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": target_name, "architectures": ["Qwen3ForCausalLM"]},
        },
    }
    aux = [layer + 1 for layer in described.layer_ids]
    if cell.layout is Layout.UNROLLED:
        norms = dict.fromkeys(("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"), False)
        return {**common, **norms, EAGLE3_IDS: aux, "embed_requires_grad": False}
    return {
        **common,
        BLOCK_IDS: aux,
        "block_size": described.written["block_size"],
        "mask_token_id": described.config.mask_token_id,
        SLOTS: cell.layout is Layout.CHAINED,
        "sliding_window_non_causal": True,  # its default makes drafts causal that see everything
        **(head_fields(described) if cell.layout is Layout.CHAINED else {}),
    }


FORMAT = EngineFormat(name="speculators", required=_required, own=own, body_field=SECTION).format()
