"""What a training step takes, known without doing it: the step's own code, run on tensors without content.

The draft's module, its optimizer's tensors, loss and backward are those of a training; only that floating point tensors
lie on torch's meta device, which knows shapes and holds nothing. So whatever a step is made of (algorithm, family,
micro-batch, dtype, recomputed activations) is counted as this code computes it. Integers are real: who sees whom, and
how many rows there are, is known before a forward.

Not counted: what kernels take within a call, the allocator's rounding and libraries' workspaces. A compiler's savings
are not taken off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from deepspec.drafts.algorithm import Algorithm
from deepspec.drafts.attention.contracts import (
    AttentionBackend,
    AttentionGroups,
    CausalAttention,
    GroupAttention,
    Projected,
)
from deepspec.drafts.initialization import TABLES
from deepspec.drafts.layers import Computation
from deepspec.losses import chunk_sweep
from deepspec.states.batch import PackedTokens
from deepspec.targets.family import TargetSpec
from deepspec.targets.layers import attend
from deepspec.training.memory.tensor_counter import LiveBytes, bytes_held
from deepspec.training.optimizer import AdamW, MasterWeights

_MOST_TOKENS = 4096
"""A larger micro-batch is reckoned from two smaller ones: with documents alike, every further one takes the same."""
_FEW_TOKENS = 1024
"""What the smaller of the two has at least: enough rows to fill a chunk of the loss."""


@dataclass(frozen=True)
class StepBytes:
    """What a training process holds.

    Args:
        trained: weights, gradients and AdamW's moments, and the copies that the forward computes with.
        tables: the target's embedding and head.
        step: on top of both, at the worst moment of a forward and backward.
    """

    trained: int
    tables: int
    step: int


@dataclass(frozen=True)
class DocumentSize:
    """How many tokens a document has, and how many of them, the last ones, are supervised."""

    tokens: int
    supervised: int


def estimate_step_memory(
    algorithm: Algorithm,
    config: Any,
    spec: TargetSpec,
    documents: Sequence[DocumentSize],
    *,
    dtype: str,
    device: str,
    recomputed: bool = False,
) -> StepBytes:
    """What a step with this micro-batch takes.

    Args:
        algorithm, config: the draft's.
        spec: the target.
        documents: of the largest micro-batch.
        dtype: what forward and backward compute in.
        device: "cpu" or "cuda": they differ in the loss's chunks and in how attention is computed.
        recomputed: see `TrainingExecution.recompute_activations`.
    """
    step = _Step(algorithm, config, spec, dtype=getattr(torch, dtype), device=device, recomputed=recomputed)
    total = sum(document.tokens for document in documents)
    few = -(-_FEW_TOKENS * len(documents) // total)
    if total <= _MOST_TOKENS or len(documents) <= 2 * few:
        return step.bytes_of(documents)
    mean = DocumentSize(
        round(total / len(documents)),
        round(sum(document.supervised for document in documents) / len(documents)),
    )
    small, double = step.bytes_of([mean] * few), step.bytes_of([mean] * 2 * few)
    further = (double.step - small.step) * (len(documents) - 2 * few) // few
    return StepBytes(double.trained, double.tables, double.step + further)


class _Step:
    """A draft and its optimizer on the meta device."""

    def __init__(
        self, algorithm: Algorithm, config: Any, spec: TargetSpec, *, dtype: torch.dtype, device: str, recomputed: bool
    ) -> None:
        self._algorithm, self._config, self._spec = algorithm, config, spec
        self._dtype, self._device = dtype, device
        self._num_states = len(algorithm.layer_ids(config, spec))
        with torch.device("meta"):
            module = algorithm.build(config, spec)
        tables = [module.get_parameter(name) for name in TABLES]
        for table in tables:
            # As a training shares them: in its dtype, and once where the target ties them.
            table.data = tables[0].data if spec.tie_word_embeddings else table.data
            table.data = table.data.to(dtype)
        module.compute_as(Computation(_WHOLE if device == "cuda" else "sdpa", recomputed=recomputed))
        self._weights = MasterWeights(module, dtype)
        optimizer = AdamW(self._weights.weights, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        held = [*module.parameters(), *module.buffers(), *self._weights.weights.values()]
        held += [*self._weights.gradients.values(), *optimizer.first_moments.values()]
        held += optimizer.second_moments.values()
        self._tables = bytes_held(tables)
        self._trained = bytes_held(held) - self._tables

    def bytes_of(self, documents: Sequence[DocumentSize]) -> StepBytes:
        """What one micro-batch takes."""
        tokens = self._tokens(documents)
        supervision = self._algorithm.supervise(tokens, self._config, seed=0, step=0)
        self._weights.clear_gradients()
        hidden, total = self._spec.hidden_size, tokens.num_tokens
        with _StepWithoutContent() as live, chunk_sweep.meta_counts_as(self._device):
            states = torch.empty(total, self._num_states, hidden, dtype=torch.bfloat16, device="meta")
            final = torch.empty(total, hidden, dtype=torch.bfloat16, device="meta")
            batch = tokens.with_states(states.to(self._dtype), final.to(self._dtype))
            del states, final
            output = self._algorithm.loss(self._weights.module, batch, supervision, supervision.totals)
            output.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return StepBytes(self._trained, self._tables, live.peak)

    def _tokens(self, documents: Sequence[DocumentSize]) -> PackedTokens:
        total = sum(document.tokens for document in documents)
        masks = [np.arange(one.tokens) >= one.tokens - one.supervised for one in documents]
        return PackedTokens(
            input_ids_T=torch.zeros(total, dtype=torch.int64),
            loss_mask_T=torch.from_numpy(np.concatenate(masks)),
            lengths=tuple(document.tokens for document in documents),
            document_ids=tuple(range(len(documents))),
        )


_READ = torch.ops.aten._local_scalar_dense.default  # noqa: SLF001  # torch's names of `item()`
_COPY = torch.ops.aten._to_copy.default  # noqa: SLF001  # and of `to()`


class _StepWithoutContent(LiveBytes):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts; and lets real integers meet tensors without content, whose numbers are all 1 where one is read."""

    def compute(self, func: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> Any:
        num_meta = sum(tensor.is_meta for tensor in given)
        if num_meta == 0:
            return func(*args, **kwargs)
        if func is _READ:
            return 1.0
        if func is _COPY and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if num_meta < len(given):
            args, kwargs = tree_map_only(Tensor, _without_content, (args, kwargs))
        return func(*args, **kwargs)


def _without_content(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class _Whole:
    """Attention as one kernel over the whole pack, which keeps what flex attention keeps; see `AttentionBackend`."""

    def groups(self, groups: AttentionGroups, dtype: torch.dtype) -> GroupAttention:  # noqa: ARG002
        return _whole_groups

    def causal(self, lengths: Sequence[int], device: torch.device) -> CausalAttention:  # noqa: ARG002
        return _whole


_WHOLE: AttentionBackend = _Whole()


def _whole(queries_THd: Tensor, keys_THd: Tensor, values_THd: Tensor, *, scale: float) -> Tensor:
    queries, keys, values = (x.transpose(0, 1)[None] for x in (queries_THd, keys_THd, values_THd))
    return attend(queries, keys, values, None, scale=scale, causal=False)[0].transpose(0, 1)


def _whole_groups(projected: Projected, *, scale: float) -> Tensor:
    return _whole(projected.queries_NHd, *projected.joined(), scale=scale)
