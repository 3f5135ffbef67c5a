"""Eagle3 drafts in the layout of serving engines: vLLM's class with a Qwen3 body, and SpecForge's spellings.

vLLM counts layers by what goes into them, at the top level; SpecForge by whose output is read, in `eagle_config`, and
calls the first layer `midlayer`. SpecForge's own drafts have a Llama body, whose queries and keys have no norms: no
draft here has such a body.

Source: vLLM 0.32.0 (qwen3_eagle3, llama_eagle3), SGLang 0.5.23 (llama_eagle3), SpecForge's draft classes and exporter
(2026-08); spec page "Serving", sections 1 and 2.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deepspec.drafts.eagle3 import Eagle3
from deepspec.drafts.layouts import fields
from deepspec.drafts.layouts.layout import Layout

IDS = "eagle_aux_hidden_state_layer_ids"
_QWEN3 = "Eagle3Qwen3ForCausalLM"
_LLAMA = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
_SPELLINGS: Mapping[str, int] = MappingProxyType({IDS: 1, f"eagle_config.{IDS}": 0, "target_layer_ids": 0})


def own(written: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's count of layers in our own words, where nothing else says them."""
    said, ids = dict(written), written.get(IDS)
    if "target_layer_ids" not in said and isinstance(ids, list) and all(type(one) is int for one in ids):
        said["target_layer_ids"] = [one - 1 for one in ids]
    return said


def _read(written: Mapping[str, Any], where: str) -> dict[str, Any]:
    if written["architectures"] != [_QWEN3]:
        here = f"it is {_QWEN3}: a Llama body has no norms of queries and keys"
        raise fields.refused("architectures", written["architectures"], here, where)
    fields.refuse_others(written, fields.BODY, where)
    fields.refuse_others(written, {**fields.EAGLE3, **fields.ONE_LAYER}, where)
    fields.refuse_sizes(written, written, where)
    ids = fields.layer_ids(written, _SPELLINGS, where)
    return {
        **written,
        **({} if ids is None else {"target_layer_ids": ids}),
        "architectures": fields.architecture(written, Eagle3.architecture),
        "ttt_length": written.get("ttt_length"),
        "draft_num_hidden_layers": written.get("num_hidden_layers"),
    }


def _owns(written: Mapping[str, Any]) -> bool:
    names = written.get("architectures")
    return isinstance(names, list) and any(name in (_QWEN3, *_LLAMA) for name in names)


def _tensor_name(name: str) -> str:
    return f"layers.0.{name.removeprefix('midlayer.')}" if name.startswith("midlayer.") else name


LAYOUT = Layout(
    name="Eagle3 of serving engines",
    owns=_owns,
    read=_read,
    assumed=MappingProxyType({"ttt_length": Eagle3.Config.model_fields["num_draft_tokens"].default}),
    spelled=MappingProxyType({"target_layer_ids": f"{IDS} (ours are one lower)"}),
    tensor_name=_tensor_name,
)
