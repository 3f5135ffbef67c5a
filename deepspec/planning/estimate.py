"""What a run will take, before anything runs: tokens, bytes of states, work, hours, cost, room on disk.

Estimates from shapes and from lengths of documents; no weight is loaded. The reference layout it compares with keeps,
per token, every captured layer's output and the final state in bf16 (`(L+1)·D·2` bytes), which is what public pipelines
write. Memory is in `memory.py`, which needs torch; nothing here does.

Legend: L captured layers, D hidden size, V vocabulary.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepspec.data.tokens.length_sample import LengthSample
from deepspec.drafts import ALGORITHMS
from deepspec.errors import RecipeError
from deepspec.gates.detectable import detectable
from deepspec.planning.gpus import gpu_named
from deepspec.planning.results import (
    Estimate,
    GpuEstimate,
    PlaceEstimate,
    Recommendation,
    RoomEstimate,
    StatesEstimate,
    Work,
)
from deepspec.recipe import Recipe
from deepspec.states.format.codec_sizes import WIDTHS, files_bytes
from deepspec.targets import FAMILIES, parameter_counts
from deepspec.targets.directory import read_there
from deepspec.targets.family import TargetSpec, spec_from_config, text_config
from deepspec.targets.published import PUBLISHED
from deepspec.units import in_units

CODECS = tuple(WIDTHS)
UTILISATION = 0.4
"""Share of a GPU's peak that training and capture are assumed to reach; stated with every estimate."""
_DISK_SHARE = 0.9
"""Share of the free bytes that a run may take: a full disk stops more than this run."""


def spec_of(recipe: Recipe) -> TargetSpec:
    """The target's shape: from its directory, or from the table of published ones.

    Raises:
        RecipeError: it is neither.
        UnsupportedTarget: the directory's files cannot be used, as far as they are there.
    """
    path = Path(recipe.target.path)
    if path.is_dir():
        return read_there(path)
    raw = PUBLISHED.get(recipe.target.path)
    if raw is None:
        raise RecipeError(
            f"{recipe.target.path!r} is no local directory and no published target that deepspec knows the shape of.",
            where="target.path",
            remedy=f"Known: {', '.join(PUBLISHED)}; or give a directory with a config.json.",
        )
    family = next(f for f in FAMILIES.values() if raw["model_type"] in f.model_types)
    return spec_from_config(family, text_config(family, raw), path=path, model_type=str(raw["model_type"]))


@dataclass(frozen=True)
class Room:
    """Where a run writes, and how much is free there; None: not known (object storage).

    Attributes:
        store, store_free_bytes: where artifacts end.
        home, home_free_bytes: where checkpoints are.
        one_disk: whether both are.
        staging, staging_free_bytes: where artifacts are written first.
    """

    store: str
    store_free_bytes: int | None
    home: str
    home_free_bytes: int
    one_disk: bool
    staging: str
    staging_free_bytes: int


