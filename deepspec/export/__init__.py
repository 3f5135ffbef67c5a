"""Drafts as other systems read them: one file per format, and one table."""

from collections.abc import Mapping
from types import MappingProxyType

from deepspec.export import deepspec_format
from deepspec.export.format import Format

FORMATS: Mapping[str, Format] = MappingProxyType({item.name: item for item in (deepspec_format.FORMAT,)})
