"""import: a draft that others have published, checked against the target and taken over as one of our own."""

import json
from dataclasses import dataclass
from pathlib import Path

from deepspec.recipe import Recipe
from deepspec.store.fingerprint import External
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.stage import stage


@dataclass(frozen=True)
class Inputs:
    """The draft's directory, and the target that it is to propose for."""

    source: External
    target: External


class Counts(StageCounts):
    """What the stage counted.

    Attributes:
        algorithm: the draft's.
        num_tensors: of its weights.
        has_the_targets_tables: whether its embedding and head are the target's, as those of every draft are that was
            trained for it.
        layout: the one that the directory was in.
        assumed: what its files leave open, and what was taken for it, in sentences.
    """

    algorithm: str
    num_tensors: int
    has_the_targets_tables: bool
    layout: str | None = None
    assumed: list[str] | None = None


@stage(version=1)
def import_(inputs: Inputs, config: Recipe, out: Path, job: Job) -> Counts:  # noqa: ARG001
    """Check a published draft, write it as training would, and keep where it came from beside it."""
    from deepspec.drafts.files.public_files import ORIGIN_FILE, origin_of, public_files
    from deepspec.export.importing import import_draft
    from deepspec.store.manifest import ABOUT
    from deepspec.targets.directory import read_spec

    source = inputs.source.directory()
    imported = import_draft(source, read_spec(inputs.target.directory()), out / "draft")
    (out / ABOUT).mkdir()
    origin = origin_of(public_files(source))
    (out / ABOUT / ORIGIN_FILE).write_text(json.dumps(origin.to_json(), indent=1) + "\n", encoding="utf-8")
    return Counts(
        algorithm=imported.algorithm,
        num_tensors=imported.num_tensors,
        has_the_targets_tables=imported.has_the_targets_tables,
        layout=imported.layout,
        assumed=list(imported.assumed),
    )
