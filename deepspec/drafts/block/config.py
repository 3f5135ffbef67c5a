"""The recipe fields that every block draft has. No torch here."""

from typing import Annotated

from pydantic import Field

from deepspec.config import Section
from deepspec.drafts.files.config_json import SavedAs


class BlockConfig(Section):
    """Base of the `draft:` sections of block drafts."""

    num_draft_tokens: Annotated[int, SavedAs("block_size")] = Field(
        7, ge=1, le=64, description="Tokens proposed per round."
    )
    num_layers: Annotated[int, SavedAs("num_hidden_layers")] = Field(
        5, ge=1, description="Decoder layers of the draft."
    )
    target_layer_ids: Annotated[tuple[int, ...] | None, SavedAs("target_layer_ids")] = Field(
        None, description="The target's layers whose outputs the draft reads; none: the target's usual ones."
    )
    mask_token_id: Annotated[int | None, SavedAs("mask_token_id")] = Field(
        None, ge=0, description="An id the tokenizer does not use, for the positions to be filled; none: the family's."
    )
    num_anchors: Annotated[int, SavedAs("num_anchors", absent=512, trained_with=True)] = Field(
        512, ge=1, description="Most blocks trained per document and step."
    )
    loss_decay_gamma: float = Field(
        4.0, gt=0, description="Position k weighs exp(-k / loss_decay_gamma) in every loss term."
    )
