"""Roll back and reconcile as commands do them: on a real store and a real MLflow database, with three champions."""

import contextlib
import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from deepspec.account import local_user
from deepspec.errors import BadArgument, DeepspecError, GateFailed
from deepspec.gates.verdict import Reason, Verdict
from deepspec.registry import keys, operations
from deepspec.registry.asker import asker
from deepspec.registry.entries import DraftReference, Promotion
from deepspec.registry.errors import DraftBlocked, DraftDamaged, PromotionConflict, TrackingError, TrackingLost
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.registry.open import tracking_of
from deepspec.registry.promotions import PromotionLog
from deepspec.registry.reconciling import Repaired, reconcile_after
from deepspec.registry.show import show
from deepspec.store import Artifact, Store, open_store
from tasks import promote
from tasks.runtime.job import Job
from tests.fixtures.refused import refused
from tests.fixtures.store import ingredients, put

MODEL = "demo"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """One database for all tests: making one takes seconds; each test has models of its own."""
    return Tracking.embedded(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def home(tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def champions(tracking: Tracking, store: Store, model: str, home: Path) -> list[DraftReference]:
    """Three versions; each was promoted over the one before."""
    del home
    return [promoted(tracking, store, model, registered(tracking, store, model, number)) for number in (1, 2, 3)]


def registered(tracking: Tracking, store: Store, model: str, number: int) -> DraftReference:
    weights = save({"weight": np.full(8, number, dtype=np.float32)})
    made = put(store, ingredients("train", train=number), {"draft/model.safetensors": weights})
    run = tracking.start_pipeline_run("registers", {})
    draft = DraftReference(kind=made.kind, key=made.key, digest=made.digest)
    version = tracking.register(made.directory() / "draft", model, run, {}, draft=draft)
    tracking.finish(run)
    return draft.model_copy(update={"version": version.version, "uri": version.uri})


def promoted(tracking: Tracking, store: Store, model: str, draft: DraftReference) -> DraftReference:
    log = PromotionLog(store.backend)
    champion = log.champion(model)
    reason = Reason(gate="tau", passed=True, measured=4.0, sentence="Better.")
    against = None if champion is None else champion.digest
    verdict = Verdict(accepted=True, reasons=(reason,), challenger=draft.digest, champion=against)
    log.promote(model, draft, verdict, who="nightly", reason="run of the night")
    tracking.reconcile(model, log)
    return draft


def flip_a_bit(store: Store, draft: DraftReference) -> None:
    path = artifact(store, draft).directory() / "draft" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def artifact(store: Store, draft: DraftReference) -> Artifact:
    return store.get(draft.kind, draft.key)


def remake(store: Store, draft: DraftReference) -> None:
    """Its artifact is condemned, and made again with other bytes."""
    found = artifact(store, draft)
    found.condemn("a flipped bit")
    put(store, ingredients("train", train=2), {"draft/model.safetensors": save({"weight": np.zeros(3)})})


def aliases(tracking: Tracking, model: str) -> dict[str, str]:
    return {alias: version.version for version in tracking.list_versions(model) for alias in version.aliases}


@pytest.mark.parametrize("harm", [flip_a_bit, remake])
def test_a_roll_back_to_a_damaged_version_is_refused_and_names_the_next(
    harm: Callable[[Store, DraftReference], None],
    champions: list[DraftReference],
    store: Store,
    home: Path,
    model: str,
    tracking: Tracking,
) -> None:
    harm(store, champions[1])
    before = PromotionLog(store.backend).history(model)
    with refused(DraftDamaged, "Version 2", where=model) as caught:
        operations.rollback(home, store, model, None, "slower")
    assert f"deepspec rollback {model} --to 1" in str(caught.value.remedy)
    assert PromotionLog(store.backend).history(model) == before
    operations.rollback(home, store, model, "1", "slower")
    assert aliases(tracking, model) == {"champion": "1"}
    flip_a_bit(store, champions[2])
    with refused(DraftDamaged, "Version 3", where=model):
        operations.rollback(home, store, model, "3", "and back")


def test_aliases_follow_the_log(tracking: Tracking, champions: list[DraftReference], store: Store, model: str) -> None:
    assert aliases(tracking, model) == {"champion": "3", "previous": "2"}
    log = PromotionLog(store.backend)
    for number, verdict in (("4", "refused"), ("5", "accepted"), ("6", None)):
        draft = registered(tracking, store, model, int(number))
        if verdict is not None:
            tracking.retag(tracking.version_of(model, draft), {keys.VERDICT: verdict})
    tracking.reconcile(model, log)
    assert aliases(tracking, model) == {"champion": "3", "previous": "2", "challenger": "5"}
    log.rollback(model, who="me")
    tracking.set_alias(model, "challenger", "1")
    tracking.reconcile(model, log)
    assert aliases(tracking, model) == {"champion": "2", "previous": "1", "challenger": "5"}
    assert log.rollback(model, who="me").champion == champions[0]  # where `previous` pointed
    tracking.reconcile(model, log)
    assert aliases(tracking, model) == {"champion": "1", "challenger": "5"}


def test_runs_that_end_at_once_all_follow_the_log(
    tracking: Tracking, champions: list[DraftReference], store: Store, model: str, home: Path
) -> None:
    """MLflow looks for a row and inserts it in two steps, and refuses one of two writers."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    others = [tracking_of(home) for _ in range(2)]
    for other in others:
        other.list_models()  # connected before they start
    log, failed = PromotionLog(store.backend), []

    def end(other: Tracking, value: str) -> None:
        together.wait()
        try:
            other.reconcile(model, log)
            other.retag(other.version_of(model, champions[0]), {"said": value})
        except TrackingError as error:
            failed.append(error)

    for value in "12345":
        for alias in (keys.CHAMPION, keys.PREVIOUS):
            client.delete_registered_model_alias(model, alias)
        together = threading.Barrier(len(others))
        threads = [threading.Thread(target=end, args=(other, value)) for other in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert aliases(tracking, model) == {"champion": "3", "previous": "2"}
    assert failed == []


def test_a_promotion_while_the_aliases_are_set_wins(
    tracking: Tracking, champions: list[DraftReference], store: Store, model: str
) -> None:
    log = PromotionLog(store.backend)
    tracking.set_alias(model, "champion", "1")

    class Overtaken(PromotionLog):
        """A log that another run appends to, and projects, right after it was read for the first time."""

        asked = 0

        def history(self, model: str) -> tuple[Promotion, ...]:
            read = super().history(model)
            self.asked += 1
            if self.asked == 1:
                log.rollback(model, who="somebody else")
                tracking.reconcile(model, log)
            return read

    done = tracking.reconcile(model, Overtaken(store.backend))
    assert aliases(tracking, model) == {"champion": "2", "previous": "1"}
    assert (done.model, done.after, champions[1].version) == (model, "2", "2")


def after_a_run(tracking: Tracking, store: Store, model: str, draft: DraftReference, **changed: Any) -> Repaired:
    arguments = {
        "verdict": None,
        "since": len(PromotionLog(store.backend).history(model)),
        "registered_at": tracking.shown_uri,
        **changed,
    }
    return reconcile_after(store, PromotionLog(store.backend), tracking, model, draft, **arguments)


def test_an_alias_moved_by_hand_is_set_back_and_said(
    tracking: Tracking, champions: list[DraftReference], store: Store, model: str, home: Path
) -> None:
    assert after_a_run(tracking, store, model, champions[2]).notes == ()
    tracking.set_alias(model, "champion", "1")
    repaired = after_a_run(tracking, store, model, champions[2])
    (note,) = repaired.notes
    assert "champion pointed to version 1" in note
    assert "version 3 is the champion" in note
    assert repaired.version.aliases == ("champion",)
    assert after_a_run(tracking, store, model, champions[2]).notes == ()
    tracking.set_alias(model, "previous", "1")
    tracking.set_alias(model, "challenger", "1")
    assert operations.rollback(home, store, f"models:/{model}@previous", None, "slower").said.startswith(
        f"{model}: rolled back to version 2"  # whatever MLflow's alias says
    )
    tracking.set_alias(model, "previous", "3")
    tracking.set_alias(model, "challenger", "1")
    notes = after_a_run(tracking, store, model, champions[1]).notes
    assert ["alias previous" in note for note in notes] == [True, False]
    assert "there is none, and it is removed" in notes[1]
    assert aliases(tracking, model) == {"champion": "2", "previous": "1"}


def test_aliases_that_an_earlier_deepspec_did_not_set_are_set_and_not_said(
    tracking: Tracking, champions: list[DraftReference], store: Store, model: str
) -> None:
    from mlflow import MlflowClient

    MlflowClient(tracking.uri).delete_registered_model_alias(model, "previous")
    assert after_a_run(tracking, store, model, champions[2]).notes == ()
    assert aliases(tracking, model) == {"champion": "3", "previous": "2"}


def test_a_roll_back_that_mlflow_does_not_hear_of_is_not_to_be_repeated(
    tracking: Tracking, champions: list[DraftReference], store: Store, home: Path, model: str
) -> None:
    """The entry is written, and the same command would now go one further back."""
    database = sqlite3.connect(tracking.uri.removeprefix("sqlite:///"), isolation_level=None)
    database.execute(
        "CREATE TRIGGER full BEFORE UPDATE ON registered_model_aliases BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    try:
        with refused(TrackingError, "version 2 is champion", "entry 4", "disk full") as caught:
            operations.rollback(home, store, model, None, "slower")
    finally:
        database.execute("DROP TRIGGER full")
        database.close()
    assert f"deepspec models reconcile {model}" in str(caught.value.remedy)
    assert PromotionLog(store.backend).champion(model) == champions[1]
    operations.reconcile(home, store, model)
    assert aliases(tracking, model) == {"champion": "2", "previous": "1"}


def test_an_alias_of_a_model_without_a_champion_is_removed_and_said(
    tracking: Tracking, store: Store, model: str, home: Path
) -> None:
    del home
    draft = registered(tracking, store, model, 1)
    assert after_a_run(tracking, store, model, draft).notes == ()
    tracking.set_alias(model, "champion", "1")
    (note,) = after_a_run(tracking, store, model, draft).notes
    assert "champion pointed to version 1" in note
    assert aliases(tracking, model) == {}


def test_what_was_promoted_since_the_run_began_is_no_repair(
    tracking: Tracking, champions: list[DraftReference], store: Store, model: str
) -> None:
    tracking.set_alias(model, "champion", "2")  # as it was before the third entry
    assert after_a_run(tracking, store, model, champions[2], since=2).notes == ()
    assert aliases(tracking, model)["champion"] == "3"
    tracking.set_alias(model, "champion", "1")  # as it was before this run and another one promoted
    assert after_a_run(tracking, store, model, champions[1], since=1).notes == ()
    tracking.set_alias(model, "champion", "1")
    assert after_a_run(tracking, store, model, champions[2], since=2).notes != ()


def test_another_mlflow_is_noticed_and_not_filled(
    tracking: Tracking, champions: list[DraftReference], store: Store
) -> None:
    """One that knows nothing of the model, and has another address than that where the draft was registered."""
    with refused(TrackingError, "http://first", tracking.shown_uri, where="elsewhere"):
        after_a_run(tracking, store, "elsewhere", champions[2], registered_at="http://first")
    assert "elsewhere" not in tracking.list_models()


def test_a_version_that_was_rolled_back_is_promoted_by_a_person_with_a_reason(
    champions: list[DraftReference], store: Store, home: Path, model: str, tracking: Tracking
) -> None:
    name = f"models:/{model}/3"
    operations.rollback(home, store, model, None, "slower")
    put_verdict(store, champions[2], champions[1])
    with refused(DraftBlocked, "slower", where=model):
        operations.promote(home, store, name, "it was the host")
    said = operations.promote(home, store, name, "it was the host", unblock=True).said
    assert len(said) == 2
    entry = PromotionLog(store.backend).history(model)[-1]
    assert (entry.kind, entry.reason, entry.champion.version) == ("promote", "it was the host", "3")
    assert entry.actor is not None
    assert entry.actor.known_by == "local user"
    assert aliases(tracking, model) == {"champion": "3", "previous": "2"}


def put_verdict(store: Store, challenger: DraftReference, champion: DraftReference) -> Artifact:
    reason = Reason(gate="tau", passed=True, measured=4.0, sentence="Better.")
    verdict = Verdict(accepted=True, reasons=(reason,), challenger=challenger.digest, champion=champion.digest)
    made = ingredients("gate", draft=challenger.digest)
    return put(store, made, {"verdict.json": json.dumps(verdict.to_json()).encode()})


def test_a_draft_that_was_started_from_another_is_itself_registered_again(
    tracking: Tracking, store: Store, model: str, home: Path
) -> None:
    def weights(value: float) -> dict[str, bytes]:
        return {"draft/model.safetensors": save({"weight": np.full(8, value, dtype=np.float32)})}

    first = put(store, ingredients("train", number=1), weights(1.0))
    draft = put(store, ingredients("train", number=2), weights(2.0), init=first)
    measured = {"evaluation.json": json.dumps({"benchmarks": {}}).encode()}
    evaluation = put(store, ingredients("evaluate"), measured, draft=draft)
    said = {"registration.json": json.dumps({"name": model, "version": "1", "uri": f"models:/{model}/1"}).encode()}
    put(store, ingredients("register"), said, draft=draft, evaluation=evaluation)
    assert "Registered again: version 1" in operations.reconcile(home, store, model).said
    (version,) = tracking.list_versions(model)
    assert version.tags[keys.DRAFT_DIGEST] == draft.digest
    assert keys.lineage_in(version.tags)["train"][0] == draft.key
    downloaded = tracking.download(version, home / "again") / "model.safetensors"
    assert downloaded.read_bytes() == weights(2.0)["draft/model.safetensors"]


def test_an_unblocked_version_without_a_verdict_waits_for_the_next_run(
    champions: list[DraftReference], store: Store, home: Path, model: str
) -> None:
    operations.rollback(home, store, model, None, "slower")
    said = operations.promote(home, store, f"models:/{model}/3", "it was the host", unblock=True).said
    assert "unblocked" in said[0]
    assert "never judged" in said[1]
    log = PromotionLog(store.backend)
    assert [entry.kind for entry in log.history(model)][-2:] == ["rollback", "unblock"]
    assert log.champion(model) == champions[1]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.registry.mlflow.tracking.PATIENCE_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def promotes(
    tracking: Tracking, store: Store, home: Path, model: str, draft: DraftReference, verdict: Artifact
) -> Callable[[], object]:
    """What a run does at its end: the stage `promote`."""
    said = {"name": model, "version": draft.version, "uri": draft.uri}
    made = ingredients("register", name=model, draft=draft.digest)
    registration = put(store, made, {"registration.json": json.dumps(said).encode()})
    inputs = promote.Inputs(registration=registration, verdict=verdict, draft=artifact(store, draft))
    out = home / f"out-{draft.version}"
    out.mkdir(exist_ok=True)
    job = Job("promote", "k", "r1", home, store, store.get, tracking=tracking, tracking_run="any")
    return lambda: promote.promote.function(inputs, None, out, job)


@pytest.mark.usefixtures("impatient")
def test_without_mlflow_the_champion_stays_and_a_retry_completes_it(
    tracking: Tracking, champions: list[DraftReference], store: Store, home: Path, model: str
) -> None:
    challenger = registered(tracking, store, model, 4)
    verdict = put_verdict(store, challenger, champions[2])

    def run(through: Tracking) -> None:
        promotes(through, store, home, model, challenger, verdict)()

    log = PromotionLog(store.backend)
    with pytest.raises(TrackingLost):
        run(Tracking("http://127.0.0.1:9", None))
    assert log.champion(model) == champions[2]
    run(tracking)
    assert log.champion(model) == challenger
    run(tracking)  # it was cut off after the entry was written
    assert len(log.history(model)) == 4


@pytest.mark.parametrize("first", ["the run", "the person", "both at once"])
def test_of_a_run_and_a_person_that_promote_one_wins_and_the_other_is_refused(
    tracking: Tracking, champions: list[DraftReference], store: Store, home: Path, model: str, first: str
) -> None:
    drafts = [registered(tracking, store, model, number) for number in (4, 5)]
    verdicts = [put_verdict(store, draft, champions[2]) for draft in drafts]
    by = {
        "the run": promotes(tracking, store, home, model, drafts[0], verdicts[0]),
        "the person": lambda: operations.promote(home, store, f"models:/{model}/5", "it is time"),
    }
    refusals: list[DeepspecError] = []

    def ask(who: str) -> None:
        if first == "both at once":
            together.wait()
        try:
            by[who]()
        except (PromotionConflict, GateFailed) as error:
            refusals.append(error)

    together = threading.Barrier(len(by))
    threads = [threading.Thread(target=ask, args=(who,)) for who in sorted(by, key=lambda who: who != first)]
    for thread in threads:
        thread.start()
        if first != "both at once":
            thread.join()
    for thread in threads:
        thread.join()
    log = PromotionLog(store.backend)
    history, (refusal,) = log.history(model), refusals
    assert len(history) == 4
    assert refusal.remedy
    assert history[-1].champion in drafts
    won = history[-1].champion.version
    assert first == "both at once" or won == {"the run": "4", "the person": "5"}[first]
    tracking.reconcile(model, log)
    assert aliases(tracking, model) == {"champion": won, "previous": "3"}


def test_a_roll_back_to_a_version_that_was_deleted_in_mlflow_is_refused(
    tracking: Tracking, champions: list[DraftReference], store: Store, home: Path, model: str
) -> None:
    tracking._server.client.delete_model_version(model, "2")
    before = PromotionLog(store.backend).history(model)
    with refused(TrackingError, champions[1].digest[:12], "version 2", where=model) as caught:
        operations.rollback(home, store, model, None, "slower")
    assert f"deepspec models reconcile {model}" in str(caught.value.remedy)
    assert PromotionLog(store.backend).history(model) == before


@contextlib.contextmanager
def mlflow_server(user: str | None) -> Iterator[str]:
    """An MLflow server that knows one experiment, and its current user if there is one."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.endswith("/users/current")
            body: dict[str, Any] = {
                "experiment": {"experiment_id": "1", "lifecycle_stage": "active", "name": "deepspec"}
            }
            self.send_response(404 if known and user is None else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps({"user": {"username": user}} if known else body).encode())

        def log_message(self, *arguments: object) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_who_asked_is_whom_mlflow_let_in(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEC_USER", "the boss")
    with mlflow_server("ann") as address:
        assert str(asker(Tracking(address, None), store.backend)) == "ann (MLflow user), claimed: the boss"
    with mlflow_server(None) as address:
        assert str(asker(Tracking(address, None), store.backend)) == f"{local_user()}, claimed: the boss"


def test_show_says_what_is_known(
    tracking: Tracking, champions: list[DraftReference], store: Store, home: Path, model: str
) -> None:
    put_verdict(store, champions[2], champions[1])
    operations.rollback(home, store, model, None, "slower")
    page = show(home, store, f"models:/{model}/3")
    assert page.verdict is not None
    assert (page.verdict["accepted"], page.verdict["sentence"]) == (True, "Accepted: Better.")
    assert "slower" in str(page.blocked)
    assert page.entries == (3,)
    assert [item.kind for item in page.lineage] == ["train"]
    served = show(home, store, model)
    assert (served.version, served.aliases, served.blocked) == ("2", ("champion",), None)
    with refused(BadArgument, "nothing", where=str(home)):
        show(home, store, "nothing")
    assert tracking.list_versions("nothing") == ()
