"""Copying a promotion log, and the drafts that it needs, into another store: production's.

Production's log is the same entries, byte for byte and in the same order. First comes what the new champion needs there
(its draft, compared with its checksums, and a record of the version), then the entries, as a batch that counts as a
whole: at every moment the log there names a champion that is all there, the old one or the new one. Nothing is
overwritten, so several processes may do this at once, and one that was killed is simply repeated.

Of a long log all entries are copied, but the drafts only of the champion and of the one that a roll back leads to.
What users have said (conversations, answers, tokens, states) is never copied.
"""

import uuid
from dataclasses import dataclass

from deepspec.errors import ArtifactDamaged
from deepspec.registry.batches import Batch
from deepspec.registry.card import CARD_FILE
from deepspec.registry.entries import DraftReference, Promotion
from deepspec.registry.errors import DraftDamaged, OtherHistory
from deepspec.registry.promotions import PromotionLog, previous_of
from deepspec.registry.reconciling import about, evaluation_in, registered_as, registrations, tags_of
from deepspec.registry.version_record import Ancestor, VersionRecord, version_record
from deepspec.store import Artifact, Store
from deepspec.store.copy_store import Copied, copy_artifact
from deepspec.store.gc import absent, lineage, nearest
from deepspec.store.lease import leased


@dataclass
class Publishing:
    """Bringing one model's log in `production` up to what `log` says.

    Args:
        store: where drafts are made; it is only read.
        production: the other store.
        log: the first one's.
        model: registered model name.

    Attributes:
        behind: how many entries production lacks, as far as was seen; None: it has not answered yet.
        complete: whether it has all that it needs.
        written: how many were written.
        notes: sentences about drafts besides the champion's that could not be copied.
    """

    store: Store
    production: Store
    log: PromotionLog
    model: str
    behind: int | None = None
    complete: bool = False
    written: int = 0
    notes: tuple[str, ...] = ()

    def publish(self) -> None:
        """Copy what is missing; nothing is written where nothing is.

        Costs two listings and a read of each log where production is up to date, and a listing and a read for each of
        its two drafts.

        Raises:
            OtherHistory: production's log is no earlier state of this one; nothing was copied.
            DraftDamaged: the champion's draft is not whole; production's old champion stays.
            PromotionLogDamaged: one of the logs cannot be read.
            ArtifactError: production refuses.
            TransientError: production does not answer.
        """
        entries = self.log.history(self.model)
        if not entries:
            self.behind, self.complete = 0, True
            return
        there = self._there(entries)
        champion, earlier = entries[-1].champion, previous_of(entries)
        drafts = [champion] if earlier is None else [champion, earlier]
        missing = [draft for draft in drafts if not self._has(draft)]
        if missing or there < len(entries):
            name = f"runs/publish-{uuid.uuid4().hex[:12]}"
            # Nothing there reaches the drafts before the log does: the lease keeps the collector off.
            with leased(self.production.backend, name, keys=[[draft.kind, draft.key] for draft in drafts]):
                self._bring(champion)
                if earlier is not None and earlier in missing:
                    self._try_to_bring(earlier)
                self._append(entries)
        self.behind, self.complete = 0, True

    def _there(self, entries: tuple[Promotion, ...]) -> int:
        """How many entries production's log has, after it was compared with this one.

        The last one says enough: an entry that was written there itself is not in this log under any number.
        """
        theirs = PromotionLog(self.production.backend)
        last = theirs.last(self.model)
        there = 0 if last is None else last.number
        self.behind = max(len(entries) - there, 0)
        if there > len(entries) or (there and theirs.record(self.model, there) != self.log.record(self.model, there)):
            raise self._differs(self._first_of_their_own(there))
        return there

    def _first_of_their_own(self, there: int) -> int:
        """Number of the first entry that production's log does not have from this one."""
        theirs = PromotionLog(self.production.backend)
        others = (n for n in range(1, there) if theirs.record(self.model, n) != self.log.record(self.model, n))
        return next(others, there)

    def _has(self, draft: DraftReference) -> bool:
        """Whether a draft and its record are there, as a listing shows them."""
        found = self.production.find(draft.kind, draft.key)
        if found is None or found.digest != draft.digest:
            return False
        return version_record(self.production.backend, self.model, draft.digest) is not None

    def _bring(self, draft: DraftReference) -> None:
        """See that a draft is there with all its bytes, and its record; copy what is not.

        Raises:
            DraftDamaged: it is neither there nor here.
        """
        found = self.production.find(draft.kind, draft.key)
        if found is None or found.digest != draft.digest or not _whole(found):
            flaw = self._copy(draft)
            if flaw is not None:
                raise DraftDamaged(
                    f"Version {draft.version} cannot be copied into production: {flaw}.",
                    where=self.model,
                    remedy="Production's champion stays. Run the draft's recipe, or restore it from a backup.",
                )
        if version_record(self.production.backend, self.model, draft.digest) is None:
            describe(self.store, self.model, draft).write(self.production.backend)

    def _try_to_bring(self, draft: DraftReference) -> None:
        """Copy the draft that a roll back leads to; that it cannot be copied hinders no champion."""
        try:
            self._bring(draft)
        except DraftDamaged as error:
            self.notes += (f"{error.where}: {error.what} A roll back to it is not possible there.",)

    def _copy(self, draft: DraftReference) -> str | None:
        """Copy a draft's artifact; return what is wrong with it here or there."""
        name = f"{draft.kind}/{draft.key[:12]}"
        source = self.store.find(draft.kind, draft.key)
        if source is None:
            return f"{name} is gone, or not whole"
        if source.digest != draft.digest:
            return f"{name} was made again, with other bytes"
        done = Copied()
        copy_artifact(self.store, self.production, draft.kind, draft.key, done)
        if done.other_content:
            return f"production has other bytes under {name}"
        return next((f"{name}: {flaw}" for flaw in done.not_whole.values()), None)

    def _append(self, entries: tuple[Promotion, ...]) -> None:
        """Write the entries that production lacks; they count once the last of them is there.

        Raises:
            OtherHistory: another process has written another entry meanwhile.
        """
        # Again: copying a draft takes time, and what was appended there meanwhile must not lie inside the batch.
        there = self._there(entries)
        if there == len(entries):
            return
        theirs = PromotionLog(self.production.backend)
        theirs.announce(self.model, Batch(there, len(entries)))
        for number in range(there + 1, len(entries) + 1):
            record = self.log.record(self.model, number)
            if record is None or not theirs.copy(self.model, number, record):
                raise self._differs(number)
        if self._there(entries) == len(entries):
            self.written = len(entries) - there

    def _differs(self, number: int) -> OtherHistory:
        """The error about an entry that production's log has alone."""
        where = f"{self.production.backend.location}/registry/{self.model}/promotions/{number}.json"
        entry = Promotion.from_bytes(PromotionLog(self.production.backend).record(self.model, number) or b"", where)
        kind = {"promote": "promotion", "rollback": "roll back", "unblock": "unblocking"}[entry.kind]
        by = f"{entry.asked_by} at {entry.when.isoformat(timespec='seconds')}"
        why = f" ({entry.reason})" if entry.reason else ""
        named = entry.champion.version or entry.champion.digest[:12]
        same = f" (`deepspec rollback {self.model} --to {named}`)" if entry.kind == "rollback" else ""
        return OtherHistory(
            f"Production's log has its own entry {number}: a {kind} to version {named}, by {by}{why}. "
            "Nothing is copied.",
            where=where,
            remedy=f"Do the same here{same}; then production's owner removes its entries from {number} on.",
        )


