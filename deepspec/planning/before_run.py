"""The estimate of a run before it starts: counts the conversations and samples their lengths."""

import glob
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from deepspec.data.tokens.length_sample import LengthSample
from deepspec.errors import RecipeError
from deepspec.inputs import local
from deepspec.planning.estimate import Room, estimate
from deepspec.planning.memory import memory
from deepspec.planning.results import Estimate
from deepspec.recipe import Recipe, load_recipe
from deepspec.targets.published import PUBLISHED

_BYTES_PER_TOKEN = 3.5
"""English and code in a large vocabulary; only where there is no tokenizer and no --mean-tokens."""
_NVIDIA = Path("/proc/driver/nvidia/version")


def estimate_recipe(
    name: str,
    overrides: Sequence[str],
    conversations: int | None,
    mean_tokens: float | None,
    gpu: str | None,
    num_gpus: int | None,
    price_per_gpu_hour: float | None,
    *,
    home: Path,
) -> Estimate:
    """The estimate of a recipe; `home` takes copies of conversations that lie in object storage.

    Args:
        name, overrides: the recipe's.
        conversations: how many there are; None: they are counted.
        mean_tokens: of one of them; None: a sample's.
        gpu, num_gpus, price_per_gpu_hour: in place of the recipe's `run` section; None: as there.
        home: the home folder.
    """
    recipe = load_recipe(name, overrides)
    changed = {"gpu": gpu, "num_processes": num_gpus, "price_per_gpu_hour": price_per_gpu_hour}
    run = recipe.run.model_copy(update={field: value for field, value in changed.items() if value is not None})
    recipe = recipe.model_copy(update={"run": run})
    if conversations is None or mean_tokens is None:
        recipe = local(recipe, home)
    return _with_memory(recipe, home, conversations, mean_tokens)


def estimate_run(recipe: Recipe, home: Path) -> Estimate | None:
    """The estimate of a run as it would start now; None while its inputs are not there, or cannot be counted.

    Raises:
        UnsupportedTarget, DataError, RecipeError: they are there, and a run could not use them.
    """
    target = recipe.target.path
    if not all(_is_there(path) for path in (target, *(entry.path for entry in recipe.data.source))):
        return None
    try:
        return _with_memory(recipe, home, None, None)
    except _NotCounted:
        return None


def _is_there(location: str) -> bool:
    path = Path(location).expanduser()
    return location in PUBLISHED or path.exists() or bool(glob.glob(str(path)))  # noqa: PTH207 - absolute patterns


class _NotCounted(RecipeError):
    """The rows of a source are known only when it is read."""


def _with_memory(recipe: Recipe, home: Path, conversations: int | None, mean_tokens: float | None) -> Estimate:
    conversations, lengths = known_lengths(recipe, conversations, mean_tokens)
    gpu = recipe.run.gpu
    found = without_memory(recipe, conversations, lengths, room_of(recipe, home))
    taken = memory(recipe, conversations=conversations, lengths=lengths, device=_device(recipe), gpu=gpu)
    return found.model_copy(update={"memory": taken})


def without_memory(recipe: Recipe, conversations: int, lengths: LengthSample, room: Room) -> Estimate:
    """The estimate without its memory: it needs no torch."""
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


def room_of(recipe: Recipe, home: Path) -> Room:
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


def known_lengths(recipe: Recipe, conversations: int | None, mean_tokens: float | None) -> tuple[int, LengthSample]:
    """How many conversations there are and how long: as said, else counted and sampled."""
    if conversations is not None and mean_tokens is not None:
        return conversations, LengthSample.uniform(recipe.data, mean_tokens)
    rows, mean_bytes = _counted(recipe)
    count = rows if conversations is None else conversations
    if mean_tokens is not None:
        return count, LengthSample.uniform(recipe.data, mean_tokens)
    return count, _sampled(recipe) or LengthSample.uniform(recipe.data, max(1.0, mean_bytes / _BYTES_PER_TOKEN))


def _sampled(recipe: Recipe) -> LengthSample | None:
    """Lengths by the target's own tokenizer; None where there is none."""
    if not (Path(recipe.target.path) / "tokenizer.json").is_file():
        return None
    from deepspec.data.chat.renderer import Renderer
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.tokens.length_sample import sample_lengths
    from deepspec.planning.estimate import spec_of
    from deepspec.targets import family_of

    renderer = Renderer(
        load_tokenizer(recipe.target.path), family_of(spec_of(recipe)).chat, thinking=recipe.data.thinking
    )
    return sample_lengths(recipe.data, renderer)


def _counted(recipe: Recipe) -> tuple[int, float]:
    """Rows that are taken of the local sources, and their mean bytes."""
    from deepspec.data.conversations.mixture import quotas
    from deepspec.data.sources.finding import find_sources
    from deepspec.data.sources.readers import count_rows

    entries = recipe.data.source
    rows, size = [0] * len(entries), [0] * len(entries)
    for source in find_sources([entry.path for entry in entries]):
        found = count_rows(source)
        rows[source.entry] += found[0]
        size[source.entry] += found[1]
    taken = quotas(rows, entries, recipe.data.max_rows)
    num_rows = sum(taken)
    if num_rows == 0:
        raise _NotCounted(
            "The conversations cannot be counted.",
            where="data.source",
            remedy="Give --conversations and --mean-tokens.",
        )
    num_bytes = sum(part * total / max(count, 1) for part, total, count in zip(taken, size, rows, strict=True))
    return min(num_rows, recipe.data.max_rows or num_rows), num_bytes / num_rows
