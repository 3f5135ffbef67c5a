"""Drafts as other systems read them, and back: one file per format, and one table of what loads what.

    registry.draft_export ──► FORMATS ──► deepspec_format ──────────────────────────► format
                                 └──► vllm_format, sglang_format, speculators_format   what a format offers:
                                          └──► engine_format ──► described, checking    `write` and `check`
                                                    └──► matrix, side_files
                             what an engine loads, and why not the rest; what lies beside the weights

    tasks.import_ ──► importing      a published draft, in a layout of deepspec.drafts.layouts, checked and taken over
    bundle ─────────► engine_files   what engines read besides the weights ──► side_files

To add a format: one file that exports a `Format`, its line in the table below, and its cells in `matrix.py`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from deepspec.export import deepspec_format, sglang_format, speculators_format, vllm_format
from deepspec.export.format import Format

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        item.name: item
        for item in (
            vllm_format.FORMAT,
            sglang_format.FORMAT,
            speculators_format.FORMAT,
            deepspec_format.FORMAT,
        )
    }
)
