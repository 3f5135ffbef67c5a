"""What a capture knows before it begins: how long documents are, and in which shard each will lie.

Shapes: N documents.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepspec.errors import DataError
from deepspec.states.config import Config
from deepspec.states.format.layout import Places, Shard, places, shard_file
from deepspec.states.token_documents import read_documents


@dataclass(frozen=True)
class Survey:
    """What a tokens file holds, and where its documents will lie.

    Args:
        tokens_file: the file.
        num_tokens_N, num_supervised_N: of each document.
        places: shards and row groups.
    """

    tokens_file: Path
    num_tokens_N: npt.NDArray[np.int64]
    num_supervised_N: npt.NDArray[np.int64]
    places: Places

    @classmethod
    def of(cls, tokens_file: Path, config: Config) -> "Survey":
        """Read through a tokens file once.

        Raises:
            DataError: it has no documents or cannot be read.
        """
        counts = [(len(d.input_ids_T), int(d.supervised_T.sum())) for d in read_documents(tokens_file)]
        if not counts:
            raise DataError(
                "there are no documents to capture.",
                where=str(tokens_file),
                remedy="Give more conversations, or a larger share in data.splits.",
            )
        lengths, supervised = np.asarray(counts, dtype=np.int64).T
        found = places(lengths.tolist(), shard_tokens=config.shard_tokens, row_group_tokens=config.row_group_tokens)
        return cls(tokens_file, lengths, supervised, found)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.num_tokens_N.sum())

    def shard(self, number: int) -> Shard:
        """What is known of a shard beforehand."""
        documents = self.places.documents(number)
        return Shard(
            file=shard_file(number),
            num_documents=len(documents),
            num_tokens=int(self.num_tokens_N[documents.start : documents.stop].sum()),
            num_row_groups=int(self.places.row_groups_N[documents.stop - 1]) + 1,
        )
