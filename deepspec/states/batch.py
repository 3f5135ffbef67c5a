"""Packed batches: tokens, tokens with target states, and what gives them (files or a live target).

Documents lie one after the other without padding; nothing here says how they were stored or captured.

Shapes: T packed tokens, L captured layers, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepspec.states.order import DataOrder


@dataclass(frozen=True)
class PackedTokens:
    """Some documents, packed: all that is needed to know what will be supervised.

    Args:
        input_ids_T: token ids, int64.
        loss_mask_T: supervised positions, bool.
        lengths: the documents' lengths in pack order; their sum is T.
        document_ids: each document's index in the tokens file: the key of its random draws, so that draws do not
            depend on how documents were packed or dealt to ranks.

    Raises:
        ValueError: the sizes contradict each other.
    """

    input_ids_T: Tensor
    loss_mask_T: Tensor
    lengths: tuple[int, ...]
    document_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        tokens = sum(self.lengths)
        sizes = {name: value.shape[0] for name, value in vars(self).items() if isinstance(value, Tensor)}
        wrong = {name: size for name, size in sizes.items() if size != tokens}
        if wrong:
            raise ValueError(f"the documents have {tokens} tokens, but {wrong}")
        if len(self.document_ids) != len(self.lengths):
            raise ValueError(f"{len(self.lengths)} documents, but {len(self.document_ids)} document ids")

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.input_ids_T.shape[0])

    def to(self, device: torch.device | str) -> "PackedTokens":
        """The same batch on `device`."""
        return replace(
            self,
            input_ids_T=self.input_ids_T.to(device, non_blocking=True),
            loss_mask_T=self.loss_mask_T.to(device, non_blocking=True),
        )

    def with_states(self, states_TLD: Tensor, final_TD: Tensor) -> "PackedStates":
        """These documents with their states; see `PackedStates`."""
        return PackedStates(self.input_ids_T, self.loss_mask_T, self.lengths, self.document_ids, states_TLD, final_TD)


@dataclass(frozen=True)
class PackedStates(PackedTokens):
    """Some documents with their target states, packed: what a loss is computed from.

    Args:
        states_TLD: raw outputs of the captured layers, in the order of the draft's layer ids.
        final_TD: the target's last hidden state after its final norm; from files, NaN where `layout.has_final` says
            that there is none.
    """

    states_TLD: Tensor
    final_TD: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "PackedStates":
        """The same batch on `device`; `dtype`, if given, is what the states are cast to (ids and mask keep theirs)."""
        return replace(
            self,
            input_ids_T=self.input_ids_T.to(device, non_blocking=True),
            loss_mask_T=self.loss_mask_T.to(device, non_blocking=True),
            states_TLD=self.states_TLD.to(device, dtype, non_blocking=True),
            final_TD=self.final_TD.to(device, dtype, non_blocking=True),
        )


class StateSource(Protocol):
    """Documents with target states, indexed 0 … num_documents - 1."""

    @property
    def num_tokens_of(self) -> npt.NDArray[np.integer[Any]]:
        """Length of each document."""

    @property
    def num_documents(self) -> int:
        """How many documents there are."""

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Captured decoder layers, in the order of the states."""

    @property
    def hidden_size(self) -> int:
        """Numbers per state."""

    def order(self, seed: int) -> DataOrder:
        """The order in which a training with this seed sees the documents."""

    def read_ahead(self, documents: Sequence[int]) -> None:
        """Begin to fetch what `with_states` will need for these documents, in this order; what was begun stays."""

    def tokens(self, documents: Sequence[int]) -> PackedTokens:
        """Some documents packed in this order, on the CPU; cheap."""

    def with_states(self, tokens: PackedTokens) -> PackedStates:
        """A batch of `tokens` with its states in bfloat16, where the states are: read on the CPU, or computed on the
        target's device, to which the tokens are then moved."""
