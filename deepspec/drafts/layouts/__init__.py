"""Layouts that drafts are published in: the one table of them, and which one a directory is in.

    export.importing ──► LAYOUTS ──► speculators, dflash_config, eagle3, deepspec ──► fields ──► layout
    export.*_format ───► their spellings, so that a field's name stands once

A layout says a draft's config.json in our own words, and refuses what no draft here is. It reads no weights and needs
no torch. To add one: a file that exports a `Layout`, and its line in the table; the first that owns a config.json reads
it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepspec.drafts import algorithm_in
from deepspec.drafts.algorithm import Algorithm
from deepspec.drafts.files.config_json import CONFIG_FILE, read_draft_config
from deepspec.drafts.layouts import deepspec, dflash_config, eagle3, speculators
from deepspec.drafts.layouts.layout import Layout
from deepspec.errors import IncompatibleDraft

LAYOUTS: tuple[Layout, ...] = (
    speculators.LAYOUT,
    dflash_config.SPECFORGE,
    dflash_config.ZLAB,
    eagle3.LAYOUT,
    deepspec.LAYOUT,
)


def layout_of(written: Mapping[str, Any]) -> Layout:
    """The layout that a config.json is in; the last one takes everything."""
    return next(layout for layout in LAYOUTS if layout.owns(written))


def read_layout(written: Mapping[str, Any], directory: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A published draft's config.json in our own words, and what it leaves open, in sentences.

    `num_target_layers` is missing where the layout does not say it.

    Raises:
        IncompatibleDraft: it is of a draft that cannot be run here; names the field.
    """
    layout = layout_of(written)
    said = layout.read(written, f"{directory.name}/{CONFIG_FILE}")
    open_fields = {name: value for name, value in layout.assumed.items() if said.get(name, value) is None}
    sentences = (f"Its config.json does not say {name}; {value} is taken." for name, value in open_fields.items())
    return said | open_fields, tuple(sentences)


@contextmanager
def in_its_words(layout: Layout) -> Iterator[None]:
    """What is refused for a field is said by the field's name in its layout."""
    try:
        yield
    except IncompatibleDraft as error:
        what = error.what
        for ours, theirs in layout.spelled.items():
            what = what.replace(f"field {ours}", f"field {theirs}")
        raise IncompatibleDraft(what, where=error.where, remedy=error.remedy) from error


def published_config(directory: Path) -> tuple[Algorithm, Any]:
    """The algorithm and the Config of a published draft, by its config.json alone.

    Raises:
        IncompatibleDraft: it has no readable config.json, or one of a draft that cannot be run here.
    """
    said, _ = read_layout(read_draft_config(directory), directory)
    algorithm = algorithm_in(said, directory)
    # Not every layout says how deep its target is; a Config does not have it.
    return algorithm, algorithm.read({"num_target_layers": 0, **said}, directory)
