"""Draft algorithms: the one table of them.

    ALGORITHMS ──► dflash ─┐
              ├──► dspark ─┴─► block          a block at once: module, supervision, heads, drafter
              └──► eagle3 ───► unrolled       one token a step: module, supervision, drafter
                                  │
           block and unrolled ────┴──► layers ──► attention     the body, of the target's own family
                                 └───► files, initialization    config.json and weights; NaN until set

`algorithm.py` is the contract: what an algorithm captures, builds, supervises, its loss, its drafter. Training asks
for `supervise` and `loss`, what decodes asks for `drafter`; neither asks which algorithm it has. To add one: one file
that exports an `Algorithm`, and one line in the table below.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from deepspec.drafts import dflash, dspark, eagle3
from deepspec.drafts.algorithm import Algorithm
from deepspec.drafts.files.config_json import read_draft_config
from deepspec.errors import IncompatibleDraft

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {algorithm.name: algorithm for algorithm in (eagle3.ALGORITHM, dflash.ALGORITHM, dspark.ALGORITHM)}
)


def algorithm_of(directory: Path) -> Algorithm:
    """The algorithm of a draft directory.

    Raises:
        IncompatibleDraft: it has no readable config.json, or one of no known algorithm.
    """
    config = read_draft_config(directory)
    for algorithm in ALGORITHMS.values():
        if algorithm.owns(config):
            return algorithm
    raise IncompatibleDraft(
        f"config.json is of none of the algorithms {', '.join(ALGORITHMS)}.", where=str(directory.name)
    )
