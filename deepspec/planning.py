"""What a run will take, before anything runs: tokens, bytes of states per codec, floating point work, hours, cost.

Estimates from shapes alone; nothing is loaded. The reference layout it compares with keeps, per token, every captured
layer's output and the final state in bf16 (`(L+1)·D·2` bytes), which is what public pipelines write.

Legend: L captured layers, D hidden size, V vocabulary, A anchors per document, K draft slots.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deepspec.drafts import ALGORITHMS
from deepspec.errors import RecipeError
from deepspec.recipe import Recipe
from deepspec.states.widths import bytes_per_token
from deepspec.targets import FAMILIES
from deepspec.targets.family import TargetSpec, spec_from_config
from deepspec.targets.published import PUBLISHED

CODECS = ("bf16", "int8", "int4")
_TOKEN_BYTES = 4
"""The token's id; its document and mask are run lengths in Parquet and take next to nothing."""
UTILISATION = 0.4
"""Share of a GPU's peak that training and capture are assumed to reach; stated beside every estimate."""


@dataclass(frozen=True)
class Gpu:
    """Peak dense bf16 rate (FLOP/s) and memory (GiB), from the vendor's data sheets."""

    flops: float
    memory_gib: float


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {"h200": Gpu(989e12, 141), "h100": Gpu(989e12, 80), "a100": Gpu(312e12, 80), "l40s": Gpu(362e12, 48)}
)


def spec_of(recipe: Recipe) -> TargetSpec:
    """The target's shape: from its directory, or from the table of published ones.

    Raises:
        RecipeError: it is neither.
    """
    path = Path(recipe.target.path)
    if (path / "config.json").is_file():
        return TargetSpec.read(path)
    raw = PUBLISHED.get(recipe.target.path)
    if raw is None:
        raise RecipeError(
            f"{recipe.target.path!r} is no local directory and no published target that deepspec knows the shape of.",
            where="target.path",
            remedy=f"Known: {', '.join(PUBLISHED)}; or give a directory with a config.json.",
        )
    family = next(f for f in FAMILIES.values() if raw["model_type"] in f.model_types)
    return spec_from_config(family, raw, path=path, model_type=str(raw["model_type"]))


def estimate(
    recipe: Recipe,
    *,
    conversations: int,
    mean_tokens: float,
    gpu: str | None = None,
    num_gpus: int = 1,
    usd_per_gpu_hour: float | None = None,
) -> dict[str, Any]:
    """Tokens, bytes and work of a run of `recipe`.

    Args:
        recipe: the resolved recipe.
        conversations: how many there are before splits and filters.
        mean_tokens: mean length in tokens, prompt included.
        gpu: one of GPUS; without it no hours and no cost.
        num_gpus: how many.
        usd_per_gpu_hour: price.

    Raises:
        RecipeError: an unknown GPU or target.
    """
    spec = spec_of(recipe)
    algorithm = ALGORITHMS[recipe.draft.algorithm]
    layers = len(algorithm.layer_ids(recipe.draft, spec))
    length = min(mean_tokens, recipe.data.max_length_tokens)
    tokens = round(conversations * length)
    splits = recipe.data.splits
    train_share = 1.0 - splits.validation - splits.calibration - splits.gate
    captured = round(tokens * train_share)
    states = {"reference_bf16": tokens * (layers + 1) * spec.hidden_size * 2}
    states |= {codec: captured * (bytes_per_token(codec, layers, spec.hidden_size) + _TOKEN_BYTES) for codec in CODECS}
    work = _work(recipe, spec, captured, conversations * train_share, length)
    document: dict[str, Any] = {
        "recipe": recipe.name,
        "target": recipe.target.path,
        "conversations": conversations,
        "mean_tokens": mean_tokens,
        "tokens": tokens,
        "states": {"bytes": states, "codec": recipe.states.codec, "captured_tokens": captured},
        "flops": work,
        "memory": {"training_bytes": _training_bytes(recipe, spec)},
    }
    if gpu is not None:
        document["gpu"] = _hours(gpu, num_gpus, usd_per_gpu_hour, work)
    return document


def states_bytes(recipe: Recipe, num_tokens: int) -> int:
    """Bytes of captured states of so many tokens, with the recipe's codec and the draft's layers."""
    spec = spec_of(recipe)
    layers = len(ALGORITHMS[recipe.draft.algorithm].layer_ids(recipe.draft, spec))
    return num_tokens * (bytes_per_token(recipe.states.codec, layers, spec.hidden_size) + _TOKEN_BYTES)


def _work(recipe: Recipe, spec: TargetSpec, tokens: int, documents: float, length: float) -> dict[str, float]:
    """Floating point operations of capture and training: 2 per weight and token forward, 4 more backward."""
    counts = spec.parameter_counts()
    capture = 2.0 * (counts["layers"]) * tokens
    body = counts["layers"] / spec.num_layers * getattr(recipe.draft, "num_layers", 1)
    slots = ALGORITHMS[recipe.draft.algorithm].num_draft_tokens(recipe.draft)
    anchors = min(getattr(recipe.draft, "num_anchors", length), length)
    rows = documents * anchors * slots
    head = spec.vocab_size * spec.hidden_size
    # Head twice forward (draft and target), once backward through the draft's (its weights are frozen).
    epoch = 6.0 * body * rows + 6.0 * head * rows + 6.0 * body * 0.25 * tokens
    epochs = recipe.train.num_epochs
    return {"capture": capture, "training": epoch * epochs}


def _training_bytes(recipe: Recipe, spec: TargetSpec) -> int:
    """Weights, gradients and AdamW's moments of the draft, frozen tables once; activations come on top."""
    counts = spec.parameter_counts()
    body = counts["layers"] / spec.num_layers * getattr(recipe.draft, "num_layers", 1)
    markov = 2 * spec.vocab_size * getattr(recipe.draft, "markov_rank", 0)
    frozen_bytes = 2 if recipe.train.compute_dtype == "bfloat16" else 4
    return round((body + markov) * 16 + 2 * spec.vocab_size * spec.hidden_size * frozen_bytes)


def _hours(gpu: str, num_gpus: int, usd_per_gpu_hour: float | None, work: Mapping[str, float]) -> dict[str, Any]:
    if gpu.lower() not in GPUS:
        raise RecipeError(f"{gpu!r} is not a GPU deepspec knows.", where="--gpu", remedy=f"Known: {', '.join(GPUS)}.")
    rate = GPUS[gpu.lower()].flops * UTILISATION * num_gpus
    hours = {name: flops / rate / 3600 for name, flops in work.items()}
    total = sum(hours.values()) * num_gpus
    return {
        "name": gpu,
        "num": num_gpus,
        "assumed_utilisation": UTILISATION,
        "hours": hours,
        "gpu_hours": total,
        "usd": None if usd_per_gpu_hour is None else total * usd_per_gpu_hour,
    }
