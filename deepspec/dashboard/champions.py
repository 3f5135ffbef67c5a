"""Champions: who serves, since when and why, from the promotion logs; and the logs as the dashboard keeps them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepspec.cost.attempts import attempts_at
from deepspec.cost.making import made_from, registration_of
from deepspec.cost.prices import prices_of, summed
from deepspec.dashboard.lineage import ancestors_of
from deepspec.dashboard.nights import measured_in, plain, spent_of
from deepspec.errors import ArtifactError
from deepspec.evaluation.config import GATE
from deepspec.evaluation.results import Evaluation
from deepspec.gates.verdict import Comparison, Verdict
from deepspec.registry.entries import Promotion
from deepspec.registry.errors import PromotionLogDamaged
from deepspec.registry.identity import DRAFT_KINDS
from deepspec.registry.promotions import PromotionLog
from deepspec.registry.version_record import version_record
from deepspec.reports.dashboard.feed import Champion, Gain, GateAnswer, LogEntry, Measured, Model, Night, Spent
from deepspec.store import Artifact, Store
from deepspec.usage import added_up

_BY_RUN = re.compile(r"run (\d{8}-\d{6}-[0-9a-f]+)")


@dataclass(frozen=True)
class Appointed:
    """What a model's promotion log comes to.

    Attributes:
        champion: None: there is none, or the log cannot be read.
        log: oldest first.
        flaw: why it cannot be read.
    """

    champion: Champion | None = None
    log: tuple[LogEntry, ...] = ()
    flaw: str | None = None


def appointed(store: Store, promotions: PromotionLog, name: str, nights: Sequence[Night], earlier: Model) -> Appointed:
    """Who serves of a model, and its log: entries that the earlier feed has are not read again.

    Args:
        store: where artifacts are.
        promotions: its promotion logs.
        name: the model's.
        nights: of the model.
        earlier: the model as it was collected before; without a log if it was not.

    Raises:
        ArtifactError, TransientError: the store refuses, or does not answer.
    """
    try:
        entries = _further(promotions, name, earlier.log)
    except PromotionLogDamaged as error:
        return Appointed(log=earlier.log, flaw=plain(str(error)))
    kept = {one.number: one for one in earlier.log} if entries and entries[0].number > 1 else {}
    kept |= {entry.number: _log_entry(entry) for entry in entries}
    log = tuple(kept[number] for number in sorted(kept))
    if not log:
        return Appointed()
    since = next(one for one in reversed(log) if one.kind != "unblock")
    before = earlier.champion
    if before is not None and (before.entry, before.digest) == (since.number, since.digest):
        newly_known = not before.measured and any(night.version == before.version for night in nights if night.measured)
        if not newly_known:
            return Appointed(before, log)
    if entries[0].number > 1:
        entries = promotions.history(name)
    return Appointed(_champion(store, name, entries, nights), log)


def _further(promotions: PromotionLog, name: str, known: Sequence[LogEntry]) -> tuple[Promotion, ...]:
    """The entries from the last known one on; all of them where that is another one now."""
    if known:
        last = known[-1]
        entries = promotions.history(name, first=last.number)
        if entries and (entries[0].champion.digest, entries[0].when.isoformat()) == (last.digest, last.when):
            return entries
    return promotions.history(name)


def _log_entry(entry: Promotion) -> LogEntry:
    run_id = _run_of(entry)
    return LogEntry(
        number=entry.number,
        kind=entry.kind,
        version=entry.champion.version,
        digest=entry.champion.digest,
        from_version=entry.previous.version if entry.previous is not None else None,
        when=entry.when.isoformat(),
        run_id=run_id,
        reason="" if run_id is not None else plain(entry.reason),
        sentence=plain(entry.verdict.sentence) if entry.verdict is not None else None,
    )


def _run_of(entry: Promotion) -> str | None:
    """The run that promoted; None: a person did."""
    found = _BY_RUN.fullmatch(entry.reason)
    return found[1] if found and entry.kind == "promote" else None


def _champion(store: Store, name: str, entries: Sequence[Promotion], nights: Sequence[Night]) -> Champion:
    last = next(entry for entry in reversed(entries) if entry.kind != "unblock")
    draft = last.champion
    first = next(
        (one for one in reversed(entries) if one.kind == "promote" and one.champion.digest == draft.digest), None
    )
    verdict = first.verdict if first is not None else None
    own = [night for night in nights if draft.version is not None and night.version == draft.version]
    night = next((one for one in reversed(own) if one.measured), None)
    key = next((one.registration for one in reversed(own) if one.registration), None)
    made = store.find(draft.kind, draft.key)
    registration = store.find("register", key) if key else made and registration_of(store, made)
    return Champion(
        entry=last.number,
        by="rollback" if last.kind == "rollback" else "promote",
        version=draft.version,
        digest=draft.digest,
        artifact=f"{draft.kind}/{draft.key}",
        since=last.when.isoformat(),
        run_id=_run_of(last),
        reason="" if _run_of(last) else plain(last.reason),
        sentence=plain(verdict.sentence) if verdict is not None else None,
        gates=_answers(verdict) if verdict is not None else (),
        measured=night.measured if night is not None else _measured(store, name, draft.digest, registration),
        gains=_gains(verdict.comparison) if verdict is not None else {},
        spent=night.making if night is not None and night.making else _making(store, registration or made),
        lineage=ancestors_of(store, name, draft, registration),
    )


def _answers(verdict: Verdict) -> tuple[GateAnswer, ...]:
    return tuple(
        GateAnswer(gate=reason.gate, answer=reason.answer, sentence=plain(reason.sentence))
        for reason in verdict.reasons
    )


def _gains(rows: Sequence[Comparison]) -> Mapping[str, Gain]:
    return {
        GATE if row.name == GATE else f"benchmark/{row.name}": Gain(
            tau=row.champion, difference=row.difference, ci95=row.ci95
        )
        for row in rows
        if row.difference is not None
    }


def _making(store: Store, item: Artifact | None) -> Spent | None:
    """What all that a champion was made from has cost, whose run is not in the history: by its manifests."""
    if item is None:
        return None
    attempts = [one for artifact in made_from([item], store.find, DRAFT_KINDS) for one in attempts_at(artifact)]
    prices = [(prices_of(one.payer), one.used) for one in attempts]
    amounts = [(price.currency, amount) for price, used in prices if (amount := price.amount(used)) is not None]
    return spent_of(added_up(one.used for one in attempts), summed(amounts))


def _measured(store: Store, name: str, digest: str, registration: Artifact | None) -> dict[str, Measured]:
    """What a champion was measured at whose run is not in the history: by its registration, or by its record."""
    try:
        parent = registration.manifest.parents.get("evaluation") if registration is not None else None
        evaluated = store.find(parent.kind, parent.key) if parent is not None and parent.key is not None else None
        if evaluated is not None:
            content = evaluated.json("evaluation.json")
        else:
            record = version_record(store.backend, name, digest)
            content = record.evaluation if record is not None else None
        return measured_in(Evaluation.from_json(content, where=name)) if content is not None else {}
    except ArtifactError:
        return {}
