"""Data sets on the hub, loaded by the `datasets` library, which turns Parquet of others into Arrow, in this process."""

from collections.abc import Iterator, Sequence
from typing import Any

from deepspec.data.sources.columnar.arrow import with_json
from deepspec.data.sources.columnar.batches import Rows, rows_of
from deepspec.data.sources.finding import FORMATS
from deepspec.data.sources.hub import HubPart, split_id
from deepspec.data.sources.saved import Parts, part_to_read
from deepspec.errors import DataError


def load(location: str, part: HubPart, *, any_split: bool) -> tuple[Any, Parts | None]:
    """A data set of the hub, as `datasets.Dataset`, and the name of its part that it is, with those of the others.

    Args:
        location: `owner/name` or `owner/name@revision`.
        part: of it.
        any_split: whether the only split may be one that is held out from training by its name.

    Raises:
        DataError: it cannot be loaded, or none of its parts is meant.
    """
    import datasets

    name, revision = split_id(location)
    try:
        loaded = datasets.load_dataset(name, part.config, split=part.split, revision=revision)
    except (OSError, ValueError, TypeError, KeyError, datasets.exceptions.DatasetsError) as error:
        what = f"is no file or folder, nor a data set that can be loaded: {error}."
        raise DataError(what, where=location, remedy=FORMATS) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded, None
    read = part_to_read(sorted(loaded), location, any_split=any_split)
    return loaded[read], (read, tuple(other for other in sorted(loaded) if other != read))


def loaded_rows(loaded: Any, columns: Sequence[str], max_row_bytes: int) -> Iterator[Rows]:
    """The rows of a data set, as dictionaries, or as rejected.

    Args:
        loaded: from `load`.
        columns: to read.
        max_row_bytes: rows that are much longer are rejected unread.
    """
    for table in loaded.select_columns(list(columns)).with_format("arrow", columns=list(columns)).iter(1000):
        for batch in table.to_batches():
            yield from with_json(rows_of(batch, max_row_bytes), batch.schema)
