"""What the command `plan` does: count what is there, estimate what it will take, show both."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import DataError, DeepspecError, RecipeError
from deepspec.planning import CODECS, estimate
from deepspec.recipe import Recipe, load_recipe
from flows._locations import local

if TYPE_CHECKING:
    from rich.console import Console

_BYTES_PER_TOKEN = 3.5
"""English and code in a large vocabulary; only used where nobody said how long conversations are."""


def document(
    name: str,
    overrides: Sequence[str],
    conversations: int | None,
    mean_tokens: float | None,
    gpu: str | None,
    num_gpus: int,
    usd_per_gpu_hour: float | None,
    *,
    home: Path,
) -> dict[str, Any]:
    """The estimate as one JSON document; `home` takes copies of conversations that lie in object storage."""
    recipe = load_recipe(name, overrides)
    if conversations is None or mean_tokens is None:
        counted, mean = _counted(local(recipe, home))
        conversations = counted if conversations is None else conversations
        mean_tokens = mean if mean_tokens is None else mean_tokens
    return estimate(
        recipe,
        conversations=conversations,
        mean_tokens=mean_tokens,
        gpu=gpu,
        num_gpus=num_gpus,
        usd_per_gpu_hour=usd_per_gpu_hour,
    )


def of_run(recipe: Recipe) -> dict[str, Any] | None:
    """The estimate of a run as it would start now; None while its target or conversations are not there."""
    try:
        conversations, mean_tokens = _counted(recipe)
        return estimate(recipe, conversations=conversations, mean_tokens=mean_tokens)
    except DeepspecError:
        return None


def show(estimated: dict[str, Any], console: "Console") -> None:
    """The estimate for people."""
    states = estimated["states"]
    size = f"{estimated['conversations']:,} conversations of {estimated['mean_tokens']:,.0f} tokens"
    lines = [
        f"{estimated['recipe']} on {estimated['target']}: {size}, {estimated['tokens']:,} tokens in all",
        f"target states, reference layout (bf16): {_bytes(states['bytes']['reference_bf16'])}",
    ]
    for codec in CODECS:
        chosen = "  <- states.codec" if codec == states["codec"] else ""
        lines.append(f"target states, ours, {codec:<5}           {_bytes(states['bytes'][codec])}{chosen}")
    lines.append(f"training memory without activations: {_bytes(estimated['memory']['training_bytes'])}")
    work = ", ".join(f"{name} {flops:.2g}" for name, flops in estimated["flops"].items())
    lines.append(f"floating point operations: {work} (`deepspec plan --gpu` makes hours of them)")
    gpu = estimated.get("gpu")
    if gpu:
        hours = ", ".join(f"{name} {value:,.1f} h" for name, value in gpu["hours"].items())
        lines.append(f"{gpu['num']} x {gpu['name']} at {gpu['assumed_utilisation']:.0%} of peak: {hours}")
        if gpu["usd"] is not None:
            lines.append(f"cost: {gpu['usd']:,.0f} USD for {gpu['gpu_hours']:,.0f} GPU hours")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _counted(recipe: Recipe) -> tuple[int, float]:
    """Rows that are taken of the local sources, and their mean length guessed from bytes."""
    from deepspec.data.mixture import quotas
    from deepspec.data.sources import find_sources

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
    num_rows_taken = min(num_rows, recipe.data.max_rows or num_rows)
    return num_rows_taken, num_bytes / num_rows / _BYTES_PER_TOKEN


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
