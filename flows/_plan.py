"""What the command `plan` does: count what is there, estimate what it will take, show it; and what refuses a run."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deepspec.data.tokens.length_sample import Lengths
from deepspec.errors import BudgetExceeded, DataError, DeepspecError, RecipeError, StoreFull
from deepspec.inputs import local
from deepspec.planning import CODECS, Room, estimate, in_units, memory
from deepspec.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from rich.console import Console

_BYTES_PER_TOKEN = 3.5
"""English and code in a large vocabulary; only where there is no tokenizer, and nobody said how long they are."""
_NVIDIA = Path("/proc/driver/nvidia/version")
_CERTAIN = 0.9
"""A run is refused for want of room only where even this share of the estimate does not fit."""


def document(
    name: str,
    overrides: Sequence[str],
    conversations: int | None,
    mean_tokens: float | None,
    gpu: str | None,
    num_gpus: int | None,
    usd_per_gpu_hour: float | None,
    *,
    home: Path,
) -> dict[str, Any]:
    """The estimate as one JSON document; `home` takes copies of conversations that lie in object storage."""
    recipe = load_recipe(name, overrides)
    changed = {"gpu": gpu, "num_processes": num_gpus, "price_per_gpu_hour": usd_per_gpu_hour}
    run = recipe.run.model_copy(update={field: value for field, value in changed.items() if value is not None})
    recipe = recipe.model_copy(update={"run": run})
    if conversations is None or mean_tokens is None:
        recipe = local(recipe, home)
    return _document(recipe, home, conversations, mean_tokens)


def of_run(recipe: Recipe, home: Path) -> dict[str, Any] | None:
    """The estimate of a run as it would start now; None while its target or conversations are not there."""
    try:
        return _document(recipe, home, None, None)
    except DeepspecError:
        return None


class Planned(Protocol):
    """A stage of a plan."""

    @property
    def name(self) -> str:
        """The stage's."""

    @property
    def status(self) -> str:
        """`would_run` where it is not in the store."""


def refuse(recipe: Recipe, home: Path, records: Iterable[Planned]) -> None:
    """Refuse a run that would exceed the recipe's budget, or that certainly has no room for its states.

    Args:
        recipe: with local inputs, which are there.
        home: its home folder.
        records: of its plan; what the store has already costs nothing.

    Raises:
        BudgetExceeded: naming the limit and the estimate.
        StoreFull: no room.
    """
    would_run = {record.name for record in records if record.status == "would_run"}
    if not would_run & {"states", "train"}:
        return
    try:
        conversations, lengths = _known(recipe, None, None)
    except DeepspecError:
        if recipe.budget != type(recipe.budget)():
            raise
        return  # whoever reads the conversations says better what is wrong with them
    room = _room(recipe, home)
    found = _estimate(recipe, conversations, lengths, room)
    states = found["states"]
    size = states["bytes"][states["codec"]] if states["mode"] == "offline" and "states" in would_run else 0
    budget = recipe.budget
    if budget.max_states_bytes is not None and size > budget.max_states_bytes:
        raise BudgetExceeded(
            f"the states would take {in_units(size)}; the budget is {in_units(budget.max_states_bytes)}.",
            where="budget.max_states_bytes",
            remedy="Choose a smaller states.codec, states.mode=online, or data.max_rows.",
        )
    gpu = found.get("gpu")
    if gpu is not None:
        stage_of = {"capture": "states", "training": "train"}
        hours = gpu["num"] * sum(value for name, value in gpu["hours"].items() if stage_of[name] in would_run)
        if budget.max_gpu_hours is not None and hours > budget.max_gpu_hours:
            raise BudgetExceeded(
                f"it would take {hours:,.3g} GPU hours; the budget is {budget.max_gpu_hours:,g}.",
                where="budget.max_gpu_hours",
                remedy="Train for fewer epochs, on fewer rows (data.max_rows), or raise it.",
            )
        price = recipe.run.price_per_gpu_hour
        if budget.max_cost is not None and price is not None and hours * price > budget.max_cost:
            raise BudgetExceeded(
                f"it would cost {hours * price:,.2f} {recipe.run.currency}; the budget is {budget.max_cost:,.2f}.",
                where="budget.max_cost",
                remedy="Train for fewer epochs, on fewer rows (data.max_rows), or raise it.",
            )
    free = room.staging_free_bytes
    if size * _CERTAIN > free:
        raise StoreFull(
            f"no room left for the target's states: they would take {in_units(size)}, and {in_units(free)} are free.",
            where=room.staging,
            remedy="Free some space, or choose a smaller states.codec, or states.mode=online.",
        )


