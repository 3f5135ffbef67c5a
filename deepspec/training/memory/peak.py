"""What a training process takes: its tensors, at the worst moment of its largest micro-batch.

On a GPU torch's allocator knows. On a CPU the tensors of a forward and backward are counted (`LiveBytes`), whenever a
micro-batch is larger in any respect than those before it: some dozen times in a whole training.
"""

import resource
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from deepspec.training.memory.tensor_counter import LiveBytes, bytes_held


class Memory:
    """See above.

    Args:
        held: tensors that are there all the time: weights, gradients, moments, frozen tables.
    """

    def __init__(self, held: Sequence[Tensor]) -> None:
        self._held = held
        self._device = held[0].device if held else torch.device("cpu")
        self._largest: dict[str, float] = {}
        self._step: LiveBytes | None = None
        self._step_bytes = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def watching(self, sizes: Mapping[str, float]) -> AbstractContextManager[Any]:
        """Around the forward and backward of a micro-batch of these sizes."""
        self._note()
        larger = {name: size for name, size in sizes.items() if size > self._largest.get(name, 0.0)}
        if not larger or self._device.type == "cuda":
            return nullcontext()
        self._largest |= larger
        self._step = LiveBytes()
        return self._step

    def found(self) -> dict[str, int]:
        """Bytes: `held` all the time, `step` on top of them at most, `peak` of both, and `peak_rss` of the process.

        On a GPU `peak` is what torch's allocator has handed out at most, tensors of a validation included.
        """
        self._note()
        held = bytes_held(self._held)
        peak = held + self._step_bytes
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"held": held, "step": peak - held, "peak": peak, "peak_rss": rss}

    def _note(self) -> None:
        if self._step is not None:
            self._step_bytes = max(self._step_bytes, self._step.peak)
            self._step = None