def describe(store: Store, model: str, draft: DraftReference) -> VersionRecord:
    """What a store knows of a version that was made there.

    Args:
        store: where it was made.
        model: registered model name.
        draft: the version's.

    Raises:
        ArtifactDamaged: its registration or its evaluation is damaged; it will be rebuilt.
    """
    made = [one for one in registrations(store, model) if one.manifest.parents["draft"].digest == draft.digest]
    registration = max(made, key=registered_as, default=None)
    origin = registration or store.find(draft.kind, draft.key)
    found = [item for item in (lineage(origin, store.find) if origin else ()) if item is not registration]
    evaluated = registration and registration.manifest.parents.get("evaluation")
    measured = next((item for item in found if evaluated and item.key == evaluated.key), None)
    evaluation = evaluation_in(measured) if measured is not None else None
    ancestors = (
        *(Ancestor(kind=one.kind, key=one.key, digest=one.digest, in_store=one.key == draft.key) for one in found),
        *(Ancestor(kind=one.kind, key=str(one.key), digest=one.digest, in_store=False) for one in absent(found)),
    )
    notes = about(registration) if registration is not None else {}
    card = notes.pop(CARD_FILE, None)
    artifacts = {kind: (one.key, one.digest) for kind, one in nearest(ancestors).items()}
    return VersionRecord(
        model=model,
        draft=draft,
        tags=tags_of(registration, model, artifacts, evaluation),
        card=card,
        notes=notes,
        evaluation=None if evaluation is None else evaluation.to_json(),
        lineage=ancestors,
    )


def _whole(artifact: Artifact) -> bool:
    """Whether all bytes of an artifact are what its manifest says; otherwise it is copied again."""
    try:
        artifact.refuse_damaged()
    except ArtifactDamaged:
        return False
    return True
