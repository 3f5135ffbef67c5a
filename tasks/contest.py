"""Who competes with whom: the model's champion, who may challenge it, and what earlier nights have settled.

Read from the promotion log and from manifests in every run, never cached, and by no clock.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.drafts import algorithm_of
from deepspec.drafts.files.config_json import CONFIG_FILE
from deepspec.errors import IncompatibleDraft
from deepspec.gates.verdict import JUDGED_BY
from deepspec.registry.blocks import block_of, blocks
from deepspec.registry.entries import DraftReference
from deepspec.registry.identity import identity_of
from deepspec.registry.looks import Looks
from deepspec.registry.promotions import reason_of, run_of
from deepspec.store import Artifact
from deepspec.store.fingerprint import External
from deepspec.store.keys import digest_of
from tasks.runtime.record.alive import is_running
from tasks.runtime.record.run_record import read_record
from tasks.runtime.references import Pending, Reference, Value
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from deepspec.recipe import Recipe


def champion_to_beat(run: "Run[Recipe]", draft: Reference) -> Artifact | Value | Pending:
    """The draft that the challenger has to beat.

    That is the champion; or, if the challenger is champion already, the one it was promoted over, so that judging it
    again finds the verdict it got then.
    """
    if not isinstance(draft, Artifact):
        return Pending("train")
    champion, _ = _opponent(run, draft)
    return Value(None) if champion is None else run.artifact(champion.kind, champion.key)


def why_not_judged(run: "Run[Recipe]", draft: Reference) -> str | None:
    """Why a draft that is champion is not judged again: what it was promoted over is gone; None: it can be judged."""
    if not isinstance(draft, Artifact):
        return None
    over, is_champion = _opponent(run, draft)
    if not is_champion or over is None or run.find(over.kind, over.key) is not None:
        return None
    return f"The draft is champion; {over.kind}/{over.key[:12]}, which it was promoted over, is damaged or gone."


def _opponent(run: "Run[Recipe]", draft: Artifact) -> tuple[DraftReference | None, bool]:
    """The draft that a verdict on `draft` is measured against, and whether `draft` is champion already."""
    history = run.history(run.recipe.registered_model)
    champion = history[-1].champion if history else None
    if champion is None or champion.digest != draft.digest:
        return champion, False
    return next(
        entry.previous
        for entry in reversed(history)
        if entry.kind == "promote" and entry.champion.digest == draft.digest
    ), True


_LOOKED_AT = (
    "evaluate.sampling",
    "evaluate.seed",
    "evaluate.max_new_tokens",
    "evaluate.num_gate_prompts",
    "data.thinking",
    "target.dtype",
)
"""What changes the measurement on the gate split, besides draft and answers."""


def look_at(run: "Run[Recipe]", champion: Reference, draft: Reference, responses: Reference) -> Value | Pending:
    """Which look at the champion this challenger is; None where there is no champion to look at.

    It is written down before it is taken, so that one that ends badly counts, too; a preview only says what it would
    be.
    """
    if not isinstance(draft, Artifact) or not isinstance(responses, Artifact):
        return Pending("train")
    if not isinstance(champion, Artifact):
        return champion if isinstance(champion, Pending) else Value(None)
    settings = {path: run.section(path) for path in _LOOKED_AT}
    subject = digest_of([draft.digest, responses.digest, settings])
    looks, model = Looks(run.store.backend), run.recipe.registered_model
    if run.previewing:
        return Value(looks.number(model, champion.digest, subject))
    return Value(looks.reserve(model, champion.digest, subject, draft.digest))


def asked_in(run: "Run[Recipe]", draft: Reference) -> dict[str, Reference]:
    """The run, where the recipe names a server that is asked: what it does now is no matter of an earlier run.

    Of the champion it is the run that promoted it, so that judging it again finds the verdict it got then.
    """
    if run.recipe.gates.endpoint is None:
        return {}
    promotion = run.history(run.recipe.registered_model)[-1] if serves(run, draft) else None
    judged_in = run_of(promotion) if promotion is not None and promotion.kind == "promote" else None
    return {"asked_in": Value(judged_in or run.run_id)}


def check_contest(run: "Run[Recipe]", target: Reference) -> tuple[str, ...]:
    """See that the model's champion can be measured on this target: others cannot be compared, or served in its place.

    Returns:
        what a person has to know where the champion was made for another target, in sentences.

    Raises:
        IncompatibleDraft: it was made for another target, and does not fit this one or its tokenizer; or
            `registry.on_new_target` refuses to measure it there.
    """
    champion = _made_for_another(run, target)
    if champion is None or not isinstance(target, External):
        return ()
    of = f"({champion.manifest.parents['target'].digest[:12]}) than this one ({target.fingerprint[:12]})"
    name = f"{run.recipe.registered_model}/{run.history(run.recipe.registered_model)[-1].champion.version}"
    flaw = _why_it_does_not_fit(champion, Path(target.location))
    if flaw is None and run.recipe.registry.on_new_target == "measure":
        said = (
            f"The target was replaced: the champion {name} is a draft for another one {of}. The gate measures both"
            " drafts on this one, and a person has to promote what it accepts."
        )
        return (said,)
    raise IncompatibleDraft(
        f"The champion {name} is a draft for another target or tokenizer {of}{f': {flaw}' if flaw else '.'}",
        where=f"target.path {target.location}",
        remedy="Register drafts for it under another name: --set registry.model=….",
    )


def _made_for_another(run: "Run[Recipe]", target: Reference) -> Artifact | None:
    """The champion, if it was made for another target than this one."""
    entries = run.history(run.recipe.registered_model)
    made = run.find(entries[-1].champion.kind, entries[-1].champion.key) if entries else None
    of = made.manifest.parents.get("target") if made is not None else None
    if of is None or not isinstance(target, External) or of.digest == target.fingerprint:
        return None
    return made


def _why_it_does_not_fit(draft: Artifact, target: Path) -> str | None:
    """What of a draft's configuration is not this target's, or its tokenizer's; None: it fits."""
    from deepspec.targets.directory import read_spec

    folder = draft.path(f"draft/{CONFIG_FILE}").parent
    try:
        algorithm_of(folder).read_for(folder, read_spec(target))
    except IncompatibleDraft as error:
        return error.what
    return None


