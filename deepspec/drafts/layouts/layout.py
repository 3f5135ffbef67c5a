"""What deepspec asks of a layout that drafts are published in: its config.json and tensors in our own words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


def _same(name: str) -> str:
    return name


@dataclass(frozen=True)
class Layout:
    """One layout.

    Args:
        name: whose it is, as messages say it.
        owns: (config.json) -> whether a draft is in this layout; the folder's name says nothing.
        read: (config.json, its place for messages) -> the same in our own words; `num_target_layers` is missing where
            the layout does not say it. IncompatibleDraft for what no draft here is, by field.
        spelled: our name of a field -> its name there, where that is another.
        tensor_name: a tensor's name there -> ours.
        assumed: our name of a field -> its value where the layout has no such field.
        holds_tables: embedding and head are always in the files; where they need not be, they are the target's.
    """

    name: str
    owns: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], str], dict[str, Any]]
    spelled: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tensor_name: Callable[[str], str] = _same
    assumed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    holds_tables: bool = False
