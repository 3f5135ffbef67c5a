"""register: the draft as a version of the registered model, with tags that lead back to everything it came from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.recipe import Recipe
from deepspec.registry.identity import is_from_outside
from deepspec.store import Artifact
from deepspec.store.gc import lineage, nearest
from deepspec.store.manifest import ABOUT
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.stage import stage

if TYPE_CHECKING:
    from deepspec.evaluation.results import Evaluation
    from deepspec.registry.card import CardSource


@dataclass(frozen=True)
class Inputs:
    """The draft, and what was found out about it."""

    draft: Artifact
    calibration: Artifact
    evaluation: Artifact


class Counts(StageCounts):
    """What the stage counted.

    Attributes:
        name, version, uri: of the registered version.
    """

    name: str
    version: str
    uri: str


@stage(version=4, reads=("name", "registry.model", "data.source"))
def register(inputs: Inputs, config: Recipe, out: Path, job: Job) -> Counts:
    """Register the draft's directory with its card and calibration; a draft that is registered gets the new card."""
    from deepspec.evaluation.calibration.results import rewritten
    from deepspec.evaluation.results import Evaluation
    from deepspec.registry.card import CALIBRATION_FILE, CARD_FILE
    from deepspec.registry.entries import DraftReference
    from deepspec.registry.keys import version_tags
    from deepspec.registry.reconciling import REGISTRY_FILE

    _, tracking_run = job.tracker()
    draft, folder = inputs.draft, inputs.draft.directory() / "draft"
    ancestors = (inputs.draft, inputs.calibration, inputs.evaluation)
    made_from = nearest(item for parent in ancestors for item in lineage(parent, job.artifact))
    where = f"{inputs.evaluation.kind}/{inputs.evaluation.key[:12]}"
    measured = Evaluation.from_json(inputs.evaluation.json("evaluation.json"), where=where)
    tags = version_tags(
        recipe=config.name,
        code_version=job.code_version,
        run_id=job.run_id,
        artifacts={kind: (item.key, item.digest) for kind, item in made_from.items()},
        evaluation=measured,
    )
    card = _card(config, job, draft, made_from.get("conversations"), measured)
    (out / ABOUT).mkdir()  # what is said of a draft does not change what was registered
    (out / ABOUT / CARD_FILE).write_text(card, encoding="utf-8", newline="\n")
    calibration = inputs.calibration
    fitted = calibration.path(CALIBRATION_FILE).read_text(encoding="utf-8")
    fitted = rewritten(fitted, where=f"{calibration.kind}/{calibration.key[:12]}")
    (out / ABOUT / CALIBRATION_FILE).write_text(fitted, encoding="utf-8", newline="\n")
    version = job.with_tracker(
        lambda tracking: tracking.register(
            folder,
            config.registered_model,
            tracking_run,
            tags,
            draft=DraftReference(kind=draft.kind, key=draft.key, digest=draft.digest),
            card=card,
            notes={CALIBRATION_FILE: fitted},
        )
    )
    where = job.with_tracker(lambda tracking: tracking.shown_uri)
    (out / ABOUT / REGISTRY_FILE).write_text(json.dumps({"uri": where}), encoding="utf-8")
    counts = Counts(name=version.name, version=version.version, uri=version.uri)
    (out / "registration.json").write_text(json.dumps(counts.to_json()))
    return counts


def _card(recipe: Recipe, job: Job, draft: Artifact, conversations: Artifact | None, evaluation: "Evaluation") -> str:
    """The card of a draft; one that was trained here, on `conversations`."""
    from deepspec.registry.card import model_card
    from deepspec.registry.card_facts import card_draft, origin_in

    parents = draft.manifest.parents
    return model_card(
        name=recipe.registered_model,
        recipe=recipe.name,
        draft=card_draft(draft.directory() / "draft"),
        target=Path(recipe.target.path).name,
        digests={
            "draft": draft.digest,
            **{name: parents[name].digest for name in ("target", "tokens") if name in parents},
        },
        sources=_sources(recipe, conversations),
        evaluation=evaluation,
        origin=origin_in(draft),
        started_outside=any(map(is_from_outside, lineage(draft, job.artifact))),
    )


def _sources(recipe: Recipe, conversations: Artifact | None) -> "list[CardSource]":
    """What is known of the sources: counts as the conversations were made, terms as the recipe says them now."""
    from deepspec.data.conversations.statistics import entry_tags, name_of
    from deepspec.registry.card import CardSource

    counted = conversations.manifest.counts.get("sources") if conversations is not None else None
    entries = recipe.data.source
    counts = counted if counted and len(counted) == len(entries) else [{}] * len(entries)
    return [
        CardSource.model_validate({**own, "name": name_of(entry), **entry_tags(entry)})
        for own, entry in zip(counts, entries, strict=True)
    ]
