"""Keys: equal exactly where everything that a stage reads is equal."""

import copy
import enum
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from deepspec.config import ExecutionSection, Section, later_field, location_field
from deepspec.errors import ArtifactError
from deepspec.store.keys import Ingredients, artifact_key, canonical, canonical_json, differences, digest_of

BUSY = settings(deadline=None, max_examples=60)
"""A busy machine is no failure."""
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FLOATS | TEXT
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
SECTIONS = st.dictionaries(TEXT, VALUES, max_size=5)


def key(sections: Any, **other: Any) -> str:
    return artifact_key(Ingredients(**{"stage": "train", "version": 1, "sections": sections, "parents": {}} | other))


def shuffled(value: Any, draw: st.DataObject) -> Any:
    """The same value with its mappings written in another order, and tuples for lists."""
    if isinstance(value, dict):
        names = draw.draw(st.permutations(list(value)))
        return {name: shuffled(value[name], draw) for name in names}
    if isinstance(value, list):
        items = [shuffled(item, draw) for item in value]
        return tuple(items) if draw.draw(st.booleans()) else items
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield (*path, name)
        yield from places(item, (*path, name))


def identity(value: Any) -> Any:
    """What tells values apart: types too, and the sign of zero, but neither the order of names nor list from tuple."""
    if isinstance(value, dict):
        return "dict", frozenset((name, identity(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return "list", tuple(identity(item) for item in value)
    return type(value).__name__, repr(value)


@BUSY
@given(SECTIONS, st.data())
def test_a_key_does_not_depend_on_the_order_of_names(sections: dict[str, Any], data: st.DataObject) -> None:
    assert key(shuffled(sections, data)) == key(sections)


@BUSY
@given(VALUES, VALUES)
@example(1, 1.0)
@example(1, True)
@example(0, False)
@example([1], [True])
@example("1", 1)
@example("null", None)
@example("", None)
@example({}, [])
@example([[]], [])
@example(["a", "b"], ["ab"])
@example({"a": {"b": 1}}, {"a.b": 1})
@example({"a": None}, {})
@example(2**53, 2.0**53)
def test_keys_are_equal_exactly_where_values_are(left: Any, right: Any) -> None:
    assert (key({"x": left}) == key({"x": right})) == (identity(left) == identity(right))


@BUSY
@given(SECTIONS, LEAVES, st.data())
def test_every_leaf_counts(sections: dict[str, Any], leaf: Any, data: st.DataObject) -> None:
    paths = list(places(sections))
    assume(paths)
    path = data.draw(st.sampled_from(paths))
    changed = copy.deepcopy(sections)
    inside: Any = changed
    for name in path[:-1]:
        inside = inside[name]
    assume(identity(inside[path[-1]]) != identity(leaf))
    inside[path[-1]] = leaf
    assert key(changed) != key(sections)
    del inside[path[-1]]
    assert key(changed) != key(sections)


def test_stage_version_sections_and_parents_each_count() -> None:
    made = [
        key({}),
        key({}, stage="states"),
        key({}, version=2),
        key({"a": "1"}),
        key({}, parents={"a": "1"}),
        key({}, parents={"a": "2"}),
        key({}, parents={"b": "1"}),
        key({"sections": {}}),
        key({}, parents={"a": "1", "b": "1"}),
    ]
    assert len(set(made)) == len(made)
    assert key({}, parents={"b": "2", "a": "1"}) == key({}, parents={"a": "1", "b": "2"})


class Draft(Section):
    layers: int = 2
    ids: tuple[int, ...] | None = (1, 2)


class Train(Section):
    lr: float = 6e-4
    seed: int = 0
    mask: Literal["serving", "deepspec"] = "serving"
    shares: dict[str, float] = Field(default={"gate": 0.02})
    draft: Draft = Draft()


DEFAULT = Train()


@pytest.mark.parametrize(
    "changed",
    [
        Train(lr=3e-4),
        Train(lr=math.nextafter(6e-4, 1)),
        Train(seed=1),
        Train(mask="deepspec"),
        Train(shares={"gate": 0.03}),
        Train(shares={"gate": 0.02, "validation": 0.02}),
        Train(shares={}),
        Train(draft=Draft(layers=3)),
        Train(draft=Draft(ids=(2, 1))),
        Train(draft=Draft(ids=())),
        Train(draft=Draft(ids=None)),
    ],
    ids=repr,
)
def test_every_field_of_a_section_counts(changed: Train) -> None:
    assert key({"train": changed}) != key({"train": DEFAULT})
    assert key({"train": changed}) == key({"train": changed.model_copy(deep=True)})


def test_a_section_is_what_its_fields_are() -> None:
    assert key({"train": DEFAULT}) == key({"train": Train(**DEFAULT.model_dump())})
    assert key({"train": DEFAULT}) == key({"train": json.loads(DEFAULT.model_dump_json())})
    # A number given as text or as another type means the same once the section has read it.
    assert key({"train": Train.model_validate({"lr": 1, "seed": "3"})}) == key({"train": Train(lr=1.0, seed=3)})


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class NotASection:
    pass


class Devices(ExecutionSection):
    count: int = 1


class Mixed(Section):
    devices: Devices = Devices()


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        np.float64(1.0),
        np.float32(1.0),
        np.int64(1),
        np.bool_(True),
        np.zeros(2),
        Color.RED,
        Level.LOW,
        1j,
        b"bytes",
        {1, 2},
        frozenset(),
        NotASection(),
        NotASection,
        Train,
        Path("file"),
        PurePosixPath("file"),
        {1: "a"},
        {None: "a"},
        {Color.RED: 1},
        "\ud800",
        {"\udfff": 1},
        iter([1]),
        range(3),
        Devices(),
        Mixed(),
        lambda: None,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [1, v], lambda v: {"a": {"b": [v]}}], ids=["", "list", "deep"])
def test_what_has_no_canonical_form_raises(value: Any, wrap: Any) -> None:
    with pytest.raises(ArtifactError) as caught:
        key({"train": wrap(value)})
    assert "sections.train" in str(caught.value)


@BUSY
@given(VALUES, st.sampled_from([math.nan, math.inf, Path("x"), Devices(), object()]), st.data())
def test_it_raises_wherever_it_stands(value: Any, bad: Any, data: st.DataObject) -> None:
    value = {"root": value}
    paths = list(places(value))
    path = data.draw(st.sampled_from(paths))
    inside: Any = value
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = bad
    with pytest.raises(ArtifactError):
        canonical(value)


def test_two_halves_of_a_character_are_not_the_character() -> None:
    """Their JSON is the same: the one must not be mistaken for the other."""
    assert json.dumps("\ud83d\ude00") == json.dumps("😀")
    assert key({"x": "😀"})
    with pytest.raises(ArtifactError, match="Unicode"):
        key({"x": "\ud83d\ude00"})


class Later(Section):
    old: int = 1
    new: float | int | bool | str | None = later_field(0.5, key_absent=0.0)


class Before(Section):
    old: int = 1


@BUSY
@given(LEAVES)
@example(0.0)
@example(0)
@example(False)
@example("0.0")
@example(None)
def test_a_later_field_is_left_out_with_exactly_one_value(value: Any) -> None:
    assume(value != 0.0 or repr(value) != "-0.0")
    later = Later.model_construct(new=value)
    same = type(value) is float and value == 0.0
    assert (key({"s": later}) == key({"s": Before()})) == same


def test_a_later_fields_default_is_not_what_is_left_out() -> None:
    assert key({"s": Later()}) != key({"s": Before()})
    assert key({"s": Later(new=0.0)}) == key({"s": Before()})
    assert key({"s": Later(new=0.0, old=2)}) == key({"s": Before(old=2)})


def test_a_location_never_counts_its_neighbours_do() -> None:
    class Source(Section):
        path: Path = location_field()
        limit: int = 1

    assert key({"s": Source(path=Path("a"))}) == key({"s": Source(path=Path("b/c"))})
    assert key({"s": Source(path=Path("a"), limit=2)}) != key({"s": Source(path=Path("a"))})


def test_one_key_stays_what_it_is() -> None:
    """Every artifact of every store would be orphaned by another canonical form."""
    made_of = Ingredients(
        stage="train",
        version=3,
        sections={"train": DEFAULT, "data.mask": "serving", "layers": [1, 2.0, True, None, "é\n"], "empty": {}},
        parents={"tokens": "ab" * 32, "target": "cd" * 32},
    )
    form = (
        b'{"parents":{"target":"' + b"cd" * 32 + b'","tokens":"' + b"ab" * 32 + b'"},'
        b'"sections":{"data.mask":"serving","empty":{},"layers":[1,2.0,true,null,"\\u00e9\\n"],'
        b'"train":{"draft":{"ids":[1,2],"layers":2},"lr":0.0006,"mask":"serving","seed":0,"shares":{"gate":0.02}}},'
        b'"stage":"train","version":3}'
    )
    assert canonical_json(made_of.canonical()) == form
    assert artifact_key(made_of) == hashlib.sha256(form).hexdigest()
    assert artifact_key(made_of) == "c00fe8e6d3a3d5f115f654a89cc607ea8c32bf13dc935a0c983a9b20fd83dc87"


@BUSY
@given(VALUES)
def test_the_canonical_form_survives_being_recorded(value: Any) -> None:
    """Manifests keep it as JSON: what is read back has the same digest."""
    recorded = json.loads(json.dumps(canonical(value)))
    assert digest_of(recorded) == digest_of(value)
    assert canonical(canonical(value)) == canonical(value)


@BUSY
@given(SECTIONS, SECTIONS)
@example({"a": 1}, {"a": 1.0})
@example({"a": [1]}, {"a": [True]})
@example({}, {"a": {}})
def test_differences_are_told_exactly_where_keys_differ(left: dict[str, Any], right: dict[str, Any]) -> None:
    # A name with a dot in it reads like a path: what is told would be the same.
    assume(not any("." in name for value in (left, right) for path in places(value) for name in map(str, path)))
    new, old = (Ingredients("train", 1, sections).canonical() for sections in (left, right))
    assert bool(differences(new, old)) == (key(left) != key(right))


def test_differences_read_well() -> None:
    old = Ingredients("train", 1, {"train": DEFAULT, "x": 1}, {"tokens": "a", "target": "b"})
    new = Ingredients("train", 2, {"train": Train(lr=3e-4), "y": "long " * 20}, {"tokens": "c", "states": "b"})
    assert differences(new.canonical(), old.canonical()) == [
        "stage version changed 1 -> 2",
        "train.lr changed 0.0006 -> 0.0003",
        "x removed (was 1)",
        'y added "long long long long long long long long long long long l...',
        "parent states added",
        "parent target removed",
        "parent tokens changed",
    ]
    assert differences(old.canonical(), old.canonical()) == []
