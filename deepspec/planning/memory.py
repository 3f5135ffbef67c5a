"""Peak memory of a training process and of the capture, before anything runs; needs torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepspec.data.tokens.length_sample import LengthSample
from deepspec.drafts import ALGORITHMS
from deepspec.planning.estimate import captured_bytes, epochs_of, mode_of, spec_of
from deepspec.planning.gpus import gpu_named
from deepspec.planning.results import GpuFit, MemoryEstimate, MicroBatch, TrainingMemory
from deepspec.recipe import Recipe
from deepspec.targets import parameter_counts
from deepspec.targets.family import LayerShape, TargetSpec

if TYPE_CHECKING:
    from deepspec.training.memory.step_estimate import DocumentSize


_VALIDATION_ROWS = 16
_MOST_DRAWN = 200_000
"""Documents whose packing is tried, to find the largest micro-batch."""
_GPU_SHARE = 0.95
"""Of a GPU's memory; the driver, libraries' workspaces and the allocator's gaps take the rest."""


def memory(
    recipe: Recipe, *, conversations: int, lengths: LengthSample, device: str, gpu: str | None = None
) -> MemoryEstimate:
    """Peak memory of the training process (each of them) and of the capture; imports torch.

    Args:
        recipe, conversations, lengths: as in `estimate`.
        device: "cpu" or "cuda".
        gpu: one of GPUS: whether it is enough.
    """
    from deepspec.training.memory.step_estimate import estimate_step_memory

    spec, algorithm = spec_of(recipe), ALGORITHMS[recipe.draft.algorithm]
    longest = max(lengths.tokens) if device == "cpu" else None
    documents = largest_micro_batch(recipe, conversations * lengths.train_share, lengths)
    step = estimate_step_memory(
        algorithm,
        recipe.draft,
        spec,
        documents,
        dtype=recipe.train.compute_dtype,
        device=device,
        recomputed=recipe.run.recompute_activations,
    )
    shards = (recipe.run.num_shards or recipe.run.num_processes) if recipe.run.parallel == "fsdp" else 1
    tokens = round(conversations * lengths.mean_tokens * lengths.train_share)
    online = mode_of(recipe, captured_bytes(recipe, spec, tokens, lengths, recipe.states.codec)) == "online"
    epochs = epochs_of(recipe, conversations * lengths.train_share)
    steps = epochs * conversations * lengths.train_share / recipe.train.num_documents_per_step
    every = recipe.train.validate_every_steps
    validates = every is not None and every < steps
    target = _target_bytes(recipe, spec, shared=step.tables) if online or validates else 0
    moment = max(
        step.step,
        _validation_bytes(recipe, spec, lengths) if validates else 0,
        _capture_bytes(recipe, spec, recipe.run.micro_batch_tokens, longest) if online else 0,
    )
    batch = _capture_bytes(recipe, spec, recipe.run.capture_batch_tokens, longest)
    capture = _target_bytes(recipe, spec, shared=0) + batch
    training = step.trained // shards + step.tables + target + moment
    found = MemoryEstimate(
        device=device,
        training_bytes=training,
        training=TrainingMemory(
            weights_gradients_moments_bytes=step.trained // shards,
            tables_bytes=step.tables,
            target_bytes=target,
            largest_moment_bytes=moment,
        ),
        micro_batch=MicroBatch(documents=len(documents), tokens=sum(document.tokens for document in documents)),
        capture_bytes=capture,
    )
    if gpu is None:
        return found
    size = round(gpu_named(gpu, where="--gpu").memory_gib * 2**30 * _GPU_SHARE)
    fits = GpuFit(
        gpu_bytes=size,
        training=training <= size,
        capture=capture <= size,
        lower=("run.micro_batch_tokens", *(f"draft.{name}" for name in algorithm.memory_fields)),
    )
    return found.model_copy(update={"fits": fits})


