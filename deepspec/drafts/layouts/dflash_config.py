"""Drafts that say in a field `dflash_config` what they are: z-lab's DFlash, and SpecForge's DFlash and DSpark.

vLLM's and SGLang's directories of a DFlash draft with in-place slots say it like that, too. Layers are counted by whose
output is read, as ours are. Embedding and head are never in z-lab's or SpecForge's files: they are the target's.

Source: z-lab's model (2026-04), SpecForge's configurations and draft classes (2026-08), vLLM 0.32.0, SGLang 0.5.23;
spec pages "Engines" and "Serving", sections 1 and 2.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deepspec.drafts.block.algorithm import BlockAlgorithm
from deepspec.drafts.layouts import fields
from deepspec.drafts.layouts.fields import BONUS, SLOTS, Allowed
from deepspec.drafts.layouts.layout import Layout

NESTED = "dflash_config"
_IDS: Mapping[str, int] = MappingProxyType(
    {f"{NESTED}.target_layer_ids": 0, "target_layer_ids": 0, "eagle_aux_hidden_state_layer_ids": 1}
)
_PROJECTOR, _WITH_HEADS = "projector_type", "dspark"
_OURS = ("mask_token_id", "block_size", "num_target_layers", SLOTS, BONUS)
_HEADS = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")
_TRAINED_WITH = ("confidence_head_alpha",)
_WINDOW = "all layers see everything"
_NEUTRAL: Allowed = MappingProxyType(
    {
        "causal": ((None, False), "the positions of a block see each other"),
        "use_swa": ((None, False), _WINDOW),
        "swa_window_size": ((None,), _WINDOW),
        "attention_sink_bias": ((None, False), "attention has no sink"),
        "attention_value_scale": ((None, 1), "values are not scaled"),
        "attention_mode": ((None, "gqa"), "attention is grouped-query"),
        "shift_label": ((None, False), "the slots are said by sample_from_anchor"),
        "pure_draft_prefix_len": ((None, 0), "every position of a block but the anchor's is masked"),
        "input_embedding_scale": ((None, 1), "embeddings are scaled as the target's are"),
        "output_multiplier": ((None, 1), "logits are not scaled"),
    }
)
_NO_HEADS: Allowed = MappingProxyType(
    {
        "markov_rank": ((None, 0), f"one with heads says so in {NESTED}.{_PROJECTOR}"),
        "enable_confidence_head": ((None, False), f"one with heads says so in {NESTED}.{_PROJECTOR}"),
    }
)


def own(written: Mapping[str, Any]) -> dict[str, Any]:
    """What a DFlash draft's config.json says nested, at the top level; with in-place slots unless it says otherwise."""
    nested = written.get(NESTED)
    if not isinstance(nested, Mapping):
        return dict(written)
    names = ("target_layer_ids", *_OURS)
    said = {**{name: nested[name] for name in names if name in nested}, **written}
    return {**said, SLOTS: bool(said.get(SLOTS)), "markov_rank": 0, "enable_confidence_head": False}


def _read(written: Mapping[str, Any], where: str, architectures: tuple[str, ...], *, has_heads: bool) -> dict[str, Any]:
    names = written.get("architectures")
    if not (isinstance(names, list) and len(names) == 1 and names[0] in architectures):
        raise fields.refused("architectures", names, f"it is {' or '.join(architectures)}", where)
    known = {"target_layer_ids", _PROJECTOR, *_OURS, *_HEADS, *_TRAINED_WITH, *_NEUTRAL}
    fields.refuse_unknown(written[NESTED], known, where, f"{NESTED}.")
    fields.refuse_others(written[NESTED], _NEUTRAL, where, f"{NESTED}.")
    fields.refuse_others(written, fields.BODY, where)
    fields.refuse_sizes(written, written, where)
    said = fields.merged(written, NESTED, (*_OURS, *_HEADS), where)
    ids = fields.layer_ids(written, _IDS, where)
    return {
        **said,
        **({} if ids is None else {"target_layer_ids": ids}),
        "architectures": fields.architecture(said, BlockAlgorithm.architecture),
        SLOTS: fields.from_anchor(said, where, otherwise=has_heads),
    }


def _dflash(written: Mapping[str, Any], where: str) -> dict[str, Any]:
    said = _read(written, where, ("DFlashDraftModel",), has_heads=False)
    fields.refuse_others(said, _NO_HEADS, where)
    return said | {"markov_rank": 0, "enable_confidence_head": False}


def _dspark(written: Mapping[str, Any], where: str) -> dict[str, Any]:
    projector = written[NESTED][_PROJECTOR]
    if projector != _WITH_HEADS:
        raise fields.refused(f"{NESTED}.{_PROJECTOR}", projector, f"it is {_WITH_HEADS}, or missing", where)
    said = _read(written, where, ("DFlashDraftModel", "DSparkDraftModel", "Qwen3DSparkModel"), has_heads=True)
    # Where it is not said, the confidence head sees the token before if there is a head that reads it.
    return {"confidence_head_with_markov": bool(said.get("markov_rank")), **said}


def _owns(written: Mapping[str, Any], *, has_projector: bool) -> bool:
    nested = written.get(NESTED)
    return isinstance(nested, Mapping) and has_projector == (nested.get(_PROJECTOR) not in (None, "dflash"))


_SPELLED: Mapping[str, str] = MappingProxyType(
    {name: f"{NESTED}.{name}" for name in ("target_layer_ids", "mask_token_id")}
)
ZLAB = Layout(
    name="z-lab's DFlash",
    owns=lambda written: _owns(written, has_projector=False),
    read=_dflash,
    spelled=_SPELLED,
)
SPECFORGE = Layout(
    name="SpecForge",
    owns=lambda written: _owns(written, has_projector=True),
    read=_dspark,
    spelled=MappingProxyType({**_SPELLED, **{name: f"{NESTED}.{name}" for name in _HEADS}}),
)
