"""promote: the accepted challenger becomes champion, unless another draft has become it meanwhile."""

from dataclasses import dataclass
from pathlib import Path

from deepspec.recipe import Recipe
from deepspec.store import Artifact
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.stage import stage


@dataclass(frozen=True)
class Inputs:
    """The registered version, the verdict on it, and the draft itself."""

    registration: Artifact
    verdict: Artifact
    draft: Artifact


class Counts(StageCounts):
    """What the stage counted.

    Attributes:
        number: the entry's, in the promotion log, from 1.
    """

    number: int


@stage(version=1, reads=("name",))
def promote(inputs: Inputs, config: Recipe, out: Path, job: Job) -> Counts:  # noqa: ARG001
    """Append to the promotion log; the registry's aliases follow it at the end of the run."""
    from deepspec.gates.verdict import Verdict
    from deepspec.registry.asker import asker
    from deepspec.registry.entries import DraftReference
    from deepspec.registry.identity import identity_of
    from deepspec.registry.promotions import PromotionLog, reason_of

    draft, version = inputs.draft, inputs.registration.json("registration.json")
    draft.refuse_damaged()
    challenger = DraftReference(
        kind=draft.kind,
        key=draft.key,
        digest=draft.digest,
        version=version["version"],
        uri=version["uri"],
    )
    log = PromotionLog(job.store.backend)
    entry = log.promote(
        version["name"],
        challenger,
        Verdict.from_json(inputs.verdict.json("verdict.json")),
        identity=identity_of(job.store, draft),
        who=job.with_tracker(lambda tracking: asker(tracking, job.store.backend)),
        reason=reason_of(job.run_id),
    )
    (out / "promotion.json").write_text(entry.model_dump_json(indent=1))
    return Counts(number=entry.number)
