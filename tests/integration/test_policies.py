"""The policies of infra/policies on a real S3 server: each for what its role must do, and what it must not.

The table asks the server itself; the roles' tests then do with deepspec what the role is there for.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from deepspec.errors import ArtifactError
from deepspec.registry.identity import DRAFT_KINDS
from deepspec.registry.production import PREFIX as PREFIX_OF_VARIABLES
from deepspec.registry.production import STORE, production_of
from deepspec.registry.promotions import PromotionLog
from deepspec.registry.publishing import Publishing
from deepspec.serving.followers import empty, followers
from deepspec.serving.names import draft_named
from deepspec.serving.pull import pull
from deepspec.serving.swap import Place
from deepspec.store import Artifact, Store, open_store
from deepspec.store.lease import leased
from tests.fixtures.refused import refused
from tests.fixtures.s3 import S3Server, bucket_client
from tests.fixtures.serving import MODEL, promote, roll_back, train
from tests.fixtures.store import ingredients, put

pytestmark = pytest.mark.full

POLICIES = Path(__file__).parents[2] / "infra" / "policies"
ROLES = ("trainer", "promoter", "consumer", "publisher")
BUCKET, PREFIX = "policies", "some/store"
THEIRS = "production"
KEY = f"{'0' * 64}/{'1' * 32}/x"
LOG = f"registry/{MODEL}/promotions"

# What it is in the store -> who may read it, write it (also over what is there), and remove it.
MAY: dict[str, tuple[set[str], set[str], set[str]]] = {
    **{f"{kind}/{KEY}": (set(ROLES), {"trainer", "publisher"}, set()) for kind in DRAFT_KINDS},
    f"responses/{KEY}": ({"trainer", "promoter"}, {"trainer"}, set()),
    f"train/{'0' * 64}/manifest.1.json": (set(ROLES), {"trainer", "publisher"}, set()),
    "leases/runs/x/000001.json": (
        {"trainer", "promoter", "publisher"},
        {"trainer", "publisher"},
        {"trainer", "publisher"},
    ),
    "work/probes/x": (
        {"trainer", "promoter", "publisher"},
        {"trainer", "promoter", "publisher"},
        {"trainer", "promoter", "publisher"},
    ),
    f"registry/{MODEL}/looks/{'0' * 64}/1.json": (set(ROLES), {"trainer", "promoter"}, set()),
    f"{LOG}/1.json": (set(ROLES), {"promoter", "publisher"}, set()),
    f"registry/{MODEL}/versions/x.json": (set(ROLES), {"trainer", "promoter", "publisher"}, set()),
    "history/2026-12/x.json": ({"trainer", "promoter"}, {"trainer"}, set()),
    "dashboard/index.html": ({"trainer", "promoter"}, {"trainer", "promoter"}, set()),
    f"followers/{MODEL}/host-1.json": ({"trainer", "promoter", "consumer"}, {"consumer"}, set()),
}


@pytest.fixture(scope="module")
def users(radosgw: S3Server) -> dict[str, S3Server]:
    """A user for each role, with its policy and nothing else; and the bucket's owner."""
    bucket_client(radosgw).create_bucket(Bucket=BUCKET)
    found = {"owner": radosgw}
    for role in ROLES:
        found[role] = radosgw.user(f"the-{role}")
        text = (POLICIES / f"{role}.json").read_text(encoding="utf-8")
        radosgw.allow(f"the-{role}", text.replace("BUCKET", BUCKET).replace("PREFIX", PREFIX))
    return found


StoreOf = Callable[[str], Store]


