"""Finds a benchmark's files or data set, and hands on its rows as turns or messages, each with its position.

Not here: which prompts are taken of them (selection.py), and what the known benchmarks are (known_benchmarks.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from deepspec.data.sources.finding import Source, find_sources
from deepspec.data.sources.forms import COLUMNS
from deepspec.data.sources.hub import split_id
from deepspec.data.sources.readers import read_rows
from deepspec.data.sources.rows import RawRow, RowRejected
from deepspec.errors import DataError
from deepspec.evaluation.known_benchmarks import KnownBenchmark, located, unknown_name

MAX_ROW_BYTES = 1 << 24
"""A benchmark's row may be long (a repository as context); longer ones are an error, like any malformed row."""

_MAX_KNOWN_ROW_BYTES = 1 << 28
"""Of a known benchmark's own rows, which may hold hidden tests besides the question (LiveCodeBench: tens of MB)."""


def find_benchmark(name: str, path: str, known: KnownBenchmark | None) -> tuple[Source, ...]:
    """What a benchmark is read from.

    Args:
        name: its own, for messages.
        path: file, folder, glob, `datasets` id, or a known benchmark's name.
        known: whose rows it has; its original on the hub is read in the part that is meant.

    Raises:
        DataError: there is nothing of that name; names the benchmark.
    """
    location = located(name, path)
    try:
        found = find_sources([location], held_out_too=True)
    except DataError as error:
        is_word = path.replace("-", "").replace("_", "").isalnum()
        raise DataError(
            error.what,
            where=f"benchmark {name}, {error.where or path}",
            remedy=f"{unknown_name(path)}." if is_word else f"Check evaluate.benchmarks.{name}.",
        ) from error
    return tuple(
        replace(source, part=known.part)
        if known is not None and source.kind == "hub" and split_id(source.path)[0] == known.hub
        else source
        for source in found
    )


def read_benchmark_rows(source: Source, known: KnownBenchmark | None) -> Iterator[RawRow]:
    """Rows with `messages`, `conversations` or `turns`; those of a known benchmark that have none are made to.

    A row that cannot be read, or is none of the benchmark's, is handed on as rejected.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    if known is None:
        yield from read_rows(source, max_row_bytes=MAX_ROW_BYTES)
        return
    for row in read_rows(source, max_row_bytes=_MAX_KNOWN_ROW_BYTES, columns=known.columns):
        value = row.value
        if not isinstance(value, Mapping) or any(value.get(column) is not None for column in COLUMNS):
            yield row
            continue
        try:
            yield replace(row, value={"turns": known.turns(value)})
        except RowRejected as rejection:
            yield replace(row, value=None, rejection=rejection)
