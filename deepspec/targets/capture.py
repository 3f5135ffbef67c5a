"""Target states of whole documents: padded batches through the target, packed results out.

Documents are padded on the right and attention is causal, so that padding cannot reach a real position. Where the
states go (files, a training step) is somebody else's matter.

Shapes: B documents of one batch, Q longest of them, T packed tokens, L captured layers, D hidden.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepspec.targets.model import Target

Ids = Sequence[int] | npt.NDArray[np.int32] | Tensor


def capture(target: Target, documents: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Run one batch of documents.

    Args:
        target: with the layers to capture.
        documents: their token ids, each at least one.

    Returns:
        states_TLD and final_TD of the documents one after the other, on the target's device and in its dtype.
    """
    lengths = [len(document) for document in documents]
    ids_BQ = torch.zeros(len(documents), max(lengths), dtype=torch.int64)
    for row, document in enumerate(documents):
        ids_BQ[row, : lengths[row]] = torch.as_tensor(document, dtype=torch.int64)
    with torch.no_grad():
        output = target.forward(ids_BQ.to(target.device))
        if len(documents) == 1:
            return output.states_BQLD[0], output.final_BQD[0]
        real_BQ = torch.arange(ids_BQ.shape[1]) < torch.tensor(lengths)[:, None]
        real_BQ = real_BQ.to(target.device)
        return output.states_BQLD[real_BQ], output.final_BQD[real_BQ]


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut documents into batches of similar lengths whose padded size stays within a budget.

    Args:
        lengths: tokens per document.
        max_tokens: most tokens of a batch, padding included; a longer document is a batch of its own.

    Returns:
        Indices of the documents per batch, longest batch first: if memory is short, it is short at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        batch = batches[-1] if batches else None
        if batch is None or (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            batches.append([index])
        else:
            batch.append(index)
    return batches
