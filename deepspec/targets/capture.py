"""Target states of whole documents: padded batches through the target, packed results out.

Documents are padded on the right and attention is causal, so that padding cannot reach a real position. But how a
matrix product rounds depends on its shape: on a CPU each document is therefore computed alone, and its states depend
on nothing but itself. Not here: where the states go (files, a training step).

Shapes: B documents of one batch, Q longest of them, T packed tokens, L captured layers, D hidden.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deepspec.targets.model import Target

Ids = Sequence[int] | npt.NDArray[np.int32] | Tensor


def capture(target: Target, documents: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Run some documents: each alone on a CPU, together on a GPU, which one document would leave idle.

    Alone is no slower: one thread captures 1.07 to 1.19 times as many tokens a second as in padded batches of 4096
    (documents of 30 to 400 tokens; targets of 2, 4 and 20 layers, 64 to 256 wide). On a GPU a document's states depend
    on the others by rounding.

    Args:
        target: with the layers to capture.
        documents: their token ids, each at least one.

    Returns:
        states_TLD and final_TD of the documents one after the other, on the target's device and in its dtype.
    """
    if target.device.type != "cpu":
        return capture_together(target, documents)
    states, finals = zip(*(capture_together(target, [document]) for document in documents), strict=True)
    return torch.cat(states), torch.cat(finals)


def capture_together(target: Target, documents: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Run some documents as one padded batch; arguments and result as in `capture`."""
    rows = [torch.as_tensor(document, dtype=torch.int64) for document in documents]
    ids_BQ = pad_sequence(rows, batch_first=True).to(target.device, non_blocking=True)
    with torch.no_grad():
        output = target.forward(ids_BQ)
    if len(rows) == 1:
        return output.states_BQLD[0], output.final_BQD[0]
    # Row by row: their lengths are known here, and selecting by a mask would wait for the device.
    states_TLD = torch.cat([row_QLD[: len(row)] for row_QLD, row in zip(output.states_BQLD, rows, strict=True)])
    final_TD = torch.cat([row_QD[: len(row)] for row_QD, row in zip(output.final_BQD, rows, strict=True)])
    return states_TLD, final_TD


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
