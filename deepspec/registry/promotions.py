"""The promotion log: who became champion, instead of whom, on what grounds, when.

Entries `registry/<model>/promotions/<n>.json` are created, never overwritten, at n = last + 1. With that single
primitive the log is compare-and-set (two promoters cannot both write n), audit trail, history and roll back (append an
earlier champion again). Each entry names the champion before it, so a missing or altered entry is noticed. In a copy of
a log entries may come in batches, which count as a whole (batches.py).

It knows drafts by artifact key and content digest, and MLflow only as a version number to pass on.
"""

import re
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import count

from deepspec.account import Actor
from deepspec.errors import GateFailed, RecipeError
from deepspec.gates.verdict import Verdict
from deepspec.registry.batches import Batch, batches, in_force, inside
from deepspec.registry.blocks import block_of
from deepspec.registry.entries import FORMAT, DraftIdentity, DraftReference, Kind, Promotion, damaged
from deepspec.registry.errors import DraftBlocked, NothingToRollBackTo, PromotionConflict
from deepspec.registry.records import ROOT, Records

_ENTRY = re.compile(r"([1-9][0-9]{0,8})\.json")
_ATTEMPTS = 8
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class PromotionLog:
    """The logs of all models on one backend.

    Args:
        records: where entries lie; a store's backend.
        clock: now, in UTC; for tests.
        remembers: whether an entry is read once, and known from then on, as befits a run: entries never change. Which
            there are is asked each time.
    """

    def __init__(
        self, records: Records, clock: Callable[[], datetime] | None = None, *, remembers: bool = False
    ) -> None:
        self._records = records
        self._clock = clock or _now
        self._known: dict[str, Promotion] | None = {} if remembers else None

    def models(self) -> tuple[str, ...]:
        """Names of all models that have a log, sorted."""
        parts = (path.split("/") for path in self._records.list(ROOT))
        names = {part[1] for part in parts if len(part) == 4 and part[2] == "promotions"}
        return tuple(sorted(name for name in names if _MODEL.fullmatch(name)))

    def history(self, model: str, *, first: int = 1) -> tuple[Promotion, ...]:
        """Every entry from number `first` on, oldest first; costs one listing, and a read of each entry.

        Raises:
            PromotionLogDamaged: an entry is missing, altered, or does not follow from the one before it.
        """
        entries: list[Promotion] = []
        for number in range(first, self._last(model) + 1):
            entry = self._entry(model, number)
            before = entries[-1].champion if entries else None
            if entry.previous != before and (entries or number == 1):
                raise damaged(_path(model, number), "it does not continue the entry before it")
            entries.append(entry)
        return tuple(entries)

    def last(self, model: str) -> Promotion | None:
        """The newest entry, or None before the first promotion; costs one listing and one read."""
        number = self._last(model)
        return self._entry(model, number) if number else None

    def champion(self, model: str) -> DraftReference | None:
        """Who serves now; None before the first promotion."""
        last = self.last(model)
        return None if last is None else last.champion

    def roots(self) -> set[tuple[str, str]]:
        """(kind, key) of every draft that is or was champion: a garbage collector must keep what they reach."""
        return {(entry.champion.kind, entry.champion.key) for model in self.models() for entry in self.history(model)}

    def promote(
        self,
        model: str,
        challenger: DraftReference,
        verdict: Verdict,
        *,
        identity: DraftIdentity | None = None,
        who: Actor | str,
        reason: str = "",
    ) -> Promotion:
        """Make `challenger` the champion, if the champion is still the one `verdict` was measured against.

        Promoting the present champion again appends nothing and returns the entry that made it champion: so a run
        that was interrupted after this call can repeat it.

        Args:
            model: registered model name.
            challenger: the draft.
            verdict: what the gates said of it.
            identity: the draft's; None: its digest alone.
            who: the person or machine account that asks; a text is a name that nothing has authenticated.
            reason: why.

        Returns:
            The entry.

        Raises:
            GateFailed: the verdict refuses.
            DraftBlocked: it, or a draft like it, was rolled back.
            PromotionConflict: another champion than the verdict's serves now, or the verdict is another draft's.
            PromotionLogDamaged: the log cannot be read.
        """
        if not verdict.accepted:
            raise GateFailed(verdict.sentence, where=model, remedy="The champion stays.")
        if verdict.challenger is not None and verdict.challenger != challenger.digest:
            raise PromotionConflict(
                f"The verdict is about draft {verdict.challenger[:12]}, not {challenger.digest[:12]}.",
                where=model,
                remedy="Judge this draft.",
            )
        for _ in range(_ATTEMPTS):
            entries = self.history(model)
            last = entries[-1] if entries else None
            if last is not None and last.champion.digest == challenger.digest:
                return next(entry for entry in reversed(entries) if entry.kind != "unblock")
            refuse_blocked(entries, identity or DraftIdentity(digest=challenger.digest), model)
            serving = None if last is None else last.champion.digest
            if serving != verdict.champion:
                raise PromotionConflict(
                    f"The verdict was measured against {_name(verdict.champion)}, "
                    f"but now {_name(serving)} is champion.",
                    where=model,
                    remedy="Run the recipe again: the challenger will be judged against the new champion.",
                )
            entry = self._append(model, last, "promote", challenger, verdict=verdict, who=who, reason=reason)
            if entry is not None:
                return entry
        raise PromotionConflict(
            f"Other processes wrote to the promotion log {_ATTEMPTS} times in a row.", where=model, remedy="Run again."
        )

    def rollback(
        self,
        model: str,
        to: str | None = None,
        *,
        check: Callable[[DraftReference], object] = lambda _: None,
        identify: Callable[[DraftReference], DraftIdentity] = lambda draft: DraftIdentity(digest=draft.digest),
        who: Actor | str,
        reason: str = "",
    ) -> Promotion:
        """Append an earlier champion again; the one that it replaces is blocked from then on (blocks.py).

        Args:
            model: registered model name.
            to: model version, key or digest (or at least six leading digits of either) of a draft that was champion
                before; None: the one that served before the present champion. Repeated, that walks further back.
            check: called with the earlier champion before anything is written; raises if it cannot serve.
            identify: what is blocked of the present champion.
            who: the person or machine account that asks; a text is a name that nothing has authenticated.
            reason: why.

        Raises:
            NothingToRollBackTo: there is no earlier champion, or none that `to` names (or several).
            PromotionConflict: the champion changed during the call.
            PromotionLogDamaged: the log cannot be read.
        """
        entries = self.history(model)
        if not entries:
            raise NothingToRollBackTo(
                "Nothing was ever promoted.",
                where=model,
                remedy="Promote a version first: `deepspec promote models:/MODEL/VERSION`.",
            )
        champion = previous_of(entries) if to is None else _named(entries, to, model)
        if champion is None:
            raise NothingToRollBackTo(
                "There is no champion before the present one.", where=model, remedy="Name one with `to`, or promote."
            )
        if champion.digest == entries[-1].champion.digest:
            raise NothingToRollBackTo(
                f"{_name(champion.digest)} is the champion already.",
                where=model,
                remedy="Name an earlier champion with `to`.",
            )
        check(champion)
        blocked = identify(entries[-1].champion)
        entry = self._append(model, entries[-1], "rollback", champion, about=blocked, who=who, reason=reason)
        if entry is None:
            raise PromotionConflict(
                "Another champion was promoted during the roll back.",
                where=model,
                remedy="Look at the history, then roll back again if that is still wanted.",
            )
        return entry

    def unblock(self, model: str, draft: DraftIdentity, *, who: Actor | str, reason: str) -> Promotion | None:
        """Let a draft that was rolled back be promoted again; the champion stays.

        Args:
            model: registered model name.
            draft: what every block that it is like ends for.
            who: the person that asks; a text is a name that nothing has authenticated.
            reason: why.

        Returns:
            the entry; None if nothing blocks the draft, and nothing was written.

        Raises:
            PromotionConflict: other processes wrote to the log all the time.
            PromotionLogDamaged: the log cannot be read.
        """
        for _ in range(_ATTEMPTS):
            entries = self.history(model)
            if block_of(entries, draft) is None:
                return None
            last = entries[-1]
            entry = self._append(model, last, "unblock", last.champion, about=draft, who=who, reason=reason)
            if entry is not None:
                return entry
        raise PromotionConflict(
            f"Other processes wrote to the promotion log {_ATTEMPTS} times in a row.", where=model, remedy="Try again."
        )

    def _append(
        self,
        model: str,
        last: Promotion | None,
        kind: Kind,
        champion: DraftReference,
        *,
        verdict: Verdict | None = None,
        about: DraftIdentity | None = None,
        who: Actor | str,
        reason: str,
    ) -> Promotion | None:
        """The entry after `last`, or None if another writer was first.

        Raises:
            PromotionConflict: it would not count, because entries of another log are being copied here.
        """
        number = 1 if last is None else last.number + 1
        if inside(number, batches(self._names(model))):
            raise PromotionConflict(
                f"Entries from {number} on are being copied into this log from another store, and are not all here.",
                where=_folder(model),
                remedy="Promote and roll back there; the copy is completed from there, too.",
            )
        before = 1 if last is None else last.format
        entry = Promotion(
            # An older deepspec that reads only the last entry must refuse it, too, once anything was blocked.
            format=max(before, 1 if kind == "promote" else FORMAT),
            model=model,
            number=number,
            kind=kind,
            champion=champion,
            previous=None if last is None else last.champion,
            verdict=verdict,
            about=about,
            who=str(who),
            actor=who if isinstance(who, Actor) else None,
            when=self._clock(),
            reason=reason,
            attempt=uuid.uuid4().hex,
        )
        if self._records.create(_path(model, number), entry.to_bytes()):
            return entry
        # The entry may be ours after all: created, and the answer lost on the way back.
        written = self._entry(model, number)
        return written if written.attempt == entry.attempt else None

    def record(self, model: str, number: int) -> bytes | None:
        """An entry as it was written, whether it counts already or not; None: there is none."""
        try:
            return self._records.read(_path(model, number))
        except FileNotFoundError:
            return None

    def announce(self, model: str, batch: Batch) -> None:
        """Let the entries of a batch, which are created next, count only once the last of them is there."""
        self._records.create(f"{_folder(model)}/{batch.name}", b"{}")

    def copy(self, model: str, number: int, entry: bytes) -> bool:
        """Create an entry as another log has it; return whether it is there now, whoever created it."""
        return self._records.create(_path(model, number), entry) or self.record(model, number) == entry

    def _last(self, model: str) -> int:
        names = self._names(model)
        numbers = {int(match[1]) for match in map(_ENTRY.fullmatch, names) if match}
        # Not a range up to the highest: a single name may claim any number.
        missing = next(number for number in count(1) if number not in numbers)
        if missing <= len(numbers):
            raise damaged(_path(model, missing), "it is missing, but later entries are there")
        return in_force(len(numbers), batches(names))

    def _names(self, model: str) -> list[str]:
        folder = _folder(model)
        return [path.removeprefix(f"{folder}/") for path in self._records.list(folder)]

    def _entry(self, model: str, number: int) -> Promotion:
        path = _path(model, number)
        if self._known is not None and path in self._known:
            return self._known[path]
        try:
            data = self._records.read(path)
        except FileNotFoundError as error:
            raise damaged(path, "it was listed but cannot be found") from error
        entry = Promotion.from_bytes(data, path)
        if (entry.model, entry.number) != (model, number):
            raise damaged(path, f"it says it is entry {entry.number} of {entry.model}")
        if self._known is not None:
            self._known[path] = entry
        return entry


