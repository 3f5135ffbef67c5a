"""The narrow contract between the training loop and what is trained.

The loop sees only an `Objective`: a module, its optimizer steps as micro-batches, and the loss of one micro-batch. That
is all it needs to serve a draft and a target alike, on one process or many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CHOSEN_BY = "tau"
"""The metric of a validation by which the best weights are chosen (higher is better)."""


@dataclass(frozen=True)
class Placement:
    """Where an objective runs.

    Args:
        device: of the module and its batches.
        dtype: what the forward computes in; the loop casts the module's parameters, the objective its batches.
        rank, world_size: this process among those that train together.
    """

    device: "torch.device"
    dtype: "torch.dtype"
    rank: int = 0
    world_size: int = 1


class Objective(Protocol):
    """What is trained, and on what.

    A random draw may depend on (seed, step, document) and on nothing else: then a resumed run repeats the
    uninterrupted one to the bit, however its batches are split.
    """

    @property
    def module(self) -> "nn.Module":
        """On the placement's device, parameters in float32; those that require gradients are trained."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""

    @property
    def units(self) -> Mapping[str, str]:
        """Unit of each metric it reports, e.g. {"ce": "nats"}."""

    @property
    def memory_fields(self) -> Sequence[str]:
        """Its recipe fields that take less memory when they are lowered."""

    @property
    def parts(self) -> Sequence[str]:
        """Names of the submodules that a forward calls once each: where several processes divide the weights, these
        are gathered one by one, and the rest of the module at once."""

    def micro_batches(self, step: int) -> Sequence[Any]:
        """This rank's micro-batches of optimizer step `step` (0-based), cheap: tensors are read when the loss asks."""

    def dummy_micro_batch(self, step: int) -> Any:
        """A small micro-batch of the step, of any rank: computed without effect where processes must stay in step."""

    def num_tokens(self, micro_batch: Any) -> int:
        """Tokens in a micro-batch, for the metric `tokens_per_second`."""

    def totals(self, micro_batch: Any) -> Mapping[str, float]:
        """Denominators of the loss terms in a micro-batch; the loop adds them up over the whole optimizer step."""

    def loss(
        self, module: "nn.Module", micro_batch: Any, totals: Mapping[str, float]
    ) -> "tuple[Tensor, Mapping[str, Tensor]]":
        """Loss of one micro-batch, already divided by the optimizer step's totals, and metrics as (sum, count).

        Nothing is read back from the device. Metrics are fp64 [2] there; the same names from every micro-batch.

        Args:
            module: `self.module`, or one that does the same with weights that lie elsewhere.
            micro_batch: from `micro_batches`.
            totals: of the whole step; infinite ones make a loss of 0.
        """

    def validate(self, step: int) -> Mapping[str, float]:
        """Metrics of the weights of `self.module` after `step` optimizer steps; called on rank 0 alone.

        With the metric `tau` among them, the weights with the highest one are the result; else the last ones are.
        """

    def export(self, out: Path) -> Mapping[str, Any]:
        """Write the module as it is now to the directory `out`, on rank 0 alone; returns what to tell the caller."""
