"""Draft algorithms: the one table of them."""

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