def show(estimated: dict[str, Any], console: "Console") -> None:
    """The estimate for people, in lines of 80 characters at most (long paths apart)."""
    for line in _lines(estimated):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _lines(found: dict[str, Any]) -> list[str]:
    states, sizes = found["states"], found["states"]["bytes"]
    lines = [
        f"{found['recipe']} on {found['target']}",
        _row("data", f"{found['conversations']:,} conversations of {found['mean_tokens']:,.0f} tokens"),
        _row("", f"{found['tokens']:,} tokens, {states['captured_tokens']:,} of them trained on"),
        _row("states", f"{in_units(sizes['reference_bf16']):>10}  in the reference layout (bf16)"),
    ]
    for codec in (codec for codec in CODECS if codec in sizes):
        chosen = "  <- states.codec" if codec == states["codec"] else ""
        lines.append(_row("", f"{in_units(sizes[codec]):>10}  ours, {codec}{chosen}"))
    recommended = found["recommendation"]
    lines += _wrapped("advice", f"{recommended['mode']}. {recommended['reason']}")
    if recommended["mode"] != states["mode"]:
        lines.append(_row("", f"states.mode={states['mode']} is what the recipe says"))
    work = ", ".join(f"{name} {flops:.2g}" for name, flops in found["flops"].items())
    lines.append(_row("work", f"{work} floating point operations"))
    gpu = found.get("gpu")
    if gpu:
        hours = ", ".join(f"{name} {value:,.1f} h" for name, value in gpu["hours"].items())
        lines.append(_row("time", f"{hours}"))
        lines.append(_row("", f"on {gpu['num']} x {gpu['name']} at {gpu['assumed_utilisation']:.0%} of peak (assumed)"))
        if gpu["usd"] is not None:
            lines.append(_row("cost", f"{gpu['usd']:,.0f} {gpu['currency']} for {gpu['gpu_hours']:,.0f} GPU hours"))
    else:
        lines.append(_row("time", "say --gpu NAME --num-gpus N for hours"))
    taken = found["memory"]
    parts = taken["training"]
    batch = taken["micro_batch"]
    lines.append(
        _row("memory", f"{in_units(taken['training_bytes']):>10}  each training process, on {taken['device']}")
    )
    lines.append(_row("", f"{in_units(parts['weights_gradients_moments']):>10}    weights, gradients, moments"))
    lines.append(_row("", f"{in_units(parts['tables'] + parts['target']):>10}    of the target"))
    size = f"{batch['tokens']:,} tokens, {batch['documents']:,} documents"
    lines.append(_row("", f"{in_units(parts['largest_moment']):>10}    a micro-batch of {size}"))
    lines.append(_row("", f"{in_units(taken['capture_bytes']):>10}  the capture of states"))
    fits = taken.get("fits")
    if fits:
        for what in ("training", "capture"):
            fit = "fits into" if fits[what] else "does NOT fit into"
            lines.append(
                _row("", f"{what} {fit} the {in_units(fits['gpu_bytes'])} of one {gpu['name'] if gpu else ''}")
            )
        if not fits["training"]:
            lines.append(_row("", "lower run.micro_batch_tokens or draft.num_anchors,"))
            lines.append(_row("", "or set run.recompute_activations=true or run.parallel=fsdp"))
    for name, place in found["room"].items():
        free = "free space not known" if place["free_bytes"] is None else f"{in_units(place['free_bytes'])} free"
        short = "  NOT ENOUGH" if place["enough"] is False else ""
        lines.append(
            _row("room" if name == "store" else "", f"{name} needs {in_units(place['needed_bytes'])}, {free}{short}")
        )
        lines.append(_row("", f"  {place['place']}"))
    return lines


def _row(name: str, text: str) -> str:
    return f"{name:<8}{text}".rstrip()


def _wrapped(name: str, text: str) -> list[str]:
    import textwrap

    first, *rest = textwrap.wrap(text, 72)
    return [_row(name, first), *(_row("", line) for line in rest)]


def _document(recipe: Recipe, home: Path, conversations: int | None, mean_tokens: float | None) -> dict[str, Any]:
    conversations, lengths = _known(recipe, conversations, mean_tokens)
    gpu = recipe.run.gpu
    found = _estimate(recipe, conversations, lengths, _room(recipe, home))
    taken = memory(recipe, conversations=conversations, lengths=lengths, device=_device(recipe), gpu=gpu)
    return found | {"memory": taken}


