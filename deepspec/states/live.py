"""Target states of a live target: captured when a training step asks for them, kept nowhere.

The documents, their indices and their order are those that captured files of the same tokens would have, and the states
are rounded as in files (bfloat16): a training is the same either way, and only costs disk or the target's forward.

Shapes: T tokens of a document or of a packed batch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from deepspec.errors import DataError
from deepspec.states.batch import PackedStates, PackedTokens
from deepspec.states.config import Config
from deepspec.states.format.layout import places
from deepspec.states.order import DataOrder
from deepspec.states.token_documents import read_documents
from deepspec.targets.capture import capture, length_batches
from deepspec.targets.model import Target


class LiveStates:
    """A `StateSource` over a tokens file and a loaded target.

    Args:
        tokens_file: what `write_tokens` wrote for a split; held in memory, 5 bytes a token.
        target: captures the layers that are wanted (`layer_ids`).
        config: sizes of the shards and row groups that files would have.
        batch_tokens: tokens per forward of the target, padding included.

    Raises:
        DataError: there are no documents, or a row cannot be read.
    """

    def __init__(self, tokens_file: Path, target: Target, config: Config, *, batch_tokens: int = 4096) -> None:
        self._target = target
        self._config = config
        self._batch_tokens = batch_tokens
        documents = list(read_documents(tokens_file))
        if not documents:
            raise DataError(
                "there are no documents to train on.",
                where=str(tokens_file),
                remedy="Give more conversations, or a larger share in data.splits.",
            )
        self.num_tokens_of = np.asarray([len(document.input_ids_T) for document in documents], dtype=np.int64)
        self._starts = np.cumsum(self.num_tokens_of) - self.num_tokens_of
        self._input_ids = np.concatenate([document.input_ids_T for document in documents])
        self._supervised = np.concatenate([document.supervised_T for document in documents])

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.num_tokens_of)

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Captured decoder layers, in the order of the states."""
        return self._target.layer_ids

    @property
    def hidden_size(self) -> int:
        """Numbers per state."""
        return self._target.spec.hidden_size

    def order(self, seed: int) -> DataOrder:
        """The order in which a training with this seed sees the documents: that of captured files."""
        found = places(
            self.num_tokens_of.tolist(),
            shard_tokens=self._config.shard_tokens,
            row_group_tokens=self._config.row_group_tokens,
        )
        return DataOrder(found.global_row_groups(), seed=seed)

    def read_ahead(self, documents: Sequence[int]) -> None:
        """There is nothing to fetch."""

    def tokens(self, documents: Sequence[int]) -> PackedTokens:
        """See `StateSource.tokens`."""
        spans = [slice(self._starts[d], self._starts[d] + self.num_tokens_of[d]) for d in documents]
        input_ids = np.concatenate([self._input_ids[span] for span in spans]).astype(np.int64)
        return PackedTokens(
            input_ids_T=torch.from_numpy(input_ids),
            loss_mask_T=torch.from_numpy(np.concatenate([self._supervised[span] for span in spans])),
            lengths=tuple(int(self.num_tokens_of[document]) for document in documents),
            document_ids=tuple(documents),
        )

    def with_states(self, tokens: PackedTokens) -> PackedStates:
        """See `StateSource.with_states`; the batch is on the target's device.

        Cost: the target's forward over all of its tokens.
        """
        tokens = tokens.to(self._target.device)
        documents = torch.split(tokens.input_ids_T, list(tokens.lengths))
        found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for batch in length_batches(tokens.lengths, self._batch_tokens):
            states_TLD, final_TD = capture(self._target, [documents[index] for index in batch])
            lengths = [tokens.lengths[index] for index in batch]
            parts = zip(
                batch,
                torch.split(states_TLD.to(torch.bfloat16), lengths),
                torch.split(final_TD.to(torch.bfloat16), lengths),
                strict=True,
            )
            found |= {index: (states, final) for index, states, final in parts}
        return tokens.with_states(
            torch.cat([found[index][0] for index in range(len(documents))]),
            torch.cat([found[index][1] for index in range(len(documents))]),
        )
