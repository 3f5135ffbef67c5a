"""The forms of drafts: everything their modules are built from besides the target. No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockForm:
    """Structure of a block-parallel draft.

    Args:
        block_size: draft input positions per block.
        num_layers: decoder layers of the body.
        layer_ids: the target's layers whose outputs are read, strictly increasing.
        mask_token_id: token in the slots that are to be filled.
        num_anchors: most anchors per document in training (kept beside the weights, as public checkpoints do).
        in_place: position j of a block predicts the token at its own place, and the anchor's predicts nothing;
            otherwise each position predicts the next token.
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
    in_place: bool = False
    markov_rank: int = 0
    markov_head: str = "vanilla"
    confidence_head: bool = False
    confidence_head_with_markov: bool = False

    @property
    def num_draft_tokens(self) -> int:
        """Tokens proposed per block."""
        return self.block_size - int(self.in_place)


@dataclass(frozen=True)
class UnrolledForm:
    """Structure of an autoregressive draft that is trained by unrolling it.

    Args:
        num_steps: training-time-test steps, and tokens proposed per round.
        num_layers: decoder layers.
        layer_ids: the target's layers whose outputs are read, strictly increasing.
    """

    num_steps: int
    num_layers: int
    layer_ids: tuple[int, ...]