def _estimate(recipe: Recipe, conversations: int, lengths: Lengths, room: Room) -> dict[str, Any]:
    return estimate(
        recipe,
        conversations=conversations,
        lengths=lengths,
        gpu=recipe.run.gpu,
        num_gpus=recipe.run.num_processes,
        price_per_gpu_hour=recipe.run.price_per_gpu_hour,
        room=room,
    )


def _device(recipe: Recipe) -> str:
    """Where it would run: on a CPU only if the target is here and no GPU is."""
    if recipe.run.gpu is not None or recipe.run.device == "cuda" or _NVIDIA.exists():
        return "cuda"
    if recipe.run.device == "auto" and not Path(recipe.target.path).is_dir():
        return "cuda"
    return "cpu"


def _room(recipe: Recipe, home: Path) -> Room:
    """Where a run writes; the folders need not be there yet."""
    store = os.environ.get("DEEPSPEC_STORE") or recipe.store.url or str(home / "store")
    here = _there(home)
    if "://" in store:
        return Room(
            store=store,
            store_free_bytes=None,
            home=str(home),
            home_free_bytes=shutil.disk_usage(here).free,
            one_disk=False,
            staging=str(home / "cache"),  # what goes up is written there first
            staging_free_bytes=shutil.disk_usage(here).free,
        )
    there = _there(Path(store).expanduser())
    free = shutil.disk_usage(there).free
    return Room(
        store=store,
        store_free_bytes=free,
        home=str(home),
        home_free_bytes=shutil.disk_usage(here).free,
        one_disk=there.stat().st_dev == here.stat().st_dev,
        staging=store,
        staging_free_bytes=free,
    )


def _there(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def _known(recipe: Recipe, conversations: int | None, mean_tokens: float | None) -> tuple[int, Lengths]:
    """How many conversations there are and how long: as said, else counted and sampled."""
    if conversations is not None and mean_tokens is not None:
        return conversations, Lengths.uniform(recipe.data, mean_tokens)
    rows, mean_bytes = _counted(recipe)
    count = rows if conversations is None else conversations
    if mean_tokens is not None:
        return count, Lengths.uniform(recipe.data, mean_tokens)
    return count, _sampled(recipe) or Lengths.uniform(recipe.data, max(1.0, mean_bytes / _BYTES_PER_TOKEN))


def _sampled(recipe: Recipe) -> Lengths | None:
    """Lengths by the target's own tokenizer; None where there is none."""
    if not (Path(recipe.target.path) / "tokenizer.json").is_file():
        return None
    from deepspec.data.chat.renderer import Renderer
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.tokens.length_sample import sample_lengths
    from deepspec.planning import spec_of
    from deepspec.targets import family_of

    renderer = Renderer(
        load_tokenizer(recipe.target.path), family_of(spec_of(recipe)).chat, thinking=recipe.data.thinking
    )
    return sample_lengths(recipe.data, renderer)


def _counted(recipe: Recipe) -> tuple[int, float]:
    """Rows that are taken of the local sources, and their mean bytes."""
    from deepspec.data.conversations.mixture import quotas
    from deepspec.data.sources.readers import find_sources

    entries = recipe.data.source
    rows, size = [0] * len(entries), [0] * len(entries)
    for source in find_sources([entry.path for entry in entries]):
        path = Path(source.path)
        if source.kind == "jsonl":
            with path.open("rb") as file:
                rows[source.entry] += sum(1 for _ in file)
            size[source.entry] += path.stat().st_size
        elif source.kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                metadata = pq.read_metadata(path)
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    "is not a readable Parquet file.", where=str(path), remedy="Copy or write the file again."
                ) from error
            rows[source.entry] += metadata.num_rows
            size[source.entry] += sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    taken = quotas(rows, entries, recipe.data.max_rows)
    num_rows = sum(taken)
    if num_rows == 0:
        raise RecipeError(
            "The conversations cannot be counted.",
            where="data.source",
            remedy="Give --conversations and --mean-tokens.",
        )
    num_bytes = sum(part * total / max(count, 1) for part, total, count in zip(taken, size, rows, strict=True))
    return min(num_rows, recipe.data.max_rows or num_rows), num_bytes / num_rows