@pytest.fixture
def store_of(users: dict[str, S3Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StoreOf]:
    """Opens the test's own store as the owner or a role; from then on the environment is theirs."""
    caches = (tmp_path / f"cache-{number}" for number in itertools.count())

    def store(role: str) -> Store:
        users[role].enter(monkeypatch)
        opened = open_store(f"s3://{BUCKET}/{PREFIX}", cache=next(caches))
        opened.backend.list("")  # its client is made now, with these credentials
        return opened

    yield store
    owner = bucket_client(users["owner"])
    for item in owner.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        owner.delete_object(Bucket=BUCKET, Key=item["Key"])


def refusal(request: Callable[..., Any], **options: Any) -> str:
    """The code with which the server refuses; empty if it does not."""
    try:
        request(Bucket=BUCKET, **options)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_the_table_says_and_no_more(
    users: dict[str, S3Server], store_of: StoreOf, role: str
) -> None:
    owner, client = store_of("owner"), bucket_client(users[role])
    reader = bucket_client(users["promoter"])  # here an object belongs to its writer, and not to the bucket's owner
    for path, allowed in MAY.items():
        owner.backend.put(path, b"the owner's")
        key = f"{PREFIX}/{path}"
        requests = (
            refusal(client.get_object, Key=key),
            refusal(client.put_object, Key=key, Body=b"another's"),
            refusal(client.delete_object, Key=key),
        )
        assert requests == tuple("" if role in who else "AccessDenied" for who in allowed), path
        if role not in allowed[2]:
            expected = b"another's" if role in allowed[1] else b"the owner's"
            assert reader.get_object(Bucket=BUCKET, Key=key)["Body"].read() == expected, path
    elsewhere = "another/store/train/x"
    assert refusal(client.put_object, Key=elsewhere, Body=b"") == "AccessDenied"
    bucket_client(users["owner"]).put_object(Bucket=BUCKET, Key=elsewhere, Body=b"")
    assert refusal(client.get_object, Key=elsewhere) == "AccessDenied"
    assert refusal(client.put_bucket_policy, Policy='{"Version": "2012-10-17", "Statement": []}') == "AccessDenied"
    assert refusal(client.put_object_acl, Key=elsewhere, ACL="public-read") == "AccessDenied"


def promoted(store_of: StoreOf) -> list[Artifact]:
    """Two drafts of the trainer's, promoted one after the other by the promoter."""
    trainer = store_of("trainer")
    artifacts = [train(trainer, name) for name in ("one", "two")]
    promoter = store_of("promoter")
    for number, artifact in enumerate(artifacts, start=1):
        promote(promoter, artifact, str(number))
    return artifacts


def test_a_trainer_makes_artifacts_under_a_lease_and_cannot_promote(store_of: StoreOf) -> None:
    store = store_of("trainer")
    with leased(store.backend, "runs/one", keys=[]):
        made = put(store, ingredients("tokens", number=1))
        draft = train(store, "one")
    assert store.get("tokens", made.key).verify() == []
    store.backend.sweep(0.0)
    made.condemn("a test says so")
    again = put(store, ingredients("tokens", number=1))
    assert again.number == 2
    with refused(ArtifactError, "PutObject", "AccessDenied", where=PREFIX):
        promote(store, draft, "1")
    assert PromotionLog(store_of("owner").backend).last(MODEL) is None


def test_a_trainer_cannot_undo_what_was_promoted(store_of: StoreOf) -> None:
    promoted(store_of)
    store = store_of("trainer")
    with refused(ArtifactError, "PutObject", "AccessDenied", where=PREFIX):
        roll_back(store)
    with refused(ArtifactError, "DeleteObject", "AccessDenied", where=PREFIX):
        store.backend.delete(f"{LOG}/2.json")


def test_a_promoter_appends_to_the_log_and_makes_no_artifacts(store_of: StoreOf) -> None:
    first, second = promoted(store_of)
    store = store_of("promoter")
    assert store.get("train", second.key).verify() == []
    roll_back(store)
    assert [entry.kind for entry in PromotionLog(store.backend).history(MODEL)] == ["promote", "promote", "rollback"]
    with refused(ArtifactError, "PutObject", "AccessDenied"):
        train(store, "three")
    with refused(ArtifactError, "DeleteObject", "AccessDenied", where=PREFIX):
        store.backend.delete(f"train/{first.key}/manifest.1.json")


def test_a_consumer_pulls_and_says_so_and_changes_nothing_else(store_of: StoreOf, tmp_path: Path) -> None:
    _, second = promoted(store_of)
    before = {path: stat.modified for path, stat in store_of("owner").backend.list("").items()}
    place, home = Place(tmp_path / "serving"), tmp_path / "home"
    store = store_of("consumer")
    store = open_store(store.backend.location, cache=place.download)
    outcome = pull(draft_named(f"models:/{MODEL}@champion", home, store), store, place)
    assert outcome.held.digest == second.digest
    empty(MODEL, place.link, 30.0).model_copy(update={"digest": second.digest}).say(store.backend)
    (seen,) = followers(store.backend)
    assert seen.is_champion
    with refused(ArtifactError, "PutObject", "AccessDenied"):
        roll_back(store)
    after = {path: stat.modified for path, stat in store_of("owner").backend.list("").items()}
    assert {path for path in after if after[path] != before.get(path)} == {
        path for path in after if path.startswith("followers/")
    }
    assert before.keys() <= after.keys()


def test_a_publisher_fills_productions_store_from_one_that_production_cannot_reach(
    users: dict[str, S3Server], store_of: StoreOf, tmp_path: Path
) -> None:
    """Two buckets on one server; nobody has credentials for both."""
    here = open_store(f"s3://{BUCKET}/{PREFIX}", cache=tmp_path / "here", environment=users["trainer"].environment())
    made = [train(here, name) for name in ("one", "two")]
    for number, artifact in enumerate(made, start=1):
        promote(store_of("promoter"), artifact, str(number))
    bucket_client(users["owner"].user("production")).create_bucket(Bucket=THEIRS)
    publisher, consumer = (users["owner"].user(f"their-{role}") for role in ("publisher", "consumer"))
    for role in ("publisher", "consumer"):
        text = (POLICIES / f"{role}.json").read_text(encoding="utf-8")
        users["owner"].allow(f"their-{role}", text.replace("BUCKET", THEIRS).replace("PREFIX", PREFIX))
    store_of("trainer")  # whose credentials the environment has from now on
    credentials = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    variables = {f"{PREFIX_OF_VARIABLES}{name}": publisher.environment()[name] for name in credentials}
    found = production_of(here, tmp_path, {**os.environ, **variables, STORE: f"s3://{THEIRS}/{PREFIX}"})
    assert found is not None
    production = found.store(tmp_path / "publisher")
    for _ in range(2):
        publishing = Publishing(here, production, PromotionLog(here.backend), MODEL)
        publishing.publish()
    assert publishing.complete
    with refused(ArtifactError, "DeleteObject", "AccessDenied"):
        production.backend.delete(f"{LOG}/2.json")
    place = Place(tmp_path / "serving")
    store = open_store(found.location, cache=place.download, environment=consumer.environment())
    assert pull(draft_named(f"models:/{MODEL}@champion", tmp_path, store), store, place).held.digest == made[1].digest
    elsewhere = open_store(here.backend.location, cache=tmp_path / "nothing", environment=consumer.environment())
    with refused(ArtifactError, "AccessDenied"):
        elsewhere.backend.list("")
