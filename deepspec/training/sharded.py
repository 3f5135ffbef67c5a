"""Weights, gradients and moments divided among the processes: fully sharded data parallel training (FSDP2).

Every process holds its part in float32. A forward gathers the weights, in the dtype it computes in, part of the module
by part; a backward leaves each process its part of the summed gradients. With fewer shards than processes the groups
that hold all shards are copies of each other (a hybrid mesh): less memory than data parallel training, less traffic
between machines than one group of all. Frozen weights are never divided: nothing of them is kept but themselves.

Source: Zhao et al. 2023 (arXiv 2304.11277), torch.distributed.fsdp.fully_shard.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from deepspec.errors import RecipeError
from deepspec.training import parallel


class ShardedWeights:
    """This process's part of the weights; see `TrainedWeights`.

    Args:
        module: whole, on every process the same, with float32 parameters; those that require gradients are divided.
            On rank 0 it stays (cast to `dtype`), for `gather_full_weights` to fill; elsewhere its trained parameters
            are given up.
        dtype: what forward and backward compute in; gradients are summed in float32.
        parts: names of the submodules that are gathered one by one; see `Objective.parts`.
        num_shards: how many processes hold one copy; None: all of them.

    Raises:
        RecipeError: the processes cannot be divided into groups of `num_shards`.
    """

    same_num_losses = True

    def __init__(self, module: nn.Module, dtype: torch.dtype, parts: Sequence[str], num_shards: int | None) -> None:
        # A draft's forward returns a gathered weight itself, for the loss without logits, which changes nothing in it.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self._whole = module
        self.module = _copy(module)
        wide = torch.promote_types(dtype, torch.float32)
        for parameter in self.module.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        frozen = {parameter for parameter in self.module.parameters() if not parameter.requires_grad}
        device = next(self.module.parameters()).device
        self._mesh = _mesh(device.type, num_shards)
        policy = MixedPrecisionPolicy(
            param_dtype=None if dtype == wide else dtype, reduce_dtype=wide, cast_forward_inputs=False
        )
        for part in (*(self.module.get_submodule(name) for name in parts), self.module):
            fully_shard(
                part,
                mesh=self._mesh,
                mp_policy=policy,
                # Gathered once per forward: drafts are small, and those that are unrolled call their layers often.
                reshard_after_forward=False,
                ignored_params=frozen,
            )
            sharded = cast("FSDPModule", part)
            # Sums, not means: every loss is divided by the totals of the whole step already.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(enable=True)
        trained = {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}
        self._parameters: Mapping[str, DTensor] = {name: cast("DTensor", weight) for name, weight in trained.items()}
        self.weights: Mapping[str, Tensor] = {name: _local(parameter) for name, parameter in self._parameters.items()}
        self.gradients: Mapping[str, Tensor] = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        for name, weight in trained.items():
            # What is there is added to.
            weight.grad = self._like(self._parameters[name], self.gradients[name])
        self._give_up(dtype)

    def clear_gradients(self) -> None:
        """Set every gradient to zero."""
        torch._foreach_zero_(list(self.gradients.values()))

    def collect_gradients(self) -> None:
        """The backward has done it."""

    def gradient_norm(self) -> Tensor:
        """See `TrainedWeights`; copies of a shard count once."""
        squares = torch.stack([gradient.double().square().sum() for gradient in self.gradients.values()]).sum()
        dist.all_reduce(squares, group=self._mesh.get_group(self._mesh.ndim - 1))
        return squares.sqrt()

    def copy_to_module(self) -> None:
        """The next forward gathers the weights as they are now."""

    def gather_full_weights(self) -> None:
        """See `TrainedWeights`; one tensor after the other is gathered."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                full = cast("DTensor", parameter.detach()).full_tensor()
                if parallel.rank() == 0:
                    self._whole.get_parameter(name).copy_(full)

    def for_checkpoint(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `TrainedWeights`."""
        return {name: self._like(self._parameters[name], tensor) for name, tensor in tensors.items()}

    def _like(self, parameter: DTensor, local: Tensor) -> DTensor:
        return DTensor.from_local(
            local,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    def _give_up(self, dtype: torch.dtype) -> None:
        for parameter in self._whole.parameters():
            if parameter.requires_grad and parallel.rank() != 0:
                parameter.data = parameter.data.new_empty(0)
            else:
                parameter.data = parameter.data.to(dtype)


def _local(parameter: DTensor) -> Tensor:
    """This process's part, in the same memory."""
    part: Tensor = cast("DTensor", parameter.detach()).to_local()
    return part


def _copy(module: nn.Module) -> nn.Module:
    """A module of the same weights whose frozen ones are the very same tensors."""
    same: dict[int, Any] = {id(weight): weight for weight in module.parameters() if not weight.requires_grad}
    return copy.deepcopy(module, same)


def _mesh(device: str, num_shards: int | None) -> DeviceMesh:
    """Rows of processes that hold one copy together."""
    world_size = dist.get_world_size()
    if num_shards is None or num_shards == world_size:
        return init_device_mesh(device, (world_size,), mesh_dim_names=("shard",))
    if world_size % num_shards:
        raise RecipeError(
            f"{world_size} processes cannot be divided into groups of {num_shards}.",
            where="run.num_shards",
            remedy="Choose a divisor of run.num_processes.",
        )
    return init_device_mesh(device, (world_size // num_shards, num_shards), mesh_dim_names=("replicate", "shard"))
