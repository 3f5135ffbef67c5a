"""Keys: what has to be equal for a result to be reused.

A key is the SHA-256 of a canonical form of the stage's name and version, the recipe sections it reads and the *output
digests* of its parents. The canonical form raises on anything it does not know, keeps `1` and `1.0` apart, refuses NaN,
and cannot contain an `ExecutionSection`: where and how fast something runs is never part of what it is.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from deepspec.config import ExecutionSection, Section, absent_in_key, name_in_key
from deepspec.errors import ArtifactError


def canonical(value: Any, where: str = "key") -> Any:
    """Reduce `value` to JSON types in one way only.

    Args:
        value: None, bool, int, float, str, list, tuple, dict with string keys, or a `Section`, nested.
        where: the path reported in errors.

    Returns:
        The same value of JSON types; sections become dicts without fields that are declared absent in keys. Renamed
        fields have their old names.

    Raises:
        ArtifactError: on any other type, on NaN and infinities, and on execution sections.
    """
    # Exact types: an enumeration or a NumPy number is a str, an int or a float too, but one whose text may change.
    if value is None or type(value) is bool or type(value) is int:
        return value
    if type(value) is str:
        return _text(value, where)
    if type(value) is float:
        if not math.isfinite(value):
            raise ArtifactError(f"{value} cannot be part of a key.", where=where)
        return value
    if isinstance(value, ExecutionSection):
        raise ArtifactError(f"{type(value).__name__} says how things run and can never be part of a key.", where=where)
    if isinstance(value, Section):
        names = {
            name_in_key(name, declared): name
            for name, declared in type(value).model_fields.items()
            if not absent_in_key(declared, getattr(value, name))
        }
        return {key: canonical(getattr(value, name), f"{where}.{name}") for key, name in sorted(names.items())}
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if type(name) is not str:
                raise ArtifactError(f"Keys of mappings must be strings, not {type(name).__name__}.", where=where)
            _text(name, where)
        return {name: canonical(value[name], f"{where}.{name}") for name in sorted(value)}
    if isinstance(value, PurePath):
        raise ArtifactError("A location cannot be part of a key: fingerprint its content.", where=where)
    raise ArtifactError(f"{type(value).__name__} has no canonical form.", where=where)


def _text(value: str, where: str) -> str:
    try:
        # Two halves of a surrogate pair and the character they encode are different strings with one JSON form.
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ArtifactError(f"{value!r} is not valid Unicode text.", where=where) from error
    return value


def canonical_json(value: Any) -> bytes:
    """The canonical form as bytes: sorted names, no spaces, ASCII, floats as Python's shortest repr."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical form of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(frozen=True)
class Ingredients:
    """Everything a stage's output depends on.

    Attributes:
        stage: the stage's name.
        version: bumped when the stage's output changes for equal inputs.
        sections: recipe path, as keys call it -> the section or value the stage reads.
        parents: parent's name -> digest of its output, or fingerprint of an external input.
    """

    stage: str
    version: int
    sections: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)

    def canonical(self) -> dict[str, Any]:
        """The ingredients as recorded in manifests."""
        return {
            "stage": self.stage,
            "version": self.version,
            "sections": canonical(self.sections, "sections"),
            "parents": canonical(self.parents, "parents"),
        }


def artifact_key(ingredients: Ingredients) -> str:
    """The key (64 hex digits) under which the result of `ingredients` is stored."""
    return digest_of(ingredients.canonical())


def differences(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """What changed between two recorded ingredients, one readable phrase each.

    Returns:
        For example `["train.lr changed 0.0006 -> 0.0003", "parent tokens changed"]`; empty if they are equal.
    """
    phrases: list[str] = []
    if new["version"] != old["version"]:
        phrases.append(f"stage version changed {old['version']} -> {new['version']}")
    before, after = _leaves(old["sections"]), _leaves(new["sections"])
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            phrases.append(f"{path} added {_short(after[path])}")
        elif path not in after:
            phrases.append(f"{path} removed (was {_short(before[path])})")
        elif canonical_json(before[path]) != canonical_json(after[path]):
            phrases.append(f"{path} changed {_short(before[path])} -> {_short(after[path])}")
    parents_before, parents_after = old["parents"], new["parents"]
    for name in sorted(parents_before.keys() | parents_after.keys()):
        if parents_before.get(name) != parents_after.get(name):
            verb = "added" if name not in parents_before else "removed" if name not in parents_after else "changed"
            phrases.append(f"parent {name} {verb}")
    return phrases


def _leaves(value: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted path -> value, for everything that is not a mapping with something in it."""
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            leaves.update(_leaves(item, f"{path}{name}."))
        else:
            leaves[f"{path}{name}"] = item
    return leaves


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