def why_blocked(run: "Run[Recipe]", draft: Reference) -> str | None:
    """Why no run may promote this draft: it, or one like it, was rolled back; None: it may, or a preview cannot say.

    The champion is never blocked, whatever it is like.
    """
    if not isinstance(draft, Artifact):
        return None
    entries = run.history(run.recipe.registered_model)
    if not blocks(entries) or entries[-1].champion.digest == draft.digest:
        return None
    found = block_of(entries, identity_of(run.store, draft))
    return None if found is None else found[0].sentence(found[1])


def serves(run: "Run[Recipe]", draft: Reference) -> bool:
    """Whether the draft is champion."""
    entries = run.history(run.recipe.registered_model)
    return isinstance(draft, Artifact) and bool(entries) and entries[-1].champion.digest == draft.digest


def awaits_approval(run: "Run[Recipe]", draft: Reference, target: Reference) -> bool:
    """Whether a person has to promote the draft, and has not: as the recipe says, or since the target was replaced."""
    if serves(run, draft):
        return False
    return run.recipe.gates.approval == "manual" or _made_for_another(run, target) is not None


def how_to_approve(registration: Reference) -> tuple[str, ...]:
    """What a person has to type, in a sentence; nothing in a preview that does not know the version."""
    if not isinstance(registration, Artifact):
        return ()
    uri = registration.json("registration.json")["uri"]
    return (f'It waits for a person: deepspec promote {uri} --reason "…"',)


def promoted(run: "Run[Recipe]", promotion: Reference) -> bool:
    """Whether this run appointed the champion; one that it found, or that served already, was appointed earlier."""
    return isinstance(promotion, Artifact) and promotion.json("promotion.json")["reason"] == reason_of(run.run_id)


def refused(verdict: Reference) -> bool:
    """Whether the gate said no; unknown, hence not refused, in a preview."""
    return isinstance(verdict, Artifact) and not verdict.json("verdict.json")["accepted"]


def refused_before(run: "Run[Recipe]", verdict: Reference) -> str | None:
    """When and by which run a draft was refused whose verdict was found in the store, in a sentence.

    None: this run has judged it; or the one that did has died before it could say so.
    """
    if not isinstance(verdict, Artifact):
        return None
    line = (verdict.kind, verdict.key, "hit")
    if not any((record.kind, record.key, record.status) == line for record in run.records):
        return None
    files = {entry.path for entry in verdict.manifest.files}
    by = verdict.json(JUDGED_BY)["run_id"] if JUDGED_BY in files else None
    if by is not None and _died(run, by):
        return None
    return (
        f"Refused on {verdict.manifest.created_at[:10]}{f' by run {by}' if by else ''}; the verdict was found in the"
        " store, and nothing was measured again."
    )


def _died(run: "Run[Recipe]", run_id: str) -> bool:
    """Whether a run of this home has not come to its end, as far as is known."""
    if run_id == run.run_id or is_running(run.home, run_id):
        return True
    record = read_record(run.home, run_id)
    return record is not None and record.status in ("interrupted", "failed")
