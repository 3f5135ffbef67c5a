"""The layout of the public DeepSpec checkpoints, which is our own; vLLM and SGLang read DSpark drafts in it.

Every field is at the top level, and embedding and head are in the files. What those engines add (vLLM's count of
layers, the second name of the slots) has to agree with the rest. Source: spec page "Serving", sections 1, 2.2 and 4.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deepspec.drafts.layouts import fields
from deepspec.drafts.layouts.fields import BONUS, SLOTS
from deepspec.drafts.layouts.layout import Layout

_IDS: Mapping[str, int] = MappingProxyType(
    {"target_layer_ids": 0, "dspark_target_layer_ids": 0, "eagle_aux_hidden_state_layer_ids": 1}
)


def _read(written: Mapping[str, Any], where: str) -> dict[str, Any]:
    fields.refuse_others(written, fields.BODY, where)
    fields.refuse_others(written, fields.EAGLE3, where)
    fields.refuse_sizes(written, written, where)
    ids = fields.layer_ids(written, _IDS, where)
    said = dict(written) if ids is None else {**written, "target_layer_ids": ids}
    if written.get(SLOTS) is None and written.get(BONUS) is None:
        return said
    return {**said, SLOTS: fields.from_anchor(written, where, otherwise=True)}


LAYOUT = Layout(name="DeepSpec", owns=lambda written: True, read=_read, holds_tables=True)  # noqa: ARG005
