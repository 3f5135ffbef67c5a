"""The form of a block draft: everything its module is built from besides the target. No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockForm:
    """Structure of a block-parallel draft.

    Args:
        block_size: draft input positions per block; with next-token slots also the number of drafted tokens.
        num_layers: decoder layers of the body.
        layer_ids: the target's layers whose outputs are read, strictly increasing.
        mask_token_id: token in the slots that are to be filled.
        num_anchors: most anchors per document in training (kept beside the weights, as public checkpoints do).
        markov_rank: rank of the sequential head; 0 for none.
        markov_head: its type, a key of `heads.SEQUENTIAL_HEADS`.
        confidence_head: whether there is one.
        confidence_head_with_markov: whether it also sees the sequential head's row of the previous token.
    """

    block_size: int
    num_layers: int
    layer_ids: tuple[int, ...]
    mask_token_id: int
    num_anchors: int
    markov_rank: int = 0
    markov_head: str = "vanilla"
    confidence_head: bool = False
    confidence_head_with_markov: bool = False
