"""What an artifact cost to make, with all that it was made from: attempt by attempt, and who paid for each."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable

from deepspec.cost.accounts import Accounts
from deepspec.cost.attempts import Attempt, attempts_at, once
from deepspec.cost.prices import Prices, prices_of, summed
from deepspec.evaluation.results import Number
from deepspec.store import Artifact, Manifest, Store
from deepspec.store.gc import absent, lineage
from deepspec.store.records import JsonRecord
from deepspec.usage import added_up, spelled_out

NEWEST_DRAFTS = 200
"""So many are asked whether they were made from the same artifacts: each costs a small read or two."""

_REGISTER = "register"


class PaidAttempt(JsonRecord):
    """One attempt at one artifact.

    Attributes:
        stage, key: the artifact's.
        run, model: who paid; None: an earlier deepspec did not record it.
        finished: whether the artifact is its result; otherwise it was killed, failed, or still goes on.
        shared_with: how many other drafts were made from the artifact.
        cost: what it used, by all names in `deepspec.usage.USED`.
        amount, currency: of money; None: without prices.
    """

    stage: str
    key: str
    run: str | None
    model: str | None
    finished: bool
    shared_with: int
    cost: dict[str, Number]
    amount: Number | None
    currency: str | None


class MakingCost(JsonRecord):
    """What an artifact cost to make.

    Attributes:
        kind, key: the artifact's.
        attempts: nearest artifact first.
        cost: their sum.
        amounts: by currency, of those that have prices.
        num_unpriced: attempts without.
        absent: `kind/key` of inputs that the store no longer has; their cost is unknown.
    """

    kind: str
    key: str
    attempts: tuple[PaidAttempt, ...]
    cost: dict[str, Number]
    amounts: dict[str, Number]
    num_unpriced: int
    absent: tuple[str, ...]


def made_from(
    items: Iterable[Artifact], get: Callable[[str, str], Artifact | None], drafts: Collection[str]
) -> list[Artifact]:
    """Artifacts and what they were made from, nearest first, each once; other drafts, and what only those needed, not.

    A draft that was started from the champion did not cost what the champion did, nor did a verdict on both.

    Args:
        items: where to begin: a draft, or what was found out about one.
        get: (kind, key) -> the artifact; None: without it and what it was made from.
        drafts: kinds of artifacts that are drafts.
    """
    items = tuple(items)
    own = {key for item in items if (key := _draft_of(item, drafts)) is not None}

    def near(kind: str, key: str) -> Artifact | None:
        return None if kind in drafts and key not in own else get(kind, key)

    return list({(found.kind, found.key): found for item in items for found in lineage(item, near)}.values())


def making_cost(store: Store, items: Iterable[Artifact], drafts: Collection[str], prices: Prices | None) -> MakingCost:
    """What artifacts cost to make.

    Args:
        store: they are in.
        items: the draft or another artifact, and what else counts (the registration that it was measured for).
        drafts: kinds of artifacts that are drafts.
        prices: given now; None: those that each attempt was paid at.

    Raises:
        DeepspecError: the store does not answer.
    """
    items = tuple(items)
    found = made_from(items, store.find, drafts)
    accounts, shared = Accounts(store.backend), _shared(store, items, drafts)
    rows = []
    for artifact in found:
        left = [account.attempt for account in accounts.of(artifact.key)]
        num_drafts = shared.get((artifact.kind, artifact.key), 0)
        rows += [_row(artifact, one, num_drafts, prices) for one in once([*attempts_at(artifact), *left])]
    gone = [parent for parent in absent(found) if parent.kind not in drafts]
    return MakingCost(
        kind=items[0].kind,
        key=items[0].key,
        attempts=tuple(rows),
        cost=spelled_out(added_up(row.cost for row in rows)),
        amounts=summed((str(row.currency), row.amount) for row in rows if row.amount is not None),
        num_unpriced=sum(row.amount is None for row in rows),
        absent=tuple(f"{parent.kind}/{parent.key}" for parent in gone),
    )


def registration_of(store: Store, draft: Artifact) -> Artifact | None:
    """The newest registration of a draft, which was made from its evaluation, too; None: it never was registered."""
    for manifest in store.latest(_REGISTER, NEWEST_DRAFTS):
        about = manifest.parents.get("draft")
        if about is not None and (about.kind, about.key) == (draft.kind, draft.key):
            return store.find(_REGISTER, manifest.key)
    return None


def _row(artifact: Artifact, attempt: Attempt, num_drafts: int, prices: Prices | None) -> PaidAttempt:
    prices = prices or prices_of(attempt.payer)
    amount = prices.amount(attempt.used)
    return PaidAttempt(
        stage=artifact.kind,
        key=artifact.key,
        run=attempt.payer.run if attempt.payer else None,
        model=attempt.payer.model if attempt.payer else None,
        finished=attempt.finished,
        shared_with=num_drafts,
        cost=spelled_out(attempt.used),
        amount=None if amount is None else round(amount, 6),
        currency=None if amount is None else prices.currency,
    )


def _draft_of(item: Artifact, drafts: Collection[str]) -> str | None:
    """Key of the draft that an artifact is, or is about."""
    if item.kind in drafts:
        return item.key
    about = item.manifest.parents.get("draft")
    return None if about is None else about.key


def _shared(store: Store, items: Iterable[Artifact], drafts: Collection[str]) -> dict[tuple[str, str], int]:
    """(kind, key) -> how many drafts, apart from those that `items` are about, were made from it; zeros left out."""
    own = {_draft_of(item, drafts) for item in items}
    read: dict[tuple[str, str], Manifest | None] = {}

    def manifest_of(kind: str, key: str) -> Manifest | None:
        if (kind, key) not in read:
            numbers = store.numbers(kind, key)
            read[kind, key] = store.manifest(kind, key, numbers[-1]) if numbers else None
        return read[kind, key]

    newest = (draft for kind in drafts for draft in store.latest(kind, NEWEST_DRAFTS))
    others = {draft.key: draft for draft in newest if draft.key not in own}
    return Counter(name for draft in others.values() for name in _needed(draft, manifest_of, drafts))


def _needed(
    draft: Manifest, manifest_of: Callable[[str, str], Manifest | None], drafts: Collection[str]
) -> set[tuple[str, str]]:
    """(kind, key) of what a draft was made from, without other drafts and what only those needed."""
    reached: set[tuple[str, str]] = set()
    open_ = [draft]
    while open_:
        for parent in open_.pop().parents.values():
            if parent.key is None or parent.kind in drafts or (parent.kind, parent.key) in reached:
                continue
            reached.add((parent.kind, parent.key))
            further = manifest_of(parent.kind, parent.key)
            open_ += [] if further is None else [further]
    return reached
