"""AdamW on float32 weights, whatever dtype the module computes in and wherever the weights lie.

Not `torch.optim.AdamW`: constructing one imports torch's compiler (1.3 s of a short run on two cores), and our
checkpoints want plain named tensors. The arithmetic is torch's own fused kernel; a test holds the two together.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from deepspec.training import parallel


class TrainedWeights(Protocol):
    """The weights that are trained and their gradients: this process's part of them, in float32.

    Attributes:
        module: what losses are computed with.
        weights, gradients: by parameter name; the same tensors all the time.
        same_num_losses: whether all processes have to compute the same number of losses.
    """

    module: nn.Module
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    same_num_losses: bool

    def clear_gradients(self) -> None:
        """Set every gradient to zero."""

    def collect_gradients(self) -> None:
        """After the last backward of a step: let `gradients` be sums over all processes."""

    def gradient_norm(self) -> Tensor:
        """Global 2-norm of the collected gradients, a scalar on their device."""

    def copy_to_module(self) -> None:
        """Make `module` compute with the weights as they are now."""

    def gather_full_weights(self) -> None:
        """Make the module that this was made from hold the weights on rank 0, whole; all processes have to call it."""

    def for_checkpoint(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors that lie like `weights`, as checkpoints know them: with their places in the whole tensor."""


class MasterWeights:
    """All of the weights, on every process: `TrainedWeights` of data parallel training.

    In float32 they are the module's own parameters. Else the module's parameters (frozen ones too; never its buffers:
    rotary frequencies stay float32) are cast to `dtype`, each gradient is added to its float32 sum as soon as it
    exists, and `copy_to_module` copies the weights back.

    Args:
        module: with float32 parameters; those that require gradients are trained.
        dtype: what the module shall compute in.
    """

    same_num_losses = False

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.module = module
        trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._parameters = list(trained.values())
        self._separate = dtype != torch.promote_types(dtype, torch.float32)
        self.weights: Mapping[str, Tensor]
        if self._separate:
            self.weights = {name: parameter.detach().clone().float() for name, parameter in trained.items()}
            for parameter in module.parameters():
                parameter.data = parameter.data.to(dtype)
        else:
            self.weights = {name: parameter.detach() for name, parameter in trained.items()}
        self.gradients: Mapping[str, Tensor] = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        for parameter, gradient in zip(self._parameters, self.gradients.values(), strict=True):
            if self._separate:
                hook = _adder(gradient)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch's is untyped
            else:
                parameter.grad = gradient

    def clear_gradients(self) -> None:
        """Set every gradient to zero."""
        torch._foreach_zero_(list(self.gradients.values()))

    def collect_gradients(self) -> None:
        """Add them up over all processes."""
        parallel.add_tensors(list(self.gradients.values()))

    def gradient_norm(self) -> Tensor:
        """See `TrainedWeights`."""
        return torch.nn.utils.get_total_norm(list(self.gradients.values()))

    def gather_full_weights(self) -> None:
        """The module is whole as it is."""

    def for_checkpoint(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Each is."""
        return tensors

    def copy_to_module(self) -> None:
        """Make the module compute with the weights as they are now."""
        if self._separate:
            with torch.no_grad():
                for parameter, weight in zip(self._parameters, self.weights.values(), strict=True):
                    parameter.copy_(weight)


def _adder(total: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        if parameter.grad is not None:
            total.add_(parameter.grad)
            parameter.grad = None

    return add


class AdamW:
    """AdamW with decoupled weight decay.

    Args:
        weights: what is trained, by name, float32.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: share of a weight taken off per step, times the learning rate.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], *, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        self._weights = dict(weights)
        self._betas = betas
        self._eps = eps
        self._weight_decay = weight_decay
        self.first_moments = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.second_moments = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], *, number: int, lr: float) -> None:
        """Change the weights.

        Args:
            gradients: by the weights' names, float32.
            number: how many times the weights will have been changed after this (1 for the first time).
            lr: learning rate.
        """
        if not self._weights:
            return
        weights = list(self._weights.values())
        count = torch.tensor(float(number), device=weights[0].device)
        torch._fused_adamw_(  # what torch.optim.AdamW(fused=True) calls; 3x faster than separate passes
            weights,
            [gradients[name] for name in self._weights],
            list(self.first_moments.values()),
            list(self.second_moments.values()),
            [],
            [count] * len(weights),
            lr=lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self._weight_decay,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
        )


def clip(gradients: Mapping[str, Tensor], norm: float, max_norm: float) -> None:
    """Scale the gradients, whose global 2-norm is `norm`, so that it is at most `max_norm`."""
    if norm > max_norm:
        torch._foreach_mul_(list(gradients.values()), max_norm / (norm + 1e-6))
