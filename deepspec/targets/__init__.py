"""Target families: the one table of them."""

from collections.abc import Mapping
from types import MappingProxyType

from deepspec.targets import gemma4, qwen3
from deepspec.targets.family import Family, TargetSpec

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (qwen3.FAMILY, gemma4.FAMILY)})


def family_of(spec: TargetSpec) -> Family:
    """The family of a target."""
    return FAMILIES[spec.family]
