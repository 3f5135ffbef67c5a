"""What was rolled back stays so: blocks by weights and by recipe, which follow from the log alone."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from deepspec.account import Actor, local_user
from deepspec.errors import GateFailed
from deepspec.gates.verdict import Reason, Verdict
from deepspec.registry.blocks import blocked_entries, blocks
from deepspec.registry.entries import FORMAT, DraftIdentity, DraftReference, Promotion
from deepspec.registry.errors import DraftBlocked
from deepspec.registry.identity import identity_of, is_from_outside
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Artifact, Ingredients, Store, artifact_key, open_store
from deepspec.store.records import seal, unseal
from tests.fixtures.refused import refused
from tests.fixtures.store import EVERY_PLACE, PLACES, ingredients, put

MODEL = "demo"


@pytest.fixture(params=EVERY_PLACE)
def store(request: pytest.FixtureRequest) -> Store:
    return PLACES[request.param](request).store()


@pytest.fixture
def log(store: Store) -> PromotionLog:
    return PromotionLog(store.backend)


def weights_of(name: str) -> bytes:
    return save({"weight": np.frombuffer(name.encode(), dtype=np.uint8)})


def trained(
    store: Store, weights: str, *, version: int = 1, rows: str = "rows", settings: int = 1, **sections: object
) -> Artifact:
    """A draft on tokens on rows; the stage of the tokens has a version, and writes it into their bytes."""
    source = Ingredients("tokens", version, {"data.mask": "all"}, {"source": rows})
    tokens = put(store, source, {"tokens": f"{rows} {version}".encode()})
    made = ingredients("train", train=settings, **sections)
    files = {"draft/model.safetensors": weights_of(weights), "draft/config.json": f"[{settings}]".encode()}
    return put(store, made, files, tokens=tokens)


def reference(draft: Artifact, version: str | None = None) -> DraftReference:
    return DraftReference(kind=draft.kind, key=draft.key, digest=draft.digest, version=version)


def verdict(challenger: Artifact, champion: DraftReference | None, *, accepts: bool = True) -> Verdict:
    reason = Reason(gate="tau", passed=accepts, measured=4.0, required=3.0, sentence="4.0 against 3.0.")
    against = None if champion is None else champion.digest
    return Verdict(accepted=accepts, reasons=(reason,), challenger=challenger.digest, champion=against)


def promote(log: PromotionLog, store: Store, draft: Artifact) -> Promotion:
    judged = verdict(draft, log.champion(MODEL))
    return log.promote(MODEL, reference(draft), judged, identity=identity_of(store, draft), who="nightly")


def roll_back(log: PromotionLog, store: Store, to: str | None = None, reason: str = "slower") -> Promotion:
    return log.rollback(MODEL, to, identify=lambda draft: identity_of(store, draft), who=local_user(), reason=reason)


def test_what_was_rolled_back_is_not_promoted_again_whatever_changed(store: Store, log: PromotionLog) -> None:
    first, second = trained(store, "a", settings=1), trained(store, "b", settings=2)
    promote(log, store, first)
    promote(log, store, second)
    entry = roll_back(log, store)
    assert entry.about == identity_of(store, second)
    alike = {
        "the same draft": second,
        "the same weights": trained(store, "b", settings=3, rows="others"),
        "the same recipe": trained(store, "b'", settings=2, version=7),
    }
    for likeness, draft in alike.items():
        with refused(DraftBlocked, likeness, "slower", "entry 3", where=MODEL) as caught:
            promote(log, store, draft)
        assert "--unblock" in str(caught.value.remedy)
    assert len(log.history(MODEL)) == 3
    assert promote(log, store, trained(store, "c", settings=2, rows="new rows")).number == 4


def test_only_a_person_unblocks(store: Store, log: PromotionLog) -> None:
    first, second = trained(store, "a", settings=1), trained(store, "b", settings=2)
    for draft in (first, second):
        promote(log, store, draft)
    assert log.unblock(MODEL, identity_of(store, second), who="me", reason="none") is None
    roll_back(log, store)
    alike = identity_of(store, trained(store, "b", settings=3))
    entry = log.unblock(MODEL, alike, who=Actor(name="ann", known_by="MLflow user"), reason="it was the host")
    assert entry is not None
    assert (entry.number, entry.kind, entry.champion, entry.about) == (4, "unblock", reference(first), alike)
    assert (entry.asked_by, entry.reason) == ("ann (MLflow user)", "it was the host")
    assert blocks(log.history(MODEL)) == ()
    assert log.champion(MODEL) == reference(first)
    assert promote(log, store, second).number == 5
    assert roll_back(log, store).champion == reference(first)  # an unblocking is no step on the way back


def test_going_back_to_a_blocked_draft_unblocks_it(store: Store, log: PromotionLog) -> None:
    first, second = trained(store, "a", settings=1), trained(store, "b", settings=2)
    for draft in (first, second):
        promote(log, store, draft)
    roll_back(log, store)
    assert blocked_entries(log.history(MODEL)) == {second.digest: 3}
    roll_back(log, store, to=second.digest)
    assert blocked_entries(log.history(MODEL)) == {first.digest: 4}


def test_a_block_holds_for_its_model_alone(store: Store, log: PromotionLog) -> None:
    first, second = trained(store, "a", settings=1), trained(store, "b", settings=2)
    for draft in (first, second):
        promote(log, store, draft)
    roll_back(log, store)
    other = log.promote(
        "other", reference(second), verdict(second, None), identity=identity_of(store, second), who="me"
    )
    assert other.number == 1


def test_the_champion_of_a_damaged_artifact_is_blocked_by_what_its_manifest_says(
    store: Store, log: PromotionLog
) -> None:
    first, second = trained(store, "a", settings=1), trained(store, "b", settings=2)
    for draft in (first, second):
        promote(log, store, draft)
    identity = identity_of(store, second)
    assert None not in (identity.weights, identity.recipe)
    store.condemn(second.kind, second.key, second.number, "a flipped bit")
    assert roll_back(log, store).about == identity


def test_an_entry_of_format_1_blocks_by_digest_and_goes_on(store: Store, log: PromotionLog) -> None:
    """As version 1 wrote them: no `about`, no `actor`; its roll backs are sticky from now on."""
    first, second = trained(store, "a", settings=1), trained(store, "b", settings=2)
    for draft in (first, second):
        promote(log, store, draft)
    assert {entry.format for entry in log.history(MODEL)} == {1}
    old = {
        "format": 1,
        "model": MODEL,
        "number": 3,
        "kind": "rollback",
        "champion": reference(first).model_dump(mode="json"),
        "previous": reference(second).model_dump(mode="json"),
        "verdict": None,
        "who": "root",
        "when": "2026-11-23T03:00:00Z",
        "reason": "",
        "attempt": "0" * 32,
    }
    store.backend.create(f"registry/{MODEL}/promotions/3.json", seal(old))
    assert log.history(MODEL)[-1].asked_by == "claimed: root"
    with refused(DraftBlocked, "the same draft", "claimed: root", where=MODEL):
        promote(log, store, second)


def test_after_a_block_an_older_deepspec_refuses_every_entry(store: Store, log: PromotionLog) -> None:
    """It reads the last entry alone, would see no block, and promote what was rolled back."""
    for weights in "abc":
        promote(log, store, trained(store, weights, rows=weights))
    roll_back(log, store)
    promote(log, store, trained(store, "d", rows="d"))
    formats = [unseal(store.backend.read(f"registry/{MODEL}/promotions/{n}.json"))["format"] for n in range(1, 6)]
    assert formats == [1, 1, 1, FORMAT, FORMAT]


def test_clocks_never_decide_what_came_first(store: Store) -> None:
    """Each entry is written by a machine whose clock is a year behind the one before."""
    years = iter(range(10))
    log = PromotionLog(
        store.backend, clock=lambda: datetime(2030, 1, 1, tzinfo=UTC) - timedelta(days=365 * next(years))
    )
    first, second = trained(store, "a", settings=1), trained(store, "b", settings=2)
    for draft in (first, second):
        promote(log, store, draft)
    roll_back(log, store)
    assert log.champion(MODEL) == reference(first)
    with pytest.raises(DraftBlocked):
        promote(log, store, second)
    log.unblock(MODEL, identity_of(store, second), who="me", reason="again")
    assert promote(log, store, second).number == 5
    whens = [entry.when for entry in log.history(MODEL)]
    assert whens == sorted(whens, reverse=True)


def test_a_refused_draft_is_refused_before_its_block_is_looked_at(store: Store, log: PromotionLog) -> None:
    draft = trained(store, "a")
    judged = verdict(draft, None, accepts=False)
    with pytest.raises(GateFailed):
        log.promote(MODEL, reference(draft), judged, identity=identity_of(store, draft), who="me")


def test_identity_outlives_upgrades_and_tells_inputs_and_settings_apart(store: Store) -> None:
    one = identity_of(store, trained(store, "a"))
    assert identity_of(store, trained(store, "b", version=2)).recipe == one.recipe
    assert identity_of(store, trained(store, "b", settings=2)).recipe != one.recipe
    assert identity_of(store, trained(store, "b", rows="others")).recipe != one.recipe
    again = identity_of(store, trained(store, "a", settings=5, rows="x"))
    assert again.weights == one.weights
    assert (again.digest, again.recipe) != (one.digest, one.recipe)


def test_a_warm_start_counts_by_its_weights(store: Store) -> None:
    def started(init: Artifact) -> DraftIdentity:
        made = put(store, ingredients("train", train=9), {"draft/model.safetensors": weights_of("z")}, init=init)
        return identity_of(store, made)

    old, same, other = trained(store, "a"), trained(store, "a", settings=4), trained(store, "b", settings=6)
    assert started(old).recipe == started(same).recipe != started(other).recipe
    published = put(store, ingredients("import", source="x"), {"draft/model.safetensors": weights_of("a")})
    assert started(published).recipe == started(old).recipe


def test_what_was_not_trained_here_is_from_outside(store: Store) -> None:
    published = put(store, ingredients("import", source="x"))
    home = trained(store, "a")
    on_home, on_published = (put(store, ingredients("train", of=one.kind), init=one) for one in (home, published))
    on_directory = put(store, Ingredients("train", 1, {}, {"init": "e" * 64}))
    drafts = (published, on_published, on_directory, home, on_home)
    assert [is_from_outside(draft) for draft in drafts] == [True, True, True, False, False]


def test_what_is_gone_is_known_by_its_digest_alone(store: Store) -> None:
    gone = DraftReference(kind="train", key=artifact_key(ingredients("train", a=1)), digest="d" * 64)
    assert identity_of(store, gone) == DraftIdentity(digest="d" * 64)


def test_a_name_in_a_variable_is_a_claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody")
    monkeypatch.delenv("DEEPSPEC_USER", raising=False)
    honest = local_user().with_claim()
    assert honest.known_by == "local user"
    assert "somebody" not in str(honest)
    monkeypatch.setenv("DEEPSPEC_USER", "the boss")
    assert str(local_user().with_claim()) == f"{honest}, claimed: the boss"
    assert json.loads(local_user().with_claim().model_dump_json())["name"] == honest.name


def test_a_bucket_knows_whose_key_signs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEC_USER", "the boss")
    actor = store.backend.actor()
    assert actor.claimed is None
    assert actor.known_by == ("access key" if store.shared else "local user")
    assert actor.name not in (None, "", "the boss")


def test_of_an_access_key_only_the_ends_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    for key, shown in (("AKIAIOSFODNN7EXAMPLE", "AKIA…MPLE"), ("minioadmin", "mi…in"), ("key", "…")):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        assert open_store("s3://bucket/prefix", cache=tmp_path).backend.actor().name == shown
