"""Draft algorithms: the one table of them.

    ALGORITHMS ──► dflash ─┐
              ├──► dspark ─┴─► block          a block at once: module, supervision, heads, drafter
              └──► eagle3 ───► unrolled       one token a step: module, supervision, drafter
                                  │
           block and unrolled ────┴──► layers ──► attention     the body, of the target's own family
                                 ├───► files, initialization    config.json and weights; NaN until set
                                 └───► metrics                  what training logs of any draft

`algorithm.py` is the contract, an abstract class: what an algorithm captures, builds, supervises, its loss, drafter,
cost and files. Training asks for `supervise` and `loss`, decoding for `drafter`, planning for `cost`; nothing asks
which algorithm it has. What a recipe leaves open, the target answers (`layer_choice.py`). To add one: one file with a
class, and one line in the table below.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deepspec.drafts.algorithm import Algorithm
from deepspec.drafts.dflash import DFlash
from deepspec.drafts.dspark import DSpark
from deepspec.drafts.eagle3 import Eagle3
from deepspec.drafts.files.config_json import read_draft_config
from deepspec.errors import IncompatibleDraft

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {algorithm.name: algorithm for algorithm in (Eagle3(), DFlash(), DSpark())}
)


def algorithm_of(directory: Path) -> Algorithm:
    """The algorithm of a draft directory.

    Raises:
        IncompatibleDraft: it has no readable config.json, or one of no known algorithm.
    """
    return algorithm_in(read_draft_config(directory), directory)


def algorithm_in(written: Mapping[str, Any], directory: Path) -> Algorithm:
    """The algorithm of a draft by what its config.json says.

    Raises:
        IncompatibleDraft: that is none of a known one.
    """
    for algorithm in ALGORITHMS.values():
        if algorithm.owns(written):
            return algorithm
    raise IncompatibleDraft(
        f"config.json names none of the algorithms {', '.join(ALGORITHMS)}.",
        where=str(directory.name),
        remedy="Name a draft that deepspec trained, or one of these algorithms.",
    )
