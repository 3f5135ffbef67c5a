"""Drafts as other systems read them, and back: one file per format, and one table.

    registry.draft_export ──► FORMATS ──► deepspec_format ──► format
                                              │               what a format offers: `write` and `check`
                                              └──► side_files
                                                   what lies beside the weights, as engines read it

    tasks.import_ ──► importing      a published draft, checked and taken over

To add a format: one file that exports a `Format`, and its line in the table below.
"""

from collections.abc import Mapping
from types import MappingProxyType

from deepspec.export import deepspec_format
from deepspec.export.format import Format

FORMATS: Mapping[str, Format] = MappingProxyType({item.name: item for item in (deepspec_format.FORMAT,)})