def estimate(
    recipe: Recipe,
    *,
    conversations: int,
    lengths: LengthSample,
    gpu: str | None = None,
    num_gpus: int = 1,
    price_per_gpu_hour: float | None = None,
    room: Room | None = None,
) -> Estimate:
    """Tokens, bytes, work, hours and cost of a run of `recipe`, without its memory (see `memory`).

    Args:
        recipe: the resolved recipe.
        conversations: how many there are before splits and filters.
        lengths: of some of them.
        gpu: one of GPUS; without it no hours and no cost.
        num_gpus: how many.
        price_per_gpu_hour: in `run.currency`.
        room: where the run would write.

    Raises:
        RecipeError: an unknown GPU or target.
    """
    spec = spec_of(recipe)
    layers = len(ALGORITHMS[recipe.draft.algorithm].layer_ids(recipe.draft, spec))
    tokens = round(conversations * lengths.mean_tokens)
    captured = round(tokens * lengths.train_share)
    sizes = {"reference_bf16": tokens * (layers + 1) * spec.hidden_size * 2}
    sizes |= {codec: captured_bytes(recipe, spec, captured, lengths, codec) for codec in _codecs(spec)}
    epochs = epochs_of(recipe, conversations * lengths.train_share)
    work = _work(recipe, spec, conversations * lengths.train_share, lengths, epochs)
    recommended = _recommendation(recipe, sizes, work, epochs, room)
    mode = mode_of(recipe, sizes[recipe.states.codec])
    if mode == "online":
        work["training"] += epochs * work.pop("capture")
    found = Estimate(
        recipe=recipe.name,
        target=recipe.target.path,
        conversations=conversations,
        mean_tokens=lengths.mean_tokens,
        tokens=tokens,
        states=StatesEstimate(
            bytes_by_layout=sizes,
            codec=recipe.states.codec,
            captured_tokens=captured,
            supervised_tokens=round(captured * lengths.supervised_share),
            mode=mode,
        ),
        recommendation=recommended,
        flops=work,
        gate=detectable(recipe.evaluate.num_gate_prompts, None, recipe.gates.confidence),
        wanted_tau_gain=recipe.gates.wanted_tau_gain,
    )
    if recipe.gates.engines:
        found = found.model_copy(update={"not_loaded": not_loaded(recipe, spec)})
    if room is not None:
        written = sizes[recipe.states.codec] if mode == "offline" else 0
        found = found.model_copy(update={"room": _room(recipe, spec, written, room)})
    if gpu is not None:
        found = found.model_copy(update={"gpu": _hours(recipe, gpu, num_gpus, price_per_gpu_hour, work)})
    return found


def not_loaded(recipe: Recipe, spec: TargetSpec) -> dict[str, str]:
    """Of the engines that the gate asks those that load no such draft, by the table of what loads what, and why."""
    from deepspec.export.matrix import cell

    row = ALGORITHMS[recipe.draft.algorithm].export_row(recipe.draft)
    cells = {engine: cell(engine, spec.family, row) for engine in recipe.gates.engines}
    return {engine: f"{found.reason}: {found.nearest}" for engine, found in cells.items() if found.architecture is None}


def states_bytes(recipe: Recipe, num_tokens: int, num_supervised: int) -> int:
    """Bytes of captured states with the recipe's codec and the draft's layers."""
    spec = spec_of(recipe)
    layers = len(ALGORITHMS[recipe.draft.algorithm].layer_ids(recipe.draft, spec))
    return files_bytes(
        recipe.states.codec, layers, spec.hidden_size, tokens=num_tokens, supervised_tokens=num_supervised
    )


def mode_of(recipe: Recipe, size: int) -> str:
    """The mode of states that take `size` bytes, as a run resolves it; free space on a disk has no part in it."""
    if recipe.states.mode != "auto":
        return recipe.states.mode
    return "offline" if size <= recipe.states.max_bytes else "online"


def captured_bytes(recipe: Recipe, spec: TargetSpec, tokens: int, lengths: LengthSample, codec: str) -> int:
    layers = len(ALGORITHMS[recipe.draft.algorithm].layer_ids(recipe.draft, spec))
    supervised = round(tokens * lengths.supervised_share)
    return files_bytes(codec, layers, spec.hidden_size, tokens=tokens, supervised_tokens=supervised)


def _codecs(spec: TargetSpec) -> list[str]:
    """Those that can store vectors of this size: int4 needs an even one."""
    return [codec for codec in CODECS if codec != "int4" or spec.hidden_size % 2 == 0]


def epochs_of(recipe: Recipe, documents: float) -> float:
    if recipe.train.num_steps is None:
        return float(recipe.train.num_epochs)
    return recipe.train.num_steps * recipe.train.num_documents_per_step / max(documents, 1.0)


