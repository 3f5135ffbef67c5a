"""What a card is written from: facts of a draft's directory, and of the artifacts in its lineage."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.drafts.files.public_files import ORIGIN_FILE, Origin
from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.results import Evaluation
from deepspec.registry.card import CALIBRATION_FILE, CardDraft, CardSource
from deepspec.registry.entries import Promotion
from deepspec.registry.identity import IMPORTED, is_from_outside
from deepspec.registry.promotions import PromotionLog
from deepspec.registry.version_record import Ancestor, version_record
from deepspec.store import Artifact, Store
from deepspec.store.gc import absent, lineage, nearest
from deepspec.store.manifest import ABOUT


@dataclass(frozen=True)
class CardFacts:
    """What the store knows of a draft.

    Attributes:
        name: of the registered model; None: it was never registered.
        recipe: its name; None: not known.
        evaluation, calibration: None: there is none.
        sources: of the conversations.
        started_outside: whether training started from a draft that was not trained here.
        lineage: the draft, and all that it was made from or measured by.
        target: fingerprint of its target; None: not known.
        promotion: the first entry of a promotion log that made it champion; None: it never was.
    """

    name: str | None = None
    recipe: str | None = None
    evaluation: Evaluation | None = None
    calibration: CalibrationResult | None = None
    sources: tuple[CardSource, ...] = ()
    started_outside: bool = False
    lineage: tuple[Ancestor, ...] = ()
    target: str | None = None
    promotion: Promotion | None = None


def card_draft(folder: Path) -> CardDraft:
    """The shape of the draft in a directory of our own layout."""
    from deepspec.drafts import algorithm_of
    from deepspec.drafts.files.config_json import read_draft_config

    algorithm, config = algorithm_of(folder), read_draft_config(folder)
    return CardDraft(
        algorithm=algorithm.name,
        num_draft_tokens=algorithm.num_draft_tokens(algorithm.read_config(folder)),
        num_hidden_layers=config.get("num_hidden_layers"),
        target_layer_ids=tuple(config.get("target_layer_ids", ())),
        dtype=config.get("dtype"),
    )


def origin_in(draft: Artifact) -> Origin | None:
    """Where an imported draft came from; None: it was trained here."""
    if draft.kind != IMPORTED:
        return None
    said = f"{ABOUT}{ORIGIN_FILE}"
    return Origin.from_json(draft.json(said), where=f"{draft.kind}/{draft.key[:12]}/{said}")


def facts_of(draft: Artifact, store: Store) -> CardFacts:
    """What the store knows of a draft: by its last registration; where that is not, by the record of its version.

    Raises:
        ArtifactDamaged: something that it was measured by cannot be read.
        VersionRecordDamaged: its record cannot be read.
    """
    promotion = _promotion(store, draft.digest)
    registered = (
        made for made in store.newest_first("register") if made.manifest.parents["draft"].digest == draft.digest
    )
    registration = next(registered, None)
    if registration is None:
        return _recorded(draft, store, promotion)
    found = lineage(registration, store.find)
    made_from = nearest(found)
    conversations = made_from.get("conversations")
    counted = conversations.manifest.counts.get("sources", []) if conversations is not None else []
    ingredients: Mapping[str, Any] = registration.manifest.ingredients
    evaluated = _of_registration(registration, "evaluation", store)
    calibrated = _of_registration(registration, "calibration", store)
    ancestors = [Ancestor(kind=item.kind, key=item.key, digest=item.digest) for item in found]
    ancestors += [
        Ancestor(kind=one.kind, key=str(one.key or ""), digest=one.digest, in_store=False) for one in absent(found)
    ]
    return CardFacts(
        name=str(registration.json("registration.json")["name"]),
        recipe=ingredients["sections"].get("name"),
        evaluation=_evaluation(evaluated.json("evaluation.json"), evaluated) if evaluated is not None else None,
        calibration=_calibration(calibrated.json(CALIBRATION_FILE), calibrated) if calibrated is not None else None,
        sources=tuple(CardSource.model_validate(source) for source in counted) if draft.kind != IMPORTED else (),
        started_outside=any(map(is_from_outside, lineage(draft, store.find))),
        lineage=tuple(ancestors),
        target=_target(draft),
        promotion=promotion,
    )


def _recorded(draft: Artifact, store: Store, promotion: Promotion | None) -> CardFacts:
    """What the record of a version says, in a store that was filled from another; of one without a record little."""
    records = (version_record(store.backend, model, draft.digest) for model in PromotionLog(store.backend).models())
    record = next((one for one in records if one is not None), None)
    own = Ancestor(kind=draft.kind, key=draft.key, digest=draft.digest)
    if record is None:
        return CardFacts(lineage=(own,), target=_target(draft), promotion=promotion)
    noted = record.notes.get(CALIBRATION_FILE)
    return CardFacts(
        name=record.model,
        recipe=record.tags.get("deepspec.recipe"),
        evaluation=_evaluation(record.evaluation, draft) if record.evaluation is not None else None,
        calibration=_calibration(json.loads(noted), draft) if noted is not None else None,
        lineage=record.lineage or (own,),
        target=_target(draft),
        promotion=promotion,
    )


def _promotion(store: Store, digest: str) -> Promotion | None:
    log = PromotionLog(store.backend)
    entries = (entry for model in log.models() for entry in log.history(model))
    return next((one for one in entries if one.kind != "unblock" and one.champion.digest == digest), None)


def _of_registration(registration: Artifact, name: str, store: Store) -> Artifact | None:
    parent = registration.manifest.parents.get(name)
    return None if parent is None or parent.key is None else store.find(parent.kind, parent.key)


def _evaluation(content: Any, made: Artifact) -> Evaluation:
    return Evaluation.from_json(content, where=f"{made.kind}/{made.key[:12]}")


def _calibration(content: Any, made: Artifact) -> CalibrationResult:
    return CalibrationResult.from_json(content, where=f"{made.kind}/{made.key[:12]}")


def _target(draft: Artifact) -> str | None:
    parent = draft.manifest.parents.get("target")
    return parent.digest if parent is not None else None