_BY_RUN = "run "


def reason_of(run_id: str) -> str:
    """The `reason` of a champion that a run appointed."""
    return f"{_BY_RUN}{run_id}"


def run_of(entry: Promotion) -> str | None:
    """The run that appointed a champion; None: a person did."""
    return entry.reason.removeprefix(_BY_RUN) if entry.reason.startswith(_BY_RUN) else None


def refuse_blocked(entries: Sequence[Promotion], draft: DraftIdentity, model: str) -> None:
    """Refuse a draft that was rolled back, or is like one that was.

    Raises:
        DraftBlocked: it is.
    """
    found = block_of(entries, draft)
    if found is not None:
        block, likeness = found
        raise DraftBlocked(
            block.sentence(likeness),
            where=model,
            remedy="To allow it again: `deepspec promote DRAFT --unblock --reason …`.",
        )


def previous_of(entries: Sequence[Promotion]) -> DraftReference | None:
    """The champion before the present one: a promotion pushes onto a stack, a roll back pops down to its champion."""
    earlier = earlier_of(entries)
    return earlier[0] if earlier else None


def earlier_of(entries: Sequence[Promotion]) -> list[DraftReference]:
    """The champions that repeated roll backs lead to, one after the other."""
    stack: list[DraftReference] = []
    for entry in entries:
        if entry.kind == "unblock":
            continue
        digests = [draft.digest for draft in stack]
        if entry.kind == "rollback" and entry.champion.digest in digests:
            # The topmost one: a draft may have been promoted twice.
            del stack[len(digests) - digests[::-1].index(entry.champion.digest) :]
        else:
            stack.append(entry.champion)
    return stack[-2::-1]


