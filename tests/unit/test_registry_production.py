"""Where production is, by the environment; and that nothing here waits for it or fails with it."""

import socket
from pathlib import Path

import pytest

from deepspec.errors import ArtifactError, RecipeError
from deepspec.registry.errors import OtherHistory, TrackingError
from deepspec.registry.following import Followed, follow
from deepspec.registry.production import PREFIX, STORE, Production, production_of
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Store, open_store
from deepspec.store.backends import s3
from tests.fixtures.refused import refused
from tests.fixtures.serving import MODEL, promote, roll_back, train
from tests.fixtures.store import Around

OURS = {
    "AWS_ACCESS_KEY_ID": "ours",
    "AWS_SECRET_ACCESS_KEY": "our secret",
    "AWS_SESSION_TOKEN": "our token",
    "AWS_ENDPOINT_URL_S3": "http://ours.test",
    "MLFLOW_TRACKING_URI": "http://our-mlflow.test",
    "MLFLOW_TRACKING_TOKEN": "our token",
    "DEEPSPEC_STORE": "s3://ours",
    "PATH": "/bin",
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", OURS["MLFLOW_TRACKING_URI"])


def production(store: Store, tmp_path: Path, **theirs: str) -> Production:
    found = production_of(store, tmp_path, {**OURS, **{f"{PREFIX}{name}": value for name, value in theirs.items()}})
    assert found is not None
    return found


def test_without_its_store_there_is_no_production(store: Store, tmp_path: Path) -> None:
    assert production_of(store, tmp_path, OURS) is None
    assert production_of(store, tmp_path, {**OURS, STORE: "", f"{PREFIX}AWS_PROFILE": ""}) is None


def test_where_it_has_no_credentials_ours_hold_and_its_mlflow_is_never_ours(store: Store, tmp_path: Path) -> None:
    found = production(store, tmp_path, STORE="s3://theirs/x")
    assert found.environment["AWS_ACCESS_KEY_ID"] == "ours"
    assert found.environment["DEEPSPEC_STORE"] == found.location == "s3://theirs/x"
    assert not found.has_mlflow
    assert "our secret" not in repr(found)


def test_what_belongs_together_is_its_own_as_soon_as_one_is(store: Store, tmp_path: Path) -> None:
    theirs = {
        "STORE": "s3://theirs/x",
        "AWS_PROFILE": "theirs",
        "AWS_ENDPOINT_URL": "",
        "MLFLOW_TRACKING_URI": "http://their-mlflow.test",
        "MLFLOW_TRACKING_USERNAME": "them",
    }
    assert dict(production(store, tmp_path, **theirs).environment) == {
        "AWS_PROFILE": "theirs",
        "MLFLOW_TRACKING_URI": "http://their-mlflow.test",
        "MLFLOW_TRACKING_USERNAME": "them",
        "DEEPSPEC_STORE": "s3://theirs/x",
        "PATH": "/bin",
        "AWS_MAX_ATTEMPTS": "3",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    }


@pytest.mark.parametrize(
    ("theirs", "where"),
    [
        ({"STROE": "/p"}, "STROE"),
        ({"AWS_CA_BUNDLE": "/p", "STORE": "/p"}, "AWS_CA_BUNDLE"),
        ({"MLFLOW_TRACKING_URI": "http://x.test"}, "STORE"),
        ({"STORE": "/p", "AWS_ACCESS_KEY_ID": "a"}, "AWS_ACCESS_KEY_ID"),
        ({"STORE": "HERE"}, "STORE"),
        ({"STORE": "/p", "MLFLOW_TRACKING_URI": OURS["MLFLOW_TRACKING_URI"]}, "MLFLOW_TRACKING_URI"),
    ],
)
def test_what_cannot_be_meant_is_refused(store: Store, tmp_path: Path, theirs: dict[str, str], where: str) -> None:
    theirs = {name: value.replace("HERE", store.backend.location) for name, value in theirs.items()}
    with refused(RecipeError, where=f"{PREFIX}{where}"):
        production(store, tmp_path, **theirs)
    with refused(RecipeError, where=f"{PREFIX}AWS_ENDPOINT_URL"):
        production(store, tmp_path, STORE="s3://theirs/x", AWS_ENDPOINT_URL="ftp://x").store(tmp_path)


def followed(store: Store, tmp_path: Path, **theirs: str) -> Followed:
    return follow(store, tmp_path, MODEL, production(store, tmp_path, **theirs))


def test_what_was_promoted_follows_and_is_said_once(store: Store, tmp_path: Path) -> None:
    place = str(tmp_path / "production")
    assert followed(store, tmp_path, STORE=place) == Followed()
    for number in ("1", "2"):
        promote(store, train(store, number), number)
    (said,) = followed(store, tmp_path, STORE=place).notes
    assert "2 entries" in said
    assert place in said
    assert followed(store, tmp_path, STORE=place) == Followed()
    log = PromotionLog(open_store(place).backend)
    assert log.history(MODEL) == PromotionLog(store.backend).history(MODEL)


def test_a_store_that_does_not_answer_is_late_and_no_error(store: Store, tmp_path: Path) -> None:
    promote(store, train(store, "one"), "1")
    away = {"STORE": "s3://theirs/x", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
    found = followed(store, tmp_path, **away)
    assert found.error is None
    assert found.done == ()
    for word in (MODEL, "s3://theirs/x", "may be behind", "http://127.0.0.1:1", f"deepspec models reconcile {MODEL}"):
        assert word in str(found.late)


def test_a_store_that_accepts_and_says_nothing_is_not_waited_for_long(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, train(store, "one"), "1")
    monkeypatch.setattr(s3, "_READ_SECONDS_ELSEWHERE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        silent_store = {"STORE": "s3://theirs/x", "AWS_ENDPOINT_URL_S3": address, "AWS_MAX_ATTEMPTS": "1"}
        assert "ReadTimeoutError" in str(followed(store, tmp_path, **silent_store).late)


def test_what_waiting_does_not_help_is_an_error_that_names_productions_variables(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "production")
    promote(store, train(store, "one"), "1")
    followed(store, tmp_path, STORE=place)
    promote(store, train(store, "two"), "2")

    class Refusing(Around):
        def create(self, path: str, data: bytes) -> bool:
            raise ArtifactError(
                f"It takes no {len(data)} bytes.",
                where=f"DEEPSPEC_STORE {place}/{path}",
                remedy="Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            )

    with monkeypatch.context() as patched:
        refusing = Store(Refusing(open_store(place).backend))  # type: ignore[arg-type]
        patched.setattr(Production, "store", lambda *_: refusing)
        error = followed(store, tmp_path, STORE=place).error
    assert isinstance(error, ArtifactError)
    assert "1 entry behind" in error.what
    assert str(error.where).startswith(f"{STORE} {place}")
    assert error.remedy == f"Check {PREFIX}AWS_ACCESS_KEY_ID and {PREFIX}AWS_SECRET_ACCESS_KEY."


def test_a_roll_back_in_production_itself_is_an_error(store: Store, tmp_path: Path) -> None:
    place = str(tmp_path / "production")
    for number in ("1", "2"):
        promote(store, train(store, number), number)
    followed(store, tmp_path, STORE=place)
    roll_back(open_store(place))
    error = followed(store, tmp_path, STORE=place).error
    assert isinstance(error, OtherHistory)
    assert f"deepspec rollback {MODEL} --to 1" in str(error.remedy)


def test_a_process_that_ends_without_an_answer_is_an_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, train(store, "one"), "1")
    monkeypatch.setattr("deepspec.registry.following.sys.executable", "/bin/false")
    found = followed(store, tmp_path, STORE=str(tmp_path / "production"), MLFLOW_TRACKING_URI="http://x.test")
    assert isinstance(found.error, TrackingError)
    assert "code 1" in found.error.what
    assert "all entries" in found.error.what
