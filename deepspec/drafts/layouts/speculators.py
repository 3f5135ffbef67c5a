"""Drafts of the speculators package: the body in a section of its own, layers counted by what goes into them.

Source: speculators 0.9.0 (its configuration classes and what they save), and the reader in vLLM 0.32.0; spec page
"Engines". Embedding and head are the target's where the files have none, as that package does.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from deepspec.drafts.block.algorithm import BlockAlgorithm
from deepspec.drafts.eagle3 import Eagle3
from deepspec.drafts.layouts import fields
from deepspec.drafts.layouts.fields import SLOTS
from deepspec.drafts.layouts.layout import Layout
from deepspec.errors import IncompatibleDraft

KIND, SECTION = "speculators_model_type", "transformer_layer_config"
BLOCK_IDS = "aux_hidden_state_layer_ids"
EAGLE3_IDS = f"eagle_{BLOCK_IDS}"
PROPOSALS = "speculators_config.proposal_methods"
_SAID = "it is said: the package and vLLM differ in what they take where it is missing"


def own(written: Mapping[str, Any]) -> dict[str, Any]:
    """The same in our own words, as far as it can be read: the body at the top level, layers as we count them."""
    body = written.get(SECTION)
    said = {**written, **(body if isinstance(body, Mapping) else {})}
    ids = written.get(BLOCK_IDS, written.get(EAGLE3_IDS))
    if isinstance(ids, list) and all(type(one) is int for one in ids):
        said["target_layer_ids"] = [one - 1 for one in ids]
    return said


def num_tokens(written: Mapping[str, Any]) -> Any:
    """Tokens per round of the first proposal method, which is the one that is used; None if there is none."""
    methods = fields.at(written, PROPOSALS)
    first = methods[0] if isinstance(methods, list) and methods else None
    return first.get("speculative_tokens") if isinstance(first, Mapping) else None


def _read(written: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind, body = written.get(KIND), written.get(SECTION)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise fields.refused(KIND, kind, f"it is one of {', '.join(_KINDS)}", where)
    if not isinstance(body, Mapping):
        raise fields.refused(SECTION, body, "it is an object with the fields of the body", where)
    if body.get("model_type") == "llama":
        raise fields.refused(
            f"{SECTION}.model_type", "llama", "the body is Qwen3's: queries and keys have norms", where
        )
    fields.refuse_others(body, fields.BODY, where, f"{SECTION}.")
    fields.refuse_sizes(written, body, where)
    ids, of_kind = _KINDS[kind]
    read = fields.layer_ids(written, {ids: 1, "target_layer_ids": 0}, where)
    if written.get(ids) is None or read is None:
        raise IncompatibleDraft(f"field {ids} is missing.", where=where, remedy=fields.OTHER_DRAFT)
    said = {**own(written), "target_layer_ids": read}
    return said | of_kind(written, said, where)


def _eagle3(written: Mapping[str, Any], said: Mapping[str, Any], where: str) -> dict[str, Any]:
    fields.refuse_others(written, fields.EAGLE3, where)
    fields.refuse_others(written[SECTION], fields.ONE_LAYER, where, f"{SECTION}.")
    if written.get("norm_before_residual") is None:
        raise fields.refused("norm_before_residual", None, _SAID, where)
    return {
        "architectures": fields.architecture(said, Eagle3.architecture),
        "ttt_length": written.get("ttt_length", num_tokens(written)),
        "draft_num_hidden_layers": said.get("num_hidden_layers"),
    }


def _block(written: Mapping[str, Any], said: Mapping[str, Any], where: str, *, has_heads: bool) -> dict[str, Any]:
    if has_heads and written.get(SLOTS) is None:
        raise fields.refused(SLOTS, None, _SAID, where)
    return {
        "architectures": fields.architecture(said, BlockAlgorithm.architecture),
        SLOTS: fields.from_anchor(written, where, otherwise=has_heads),
        **({} if has_heads else {"markov_rank": 0, "enable_confidence_head": False}),
    }


_KINDS: Mapping[str, tuple[str, Callable[[Mapping[str, Any], Mapping[str, Any], str], dict[str, Any]]]] = (
    MappingProxyType(
        {
            "eagle3": (EAGLE3_IDS, _eagle3),
            "dflash": (BLOCK_IDS, partial(_block, has_heads=False)),
            "dspark": (BLOCK_IDS, partial(_block, has_heads=True)),
        }
    )
)
"""Kind of draft -> the field of its layers, and what its own fields say."""


def _owns(written: Mapping[str, Any]) -> bool:
    return KIND in written


LAYOUT = Layout(
    name="speculators",
    owns=_owns,
    read=_read,
    assumed=MappingProxyType({"ttt_length": Eagle3.Config.model_fields["num_draft_tokens"].default}),
    spelled=MappingProxyType({"target_layer_ids": f"(eagle_){BLOCK_IDS} (ours are one lower)"}),
)
