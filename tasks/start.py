"""What a training starts from (`train.init_from`), decided before its key is made; and written down, once.

`champion` is a question that changes its answer after every promotion, and not because there was anything to learn. So
the answer is given once for each training, that is for its data, target and recipe: whoever is champion by then, later
runs with the same find what was made, and a run that was killed is resumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deepspec.registry.draft_names import MODELS, draft_of
from deepspec.registry.entries import DraftReference
from deepspec.registry.identity import manifest_of
from deepspec.registry.keys import CHAMPION
from deepspec.registry.starts import Start, Starts
from deepspec.store import Artifact, artifact_key
from deepspec.store.fingerprint import External, model_files
from deepspec.store.keys import digest_of
from tasks.runtime.references import Pending, Reference
from tasks.runtime.run import Run
from tasks.runtime.stage import Stage

if TYPE_CHECKING:
    from deepspec.recipe import Recipe

INIT = "init"
"""The input of the stage."""


@dataclass(frozen=True)
class Beginning:
    """What a training starts from.

    Attributes:
        inputs: the draft, as the input `init` of the stage; empty where it starts from new weights.
        notes: how that was decided, in sentences; nothing where the recipe itself says it.
    """

    inputs: Mapping[str, Reference] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def beginning_of(run: "Run[Recipe]", training: Stage, learned: Mapping[str, Reference]) -> Beginning:
    """What the draft's training starts from.

    Args:
        run: the run; a preview says what it would decide, and writes nothing down.
        training: the stage.
        learned: its inputs but for that one.

    Raises:
        RecipeError: there is no such draft.
        ArtifactMissing: the training was begun from a draft that is gone, and has not ended.
        PromotionLogDamaged: what was decided cannot be read.
    """
    wanted = run.recipe.train.init_from
    if wanted is None:
        return Beginning()
    if wanted not in (CHAMPION, f"{MODELS}{run.recipe.registered_model}@{CHAMPION}"):
        return Beginning(_named(run, wanted))
    waiting = any(isinstance(item, Pending) for item in learned.values())
    subject = None if waiting else artifact_key(training.ingredients(run, learned))
    entries = run.history(run.recipe.registered_model)
    champion = entries[-1].champion if entries else None
    own = _own_beginning(run, champion, subject)
    if own is not None:
        return own
    start = _decided(run, champion, subject)
    if start.draft is None:
        return Beginning({}, (_new_weights(run, start),))
    whole = {**learned, INIT: External(INIT, start.draft.digest, "")}
    made = None if waiting else run.find(training.name, artifact_key(training.ingredients(run, whole)))
    return Beginning({INIT: _reference(run, start.draft, made=made)}, (_from_draft(run, start.draft, champion),))


def _named(run: "Run[Recipe]", wanted: str) -> dict[str, Reference]:
    """The draft that the recipe names: an artifact, a registered version or a directory."""
    found = draft_of(wanted, run.home, run.store, model=run.recipe.registered_model, where="train.init_from")
    if isinstance(found, Artifact):
        return {INIT: found}
    files = model_files(found)

    def fingerprint() -> str:
        return run.fingerprints.files(files, within=found)

    return {INIT: run.once(INIT, lambda: External(INIT, fingerprint(), str(found), fingerprint))}


def _own_beginning(run: "Run[Recipe]", champion: DraftReference | None, subject: str | None) -> Beginning | None:
    """What the champion's own training started from, if that has learned the same; None: something is new."""
    if champion is None or subject is None:
        return None
    # Of one that is damaged, too: then the run makes it again.
    manifest = manifest_of(run.store, champion.kind, champion.key, champion.digest)
    if manifest is None or digest_of(_without_start(manifest.ingredients)) != subject:
        return None
    note = (
        f"Nothing is new since the champion {_name(run, champion)} was trained: data, target and recipe are the same."
        " It is not trained again."
    )
    parent = manifest.parents.get(INIT)
    if parent is None:
        return Beginning({}, (note,))
    if parent.key is None:
        return Beginning({INIT: External(INIT, parent.digest, "")}, (note,))
    reference = DraftReference(kind=parent.kind, key=parent.key, digest=parent.digest)
    made = run.find(champion.kind, champion.key)
    return Beginning({INIT: _reference(run, reference, made=made)}, (note,))


def _without_start(ingredients: Mapping[str, Any]) -> dict[str, Any]:
    parents = {name: digest for name, digest in ingredients["parents"].items() if name != INIT}
    return {**ingredients, "parents": parents}


def _decided(run: "Run[Recipe]", champion: DraftReference | None, subject: str | None) -> Start:
    """What was decided for the training, or is now."""
    starts, control_every = Starts(run.store.backend, run.recipe.registered_model), run.recipe.train.control_every
    if subject is not None and not run.previewing:
        return starts.reserve(subject, champion, control_every)
    known = None if subject is None else starts.find(subject)
    if known is not None:
        return known
    control = champion is not None and starts.is_turn(control_every)
    return Start(number=0, subject="", attempt="", draft=None if control else champion, control=control)


def _reference(run: "Run[Recipe]", draft: DraftReference, *, made: Artifact | None) -> Reference:
    """The draft; of one that is gone its digest alone, where what was `made` from it is there."""
    found = run.find(draft.kind, draft.key)
    if found is not None and (made is None or found.digest == draft.digest):
        return found
    return run.artifact(draft.kind, draft.key) if made is None else External(INIT, draft.digest, "")


def _new_weights(run: "Run[Recipe]", start: Start) -> str:
    if start.control:
        return f"Control: trained from new weights, as every training number {run.recipe.train.control_every} is."
    return f"{run.recipe.registered_model} had no champion: trained from new weights."


def _from_draft(run: "Run[Recipe]", draft: DraftReference, champion: DraftReference | None) -> str:
    if champion is not None and champion.digest == draft.digest:
        return f"Trained from the champion {_name(run, draft)}."
    return (
        f"Trained from {_name(run, draft)}, which was champion when this training was first asked for: with the same"
        " data, target and recipe it is not begun again."
    )


def _name(run: "Run[Recipe]", draft: DraftReference) -> str:
    return (
        f"models:/{run.recipe.registered_model}/{draft.version}" if draft.version else f"{draft.kind}/{draft.key[:12]}"
    )