def _named(entries: tuple[Promotion, ...], to: str, model: str) -> DraftReference:
    drafts = {entry.champion.digest: entry.champion for entry in entries}
    found = [draft for draft in drafts.values() if to in {draft.version, draft.key, draft.digest}]
    if not found and len(to) >= 6:
        found = [draft for draft in drafts.values() if draft.key.startswith(to) or draft.digest.startswith(to)]
    if len(found) != 1:
        known = ", ".join(_label(draft) for draft in drafts.values())
        what = f"{len(found)} past champions match" if found else "No past champion matches"
        raise NothingToRollBackTo(f"{what} {to!r}.", where=model, remedy=f"Past champions: {known}.")
    return found[0]


def _label(draft: DraftReference) -> str:
    return f"version {draft.version} ({draft.digest[:12]})" if draft.version else draft.digest[:12]


def _name(digest: str | None) -> str:
    return "no champion" if digest is None else f"draft {digest[:12]}"


def _folder(model: str) -> str:
    if not _MODEL.fullmatch(model):
        raise RecipeError(
            f"{model!r} is not a valid model name.",
            where="model",
            remedy="Use letters, digits, dots, dashes and underscores, a letter or digit first, at most 200.",
        )
    return f"{ROOT}/{model}/promotions"


def _path(model: str, number: int) -> str:
    return f"{_folder(model)}/{number}.json"


def _now() -> datetime:
    return datetime.now(UTC)
