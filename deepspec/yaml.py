"""The YAML 1.2 that recipes are written in: `3e-4` is a number, `on`, `off` and `2027-01-31` are text.

Each name stands once in a mapping. Aliases are read while what they stand for stays small. Not here: what a field may
hold (`deepspec.recipe`).
"""

import io
import itertools
import sys
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

_MOST_CHARACTERS = 1 << 20
_MOST_VALUES = 100_000  # a shipped recipe has about 60; aliases can make 10^9 of 300 characters
_TEXT = "tag:yaml.org,2002:str"
_YAML_1_1 = VersionedResolver(version=(1, 1))


class NotYaml(ValueError):
    """Text that is no YAML.

    Attributes:
        line: of the mistake, from 1; None: it has no line.
    """

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(problem)
        self.line = line


class _Constructor(SafeConstructor):
    """Reads dates as text: YAML 1.2 has no type for them."""


class _Representer(SafeRepresenter):
    """Writes what a reader of YAML 1.1 reads as the same values, too."""

    def text(self, value: str) -> Any:
        plain = str(_YAML_1_1.resolve(ScalarNode, value, (True, False))) == _TEXT
        return self.represent_scalar(_TEXT, value, style=None if plain else "'")

    def number(self, value: float) -> Any:
        node = self.represent_float(value)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e")  # 1e-08 is text in YAML 1.1
        return node


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
_Representer.add_representer(str, _Representer.text)
_Representer.add_representer(float, _Representer.number)


def loads(text: str) -> Any:
    """The value that a YAML text holds: dicts, lists, text, numbers, truth values or None.

    Raises:
        NotYaml: in one line what is wrong, and where; also that it is too long or too deep, or that its aliases stand
            for too many values.
    """
    if len(text) > _MOST_CHARACTERS:
        raise NotYaml(f"it has {len(text)} characters, but {_MOST_CHARACTERS} are the most", None)
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        _num_values(yaml.compose(text), {})
        return yaml.load(text)
    except RecursionError as error:
        raise NotYaml("it is nested too deeply", None) from error
    except (YAMLError, ValueError, LookupError) as error:
        problem, line = str(error), None
        if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
            begun = error.context and error.context_mark
            while_ = f"{error.context} (line {error.context_mark.line + 1}): " if begun else ""
            problem, line = f"{while_}{error.problem}", error.problem_mark.line + 1
        raise NotYaml(" ".join(problem.split()), line) from error


def item_lines(text: str, name: str) -> list[int]:
    """The lines, from 1, at which the items of the list at a name of the outermost mapping begin.

    Args:
        text: that `loads` reads.
        name: of the list; where there is none of that name, it has no items.
    """
    top = YAML(typ="safe", pure=True).compose(text)
    pairs = top.value if isinstance(top, MappingNode) else ()
    lists = (value for key, value in pairs if key.value == name and isinstance(value, SequenceNode))
    return [item.start_mark.line + 1 for found in lists for item in found.value]


def _num_values(node: Any, known: dict[int, int | None]) -> int:
    """How many values a node stands for when each alias is replaced by what it stands for.

    Args:
        node: from `compose`.
        known: the same of the nodes that were counted, by identity; None: of those that are being counted.

    Raises:
        NotYaml: more than `_MOST_VALUES`, or an alias stands for something that it is part of.
    """
    if not isinstance(node, CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None
        pairs = node.value if isinstance(node, SequenceNode) else itertools.chain.from_iterable(node.value)
        known[id(node)] = 1 + sum(_num_values(item, known) for item in pairs)
    count, line = known[id(node)], node.start_mark.line + 1
    if count is None:
        raise NotYaml("an alias stands for a value that it is part of", line)
    if count > _MOST_VALUES:
        raise NotYaml(f"aliases make more than {_MOST_VALUES} values of it", line)
    return count


def dumps(value: Any) -> str:
    """Dicts, lists and scalars as YAML in block style: names in their order, a value on one line."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.width = sys.maxsize
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None, its default
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()