def _work(
    recipe: Recipe, spec: TargetSpec, documents: float, lengths: LengthSample, epochs: float
) -> dict[Work, float]:
    """Floating point operations of capture and training: 2 per weight and token forward, 4 more backward."""
    counts = parameter_counts(spec)
    tokens = documents * lengths.mean_tokens
    # Scores and sums of values: 2 of each per pair of positions and number of a head.
    attention = sum(
        4.0 * spec.num_attention_heads * layer.head_dim * num * documents * _pairs(layer.window, lengths)
        for layer, num in Counter(spec.layers).items()
    )
    capture = 2.0 * counts["layers"] * tokens + attention
    cost = ALGORITHMS[recipe.draft.algorithm].cost(recipe.draft, spec)
    rows = documents * sum(map(cost.rows, lengths.supervised)) / len(lengths.supervised)
    return {"capture": capture, "training": (cost.row_flops * rows + cost.token_flops * tokens) * epochs}


def _pairs(window: int | None, lengths: LengthSample) -> float:
    """Mean pairs of positions, in a document, of which one attends to the other: half of the square, or of a window."""
    seen = [(length, min(length, window or length)) for length in lengths.tokens]
    return sum(length * most - most**2 / 2 for length, most in seen) / len(seen)


def _recommendation(
    recipe: Recipe, sizes: Mapping[str, int], work: Mapping[Work, float], epochs: float, room: Room | None
) -> Recommendation:
    """The mode to choose, and why: files where they fit and states are used more than once."""
    codec = recipe.states.codec
    size, most = sizes[codec], recipe.states.max_bytes
    free = None if room is None or room.store_free_bytes is None else room.store_free_bytes * _DISK_SHARE
    smaller = [name for name in CODECS if name in sizes and sizes[name] <= min(most, free or most)]
    other = f"; as {smaller[0]} they would fit" if smaller and smaller[0] != codec else ""
    share = work["capture"] / (work["capture"] + work["training"])
    if size > most:
        reason = f"The files would take {in_units(size)}, more than states.max_bytes ({in_units(most)}){other}."
    elif free is not None and size > free:
        reason = f"The files would take {in_units(size)}, and {in_units(free)} can be used of the store's disk{other}."
    elif epochs <= 1:
        reason = "Each document is trained on once: files would only be written and read."
    else:
        reason = (
            f"The files take {in_units(size)}; a live target would run {epochs:.3g} times instead of once, "
            f"{share:.0%} of the work being one capture."
        )
        return Recommendation(mode="offline", reason=reason)
    return Recommendation(mode="online", reason=reason)


def _room(recipe: Recipe, spec: TargetSpec, states: int, room: Room) -> RoomEstimate:
    """What will be written where, against what is free: states to the store, checkpoints to the home."""
    trained = ALGORITHMS[recipe.draft.algorithm].cost(recipe.draft, spec).parameters
    # Weights and two moments in float32; the newest ones, the best one, and one being written.
    checkpoints = round(trained * 12) * (recipe.run.keep_checkpoints + 2)
    draft = round(trained * 4) + 2 * spec.vocab_size * spec.hidden_size * 4
    store, home = states + draft, checkpoints
    needed_store = store + home if room.one_disk else store
    needed_home = store + home if room.one_disk else home
    free = room.store_free_bytes
    return RoomEstimate(
        store=PlaceEstimate(
            place=room.store,
            needed_bytes=store,
            free_bytes=free,
            enough=None if free is None else needed_store <= free,
        ),
        home=PlaceEstimate(
            place=room.home,
            needed_bytes=home,
            free_bytes=room.home_free_bytes,
            enough=needed_home <= room.home_free_bytes,
        ),
    )


def _hours(recipe: Recipe, gpu: str, num_gpus: int, price: float | None, work: Mapping[Work, float]) -> GpuEstimate:
    rate = gpu_named(gpu, where="--gpu").flops * UTILISATION * num_gpus
    hours = {name: flops / rate / 3600 for name, flops in work.items()}
    total = sum(hours.values()) * num_gpus
    return GpuEstimate(
        name=gpu,
        num_gpus=num_gpus,
        assumed_utilisation=UTILISATION,
        hours=hours,
        gpu_hours=total,
        cost=None if price is None else total * price,
        currency=recipe.run.currency,
    )