def largest_micro_batch(recipe: Recipe, documents: float, lengths: LengthSample) -> "list[DocumentSize]":
    """The micro-batch with most tokens in a training on `documents` documents like the sampled ones.

    Steps are drawn from the sample with the recipe's seed, and packed as a training packs them.
    """
    import numpy as np

    from deepspec.states.order import pack
    from deepspec.training.memory.step_estimate import DocumentSize

    size = recipe.train.num_documents_per_step
    steps = max(1, round(epochs_of(recipe, documents) * documents / size))
    drawn = np.random.default_rng(recipe.train.seed).integers(
        0, len(lengths.tokens), (min(steps, max(1, _MOST_DRAWN // size)), size)
    )
    # Drawn with repeats: more different documents than there are cannot come together.
    tokens = np.asarray(lengths.tokens)
    largest: Sequence[int] = ()
    most = 0
    for step in drawn:
        for packed in pack(tokens[step].tolist(), recipe.run.micro_batch_tokens):
            indices = step[packed.start : packed.stop]
            total = int(tokens[indices].sum())
            if total > most:
                most, largest = total, indices.tolist()
    return [DocumentSize(lengths.tokens[index], lengths.supervised[index]) for index in largest]


def _target_bytes(recipe: Recipe, spec: TargetSpec, *, shared: int) -> int:
    """The target's weights, without the tables that a draft shares with it."""
    counts = parameter_counts(spec)
    return max(0, counts["total"] * _itemsize(recipe.target.dtype) - shared)


def _capture_bytes(recipe: Recipe, spec: TargetSpec, tokens: int, longest: int | None) -> int:
    """Bytes of a batch whose states are captured.

    Args:
        recipe, spec: what is captured.
        tokens: of the batch.
        longest: tokens of the longest document, where each is computed alone (see `capture`); None: together.
    """
    if longest is None:
        return _forward_bytes(recipe, spec, tokens)
    captured = len(ALGORITHMS[recipe.draft.algorithm].layer_ids(recipe.draft, spec)) * spec.hidden_size
    earlier = max(0, tokens - longest) * (captured + spec.hidden_size) * _itemsize(recipe.target.dtype)
    joined = 2 * max(tokens, longest) * (captured + spec.hidden_size) * _itemsize(recipe.target.dtype)
    return max(earlier + _forward_bytes(recipe, spec, longest), joined)


def _forward_bytes(recipe: Recipe, spec: TargetSpec, tokens: int) -> int:
    """Bytes of a forward of the target that keeps the captured layers' outputs.

    Its worst moment is in a late layer: where queries and keys are normed and rotated, while those of the layer before
    are still held, or in the MLP, which holds what its own layer's attention was made of. Or it is the end, when the
    captured outputs are there three times: layer by layer, stacked, and by document.
    """
    return max(_layer_bytes(recipe, spec, layer, tokens) for layer in set(spec.layers))


def _layer_bytes(recipe: Recipe, spec: TargetSpec, layer: LayerShape, tokens: int) -> int:
    """The worst moment, if the late layer is of this shape."""
    captured = len(ALGORITHMS[recipe.draft.algorithm].layer_ids(recipe.draft, spec)) * spec.hidden_size
    queries = spec.num_attention_heads * layer.head_dim
    keys = layer.num_key_value_heads * layer.head_dim
    rotated, projected = queries + keys, queries + 2 * keys
    held = captured + rotated + projected + queries
    attention = held + 2 * spec.hidden_size + projected + 4 * rotated + 4 * layer.head_dim
    mlp = held + queries + 4 * spec.hidden_size + 3 * spec.intermediate_size + 2 * layer.head_dim
    numbers = max(3 * captured + 2 * spec.hidden_size, attention, mlp)
    return tokens * numbers * _itemsize(recipe.target.dtype)


def _validation_bytes(recipe: Recipe, spec: TargetSpec, lengths: LengthSample) -> int:
    """Keys and values of the requests that a validation decodes at once."""
    prompt = max(tokens - supervised for tokens, supervised in zip(lengths.tokens, lengths.supervised, strict=True))
    positions = _VALIDATION_ROWS * (prompt + recipe.train.validation_max_new_tokens)
    numbers = sum(2 * layer.num_key_value_heads * layer.head_dim for layer in spec.layers)
    return positions * numbers * _itemsize(recipe.target.dtype)


def _itemsize(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
