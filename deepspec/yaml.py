"""The YAML 1.2 that recipes are written in: `3e-4` is a number, `on`, `off` and `2027-01-31` are text.

Each name stands once in a mapping. Not here: what a field may hold (`deepspec.recipe`).
"""

import io
import sys
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

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
        NotYaml: in one line what is wrong, and where.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        return yaml.load(text)
    except (YAMLError, ValueError, LookupError) as error:
        problem, line = str(error), None
        if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
            begun = error.context and error.context_mark
            while_ = f"{error.context} (line {error.context_mark.line + 1}): " if begun else ""
            problem, line = f"{while_}{error.problem}", error.problem_mark.line + 1
        raise NotYaml(" ".join(problem.split()), line) from error


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
