"""MLflow through its own client: what stands there after we wrote, and that nothing else happened."""

import contextlib
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import RecipeError
from deepspec.evaluation.results import Evaluation, MeanResult
from deepspec.progress import SILENT
from deepspec.registry import keys
from deepspec.registry.backup import backup
from deepspec.registry.entries import DraftReference
from deepspec.registry.errors import TrackingError, TrackingLost
from deepspec.registry.mlflow import outbox
from deepspec.registry.mlflow.connection import Connection
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.registry.promotions import PromotionLog
from deepspec.store.backends.local import LocalBackend
from tests.fixtures import results
from tests.fixtures.refused import refused
from tests.fixtures.verdicts import judged

EVALUATION = Evaluation(
    benchmarks={
        "arithmetic": results.benchmark(4.5, tau_ci95=(4.2, 4.8), conditional_acceptance=(0.9, 0.8), speedup=2.1),
        "chat": results.benchmark(3.5, tau_ci95=(3.2, 3.8), conditional_acceptance=(0.8, None), speedup=2.0),
    },
    macro=MeanResult(tau=4.0, speedup=2.05),
)


@pytest.mark.parametrize("name", ["a%2Fb", "a?b", "what?", "a#b", "100%25", "a\tb", "a%E4"])
def test_a_home_that_an_address_cannot_name_is_refused(name: str, tmp_path: Path) -> None:
    home = tmp_path / name
    home.mkdir()
    with refused(RecipeError, "MLflow", where=str(home)):
        Tracking.embedded(home)
    with refused(RecipeError, "MLflow", where=str(home)):
        backup(tmp_path / "backup", home, SILENT, print)
    assert not list(home.iterdir())
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("name", ["a b", "50%", "ä", "a;b", "a@b:c", "a&b=c", "+"])
def test_what_mlflow_makes_of_a_home_that_is_taken_is_that_home(name: str, tmp_path: Path) -> None:
    from mlflow.utils.file_utils import local_file_uri_to_path
    from sqlalchemy.engine import make_url

    home = tmp_path / name
    tracking = Tracking.embedded(home)
    assert make_url(tracking.uri).database == str(home / "mlflow.db")
    assert local_file_uri_to_path(str(home / "mlartifacts")) == str(home / "mlartifacts")


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return Tracking.embedded(tmp_path_factory.mktemp("home"), "tests")


@pytest.fixture
def client(tracking: Tracking) -> Any:
    run = tracking.start_pipeline_run("opens MLflow", {})
    tracking.finish(run)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test runs in an empty folder and leaves it and the environment as they were."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    assert list(folder.iterdir()) == []
    assert "MLFLOW_TRACKING_URI" not in os.environ


def a_draft(folder: Path, content: str = "weights") -> tuple[Path, DraftReference]:
    directory = folder / f"draft-{content}"
    (directory / "more").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(content.encode() * 100)
    (directory / "more" / "calibration.json").write_text("[1.0]")
    return directory, DraftReference(kind="calibrate", key=f"key-{content}", digest=f"digest-{content}")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def downloaded(directory: Path) -> dict[str, bytes]:
    """What was registered, without the two files that are there for MLflow's own pages and functions."""
    found = contents(directory)
    assert found.pop("MLmodel").startswith(b"model_id: m-")
    assert found.pop("registered_model_meta")
    return found


def test_how_to_open_it_names_the_database_from_wherever_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "home" / "mlflow.db") in Tracking.embedded(Path("home").absolute()).ui_command


def test_a_pipeline_run_carries_parameters_and_tags(tracking: Tracking, client: Any) -> None:
    tags = {keys.RECIPE: "tiny", **keys.lineage_tag({"train": ("k" * 64, "d" * 64)})}
    run_id = tracking.start_pipeline_run("a run", {"train.lr": 3e-4, "draft.ids": [1, 3], "name": "tiny"}, tags)
    tracking.finish(run_id, tags={keys.STATUS: "promoted"})
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.lr": "0.0003", "draft.ids": "[1, 3]", "name": "tiny"}
    assert keys.lineage_in(run.data.tags) == {"train": ("k" * 64, "d" * 64)}
    assert run.data.tags["deepspec.status"] == "promoted"
    assert keys.undocumented(keys.Entity.RUN, keys.Sort.TAG, run.data.tags) == []


def test_more_parameters_than_one_batch_holds(tracking: Tracking, client: Any) -> None:
    params = {f"field{n}": n for n in range(250)}
    run_id = tracking.start_pipeline_run("many", params)
    assert client.get_run(run_id).data.params == {name: str(n) for name, n in params.items()}


def test_a_long_value_is_cut_and_kept_in_full(tracking: Tracking, client: Any, tmp_path: Path) -> None:
    run_id = tracking.start_pipeline_run("long", {"data.source": "x" * 7000, "short": "y"})
    writer = tracking.writer(run_id)
    writer.tags({"note": "z" * 9000})
    writer.flush()
    run = client.get_run(run_id)
    assert len(run.data.params["data.source"]) == 6000
    assert run.data.params["data.source"].endswith("(7000 characters, in full in long-values.json)")
    assert len(run.data.tags["note"]) == 8000
    full = Path(client.download_artifacts(run_id, keys.LONG_VALUES, str(tmp_path)))
    assert "x" * 7000 in full.read_text()


def test_names_that_mlflow_would_refuse_arrive_spelled_otherwise(tracking: Tracking, client: Any) -> None:
    run_id = tracking.start_pipeline_run("odd names", {"a//b": 1, "../up": 2, "what?!": 3})
    writer = tracking.writer(run_id)
    writer.metrics({"accept_rate@1": 0.5, "/absolute": 1.0})
    writer.flush()
    run = client.get_run(run_id)
    assert set(run.data.params) == {"a_b", "_up", "what__"}
    assert run.data.metrics == {"accept_rate_at_1": 0.5, "_absolute": 1.0}


def test_a_child_run_records_metrics_inputs_and_artifacts(tracking: Tracking, client: Any, tmp_path: Path) -> None:
    parent = tracking.start_pipeline_run("parent", {})
    plot = tmp_path / "plot.svg"
    plot.write_text("<svg/>")
    with tracking.child_run(parent, "train") as run:
        for step in range(1200):
            run.metric(step, "accept_rate@1", step / 2000, "ratio")
        run.metric(3, "loss", 1.5, "nats")
        run.params({"lr": 1e-3})
        run.dataset("tokens/train", "a" * 64, "tokens/123", {"rows": 7}, context="training")
        run.artifact(plot, "plots")
    (record,) = children(client, parent)
    assert record.info.status == "FINISHED"
    assert record.data.tags["mlflow.parentRunId"] == parent
    assert record.data.tags["deepspec.unit.loss"] == "nats"
    assert keys.undocumented(keys.Entity.CHILD, keys.Sort.TAG, record.data.tags) == []
    history = client.get_metric_history(record.info.run_id, "accept_rate_at_1")
    assert {m.step: m.value for m in history} == {step: step / 2000 for step in range(1200)}
    assert [a.path for a in client.list_artifacts(record.info.run_id, "plots")] == ["plots/plot.svg"]
    given = record.inputs.dataset_inputs[0]
    assert (given.dataset.name, given.dataset.digest) == ("tokens/train", "a" * 36)
    assert {t.key: t.value for t in given.tags} == {keys.INPUT_DIGEST: "a" * 64, "mlflow.data.context": "training"}
    assert '"rows": 7' in given.dataset.profile


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_child_run_that_breaks_keeps_its_metrics_and_says_so(
    tracking: Tracking, client: Any, error: type[BaseException], status: str
) -> None:
    parent = tracking.start_pipeline_run("parent", {})

    def breaks() -> None:
        with tracking.child_run(parent, "train") as run:
            run.metric(0, "loss", 2.0, "nats")
            raise error

    with pytest.raises(error):
        breaks()
    (record,) = children(client, parent)
    assert record.info.status == status
    assert record.data.metrics == {"loss": 2.0}


def test_a_run_of_which_nobody_heard_is_deleted_at_the_end(tracking: Tracking, client: Any) -> None:
    """The server made it, was killed, and is asked again: neither the parent nor a child is there twice."""
    process = {keys.RUN_ID: "20261203-020000-aaaaaa"}
    twice = [tracking.start_pipeline_run("tiny", {}, process) for _ in range(2)]
    children_twice = []
    for _ in range(2):
        with tracking.child_run(twice[1], "train") as run:
            children_twice.append(run)
            run.metric(0, "loss", 1.0, "nats")
    other = tracking.start_pipeline_run("another process", {}, {keys.RUN_ID: "20261203-020000-bbbbbb"})
    (lost_child, _) = (one.info.run_id for one in children(client, twice[1]))
    client.update_run(lost_child, status="RUNNING")
    for unheard in (twice[0], lost_child):
        del tracking._made[unheard]
    tracking.finish(twice[1])
    left = {run.info.run_id: run.info.status for run in client.search_runs([tracking.experiment_id])}
    assert left[twice[1]] == "FINISHED"
    assert left[other] == "RUNNING"
    assert not {twice[0], lost_child} & set(left)
    assert [run.info.status for run in children(client, twice[1])] == ["FINISHED"]


def test_of_a_dead_run_only_what_still_runs_is_ended(tracking: Tracking, client: Any) -> None:
    parent = tracking.start_pipeline_run("parent", {})
    with tracking.child_run(parent, "train"):
        pass
    tracking.end_dead(parent, "KILLED", "interrupted")
    (child,) = children(client, parent)
    assert (child.info.status, client.get_run(parent).info.status) == ("FINISHED", "KILLED")
    tracking.end_dead(parent, "FAILED", "failed")
    ended = client.get_run(parent)
    assert (ended.info.status, ended.data.tags[keys.STATUS]) == ("KILLED", "interrupted")


def children(client: Any, parent: str) -> list[Any]:
    """Child runs of a run."""
    experiment = client.get_run(parent).info.experiment_id
    return list(client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'"))


@pytest.fixture
def away(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """MLflow does not answer while this is set."""
    unanswered = threading.Event()
    answered = tracking._server.named_errors

    @contextlib.contextmanager
    def named_errors() -> Iterator[None]:
        if unanswered.is_set():
            raise tracking._server.lost()
        with answered():
            yield

    monkeypatch.setattr(tracking._server, "named_errors", named_errors)
    for module in ("outbox", "tracking"):
        monkeypatch.setattr(f"deepspec.registry.mlflow.{module}.AGAIN_SECONDS", 0.01)
    return unanswered


@pytest.mark.parametrize("first", ["child", "metrics", "end"])
def test_what_mlflow_does_not_hear_at_once_it_hears_later(
    tracking: Tracking, client: Any, away: threading.Event, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it goes away: nothing is raised, and in the end all is there, in order."""
    parent = tracking.start_pipeline_run("parent", {})
    if first == "child":
        away.set()
    with tracking.child_run(parent, "train") as run:
        run.params({"train.lr": "x" * 7000})
        if first == "metrics":
            away.set()
        for step in range(600):
            run.metric(step, "loss", float(step), "nats")
        run.flush()
        if first == "end":
            away.set()
    assert not tracking._outbox.settle(0.05)
    away.clear()
    assert tracking._outbox.settle(30)
    (record,) = children(client, parent)
    assert record.info.status == "FINISHED"
    assert record.info.end_time >= record.info.start_time
    history = client.get_metric_history(record.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, float(step)) for step in range(600)]
    assert record.data.tags[keys.UNIT.format(metric="loss")] == "nats"
    assert [file.path for file in client.list_artifacts(record.info.run_id)] == [keys.LONG_VALUES]
    assert len(caplog.records) == 1, "once it is said"


def test_what_needs_mlflow_waits_for_it_and_says_so(
    tracking: Tracking, client: Any, away: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tracking.start_pipeline_run("parent", {})
    said: list[str] = []
    waited: list[None] = []

    @contextlib.contextmanager
    def waiting() -> Iterator[None]:
        yield
        waited.append(None)
        if len(waited) == 3:
            away.clear()

    away.set()
    tracking.writer(parent).tags({"before": "it"})
    found = tracking.patiently(lambda: client.get_run(parent).data.tags["before"], said.append, waiting)
    assert found == "it", "what came before was sent first"
    assert len(said) == 1
    monkeypatch.setattr("deepspec.registry.mlflow.tracking.PATIENCE_SECONDS", 0.1)
    away.set()
    with refused(TrackingLost, "MLflow's server", where=tracking._server.where):
        tracking.patiently(tracking.list_models, said.append)
    away.clear()
    with refused(TrackingError, "MLflow failed"):  # refused, and not asked again
        tracking.patiently(lambda: tracking._end(tracking._sender(lambda: "no such run"), "FINISHED"), said.append)


def test_a_refusal_is_an_error_at_once_and_a_warning_later(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[str] = []
    away = threading.Event()

    def message(text: str) -> outbox.Message:
        def send() -> None:
            if away.is_set():
                raise TrackingLost("It does not answer.")
            if text == "refused":
                raise TrackingError("No.")
            sent.append(text)

        return send

    box = outbox.Outbox(lambda: None)
    with pytest.raises(TrackingError):
        box.send(message("refused"))
    away.set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "AGAIN_SECONDS", 0.01)
        for text in ("one", "refused", "two"):
            box.send(message(text))
        away.clear()
        assert box.settle(10)
    box.send(message("three"))
    assert sent == ["one", "two", "three"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_an_evaluation_becomes_flat_metrics(tracking: Tracking, client: Any) -> None:
    parent = tracking.start_pipeline_run("parent", {})
    with tracking.child_run(parent, "evaluate") as run:
        run.metrics(keys.evaluation_metrics(EVALUATION))
    (record,) = children(client, parent)
    found = record.data.metrics
    assert found["arithmetic/tau"] == 4.5
    assert found["arithmetic/tau_ci95_low"] == 4.2
    assert found["arithmetic/conditional_acceptance_at_2"] == 0.8
    assert found["macro/tau"] == 4.0
    assert "chat/conditional_acceptance_at_2" not in found


def test_the_registered_model_is_the_drafts_directory(
    tracking: Tracking, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = tracking.start_pipeline_run("registers", {})
    directory, draft = a_draft(tmp_path)
    tags = keys.version_tags(
        recipe="tiny",
        code_version="0.1.0",
        run_id="20261123-1",
        artifacts={"train": ("k1", "d1"), "evaluate": ("k2", "d2")},
        evaluation=EVALUATION,
    )
    version = tracking.register(directory, "tiny.1", run_id, tags, draft=draft)
    assert (version.name, version.version, version.uri, version.created) == ("tiny.1", "1", "models:/tiny.1/1", True)
    stored = client.get_model_version("tiny.1", "1")
    assert stored.status == "READY"
    assert stored.run_id == run_id
    assert stored.tags == dict(version.tags)
    assert stored.tags["deepspec.tau.arithmetic"] == "4.5000"
    assert stored.tags["deepspec.tau.macro"] == "4.0000"
    assert keys.lineage_in(stored.tags)["evaluate"] == ("k2", "d2")
    assert stored.tags["deepspec.draft.digest"] == draft.digest
    assert keys.undocumented(keys.Entity.VERSION, keys.Sort.TAG, stored.tags) == []
    assert downloaded(tracking.download(version, tmp_path / "back")) == contents(directory)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)  # as anybody outside deepspec would
    from mlflow.artifacts import download_artifacts

    tracking.set_alias("tiny.1", "newest", "1")
    for uri in (version.uri, "models:/tiny.1@newest"):
        assert downloaded(Path(download_artifacts(uri))) == contents(directory)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def test_the_card_lies_beside_the_files_and_is_replaced(tracking: Tracking, client: Any, tmp_path: Path) -> None:
    run_id = tracking.start_pipeline_run("registers", {})
    directory, draft = a_draft(tmp_path, "described")
    for card in ("# one\n", "# two\n", "# two\n", "# long\n" + "| a row |\n" * 1000):
        version = tracking.register(directory, "described", run_id, {}, draft=draft, card=card)
        assert version.version == "1"
        back = downloaded(tracking.download(version, tmp_path / f"back-{len(card)}-{card[2]}"))
        assert back == contents(directory) | {"README.md": card.encode()}
        description = client.get_model_version("described", "1").description
        assert description == card if len(card) < 5000 else description.endswith("row |\n… the rest is in README.md.")
        assert len(description) <= 5000
    # Who registers it without one leaves it as it is.
    tracking.register(directory, "described", run_id, {}, draft=draft)
    assert client.get_model_version("described", "1").description == description


def test_a_verdict_is_first_on_a_versions_page_and_can_be_charted(
    tracking: Tracking, client: Any, tmp_path: Path
) -> None:
    run = tracking.start_pipeline_run("20261202-000000-abc", {})
    directory, draft = a_draft(tmp_path, "judged")
    version = tracking.register(directory, "judged", run, {}, draft=draft, card="# The card")
    refused_by = judged(2.0, 2.5, challenger_digest="c" * 64, champion_digest="d" * 64)
    tracking.say_verdict(version, refused_by)

    def page() -> Any:
        return client.get_model_version(version.name, version.version)

    said = page().description
    assert said.startswith("## Refused\n")
    assert "| gate | 8 | 2.000 | 2.500 | -0.500 | -0.500 to -0.500 |" in said
    assert said.endswith("# The card")
    model = client.get_logged_model(page().source.removeprefix("models:/"))
    metrics = {metric.key: (metric.value, metric.step) for metric in model.metrics}
    assert metrics["verdict/tau/gate"] == (2.0, int(version.version))
    assert metrics["verdict/tau_gain_low/gate"] == (-0.5, int(version.version))
    assert keys.undocumented(keys.Entity.VERSION, keys.Sort.METRIC, metrics) == []
    charted = client.get_metric_history(run, "verdict/tau/gate")
    assert [(point.step, point.value) for point in charted] == [(int(version.version), 2.0)]

    again = tracking.list_versions(version.name)[0]
    tracking.say_verdict(again, refused_by)
    assert len(client.get_metric_history(run, "verdict/tau/gate")) == 1
    tracking.register(directory, "judged", run, {}, draft=draft, card="# Another card")
    assert page().description == said.replace("# The card", "# Another card")
    tracking.say_verdict(tracking.list_versions(version.name)[0], judged(2.0, challenger_digest="c" * 64))
    assert page().description.startswith("## Accepted\n")
    assert page().description.endswith("# Another card")
    assert page().tags[keys.VERDICT] == "accepted"


def test_one_draft_is_registered_once(tracking: Tracking, client: Any, tmp_path: Path) -> None:
    run_id = tracking.start_pipeline_run("registers", {})
    directory, draft = a_draft(tmp_path, "one")
    first = tracking.register(directory, "once", run_id, {}, draft=draft)
    again = tracking.register(directory, "once", run_id, {keys.RECIPE: "other"}, draft=draft)
    assert (again.version, again.created) == (first.version, False)
    other_bytes = DraftReference(kind=draft.kind, key=draft.key, digest="rebuilt with other bytes")
    assert tracking.register(directory, "once", run_id, {}, draft=other_bytes).version == "2"
    assert [v.version for v in tracking.list_versions("once")] == ["2", "1"]
    assert len(client.search_model_versions("name='once'")) == 2
    assert "once" in tracking.list_models()
    assert tracking.list_versions("no-such-model") == ()


def test_the_alias_is_the_projection_of_the_log(tracking: Tracking, client: Any, tmp_path: Path) -> None:
    run_id = tracking.start_pipeline_run("registers", {})
    log = PromotionLog(LocalBackend(tmp_path / "store"))
    drafts = []
    for name in ("old", "new"):
        directory, draft = a_draft(tmp_path, name)
        version = tracking.register(directory, "served", run_id, {}, draft=draft)
        drafts.append(draft.model_copy(update={"version": version.version, "uri": version.uri}))
    tracking.set_alias("served", "champion", "2")  # nobody was promoted: it lies
    repaired = tracking.reconcile("served", log)
    assert (repaired.before, repaired.after, repaired.changed) == ("2", None, True)
    assert client.get_registered_model("served").aliases == {}
    verdict = judged(2.0, challenger_digest=drafts[0].digest)
    log.promote("served", drafts[0], verdict, who="me")
    assert tracking.reconcile("served", log).after == "1"
    assert str(client.get_model_version_by_alias("served", "champion").version) == "1"
    assert tracking.list_versions("served")[1].aliases == ("champion",)
    assert not tracking.reconcile("served", log).changed
    pair = {"challenger_digest": drafts[1].digest, "champion_digest": drafts[0].digest}
    log.promote("served", drafts[1], judged(3.0, 2.0, **pair), who="me")
    moved = tracking.reconcile("served", log)
    assert (moved.before, moved.after) == ("1", "2")
    assert str(client.get_model_version_by_alias("served", "champion").version) == "2"


def test_a_champion_that_mlflow_does_not_know_is_an_error(tracking: Tracking, tmp_path: Path) -> None:
    log = PromotionLog(LocalBackend(tmp_path))
    lost = DraftReference(kind="calibrate", key="k", digest="lost", version="7")
    log.promote("unknown", lost, judged(2.0), who="me")
    with refused(TrackingError, "draft lost", "version 7", where="unknown"):
        tracking.reconcile("unknown", log)


def test_a_version_that_was_numbered_anew_is_found_by_content(tracking: Tracking, tmp_path: Path) -> None:
    run_id = tracking.start_pipeline_run("registers", {})
    directory, draft = a_draft(tmp_path, "moved")
    tracking.register(directory, "moved", run_id, {}, draft=draft)
    log = PromotionLog(LocalBackend(tmp_path / "store"))
    promoted = draft.model_copy(update={"version": "40"})
    log.promote("moved", promoted, judged(2.0), who="me")
    assert tracking.reconcile("moved", log).after == "1"


def test_mlflows_errors_are_typed_and_show_no_password(tracking: Tracking, tmp_path: Path) -> None:
    with refused(TrackingError, "no-such-run"):
        tracking.finish("no-such-run")
    (tmp_path / "mlflow.db").write_bytes(b"this is not a database, whatever its name says" * 50)
    with refused(TrackingError, "MLflow", where="sqlite"):
        Tracking.embedded(tmp_path).start_pipeline_run("x", {})

    def refuse() -> None:
        with Connection("http://me:hunter2@nowhere:1/path", None, "x").named_errors():
            raise ConnectionRefusedError("refused")

    with refused(TrackingError, "refused", where="MLFLOW_TRACKING_URI http://nowhere:1/path") as caught:
        refuse()
    assert "hunter2" not in str(caught.value)


@contextlib.contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers everything with a status; 0: that never answers."""
    ending = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status == 0:
                ending.wait(30)
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"no")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://me:hunter2@127.0.0.1:{server.server_port}"
        ending.set()
        server.shutdown()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user sets who does not want to wait."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, TrackingError, ["(401)", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]),
        (403, TrackingError, ["(403)", "MLFLOW_TRACKING_USERNAME"]),
        (0, TrackingLost, ["ReadTimeoutError"]),
    ],
)
def test_a_server_that_refuses_or_hangs_is_named(
    status: int, kind: type[TrackingError], words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with answering(status) as address:
        tracking = Tracking(address, None)
        place = f"MLFLOW_TRACKING_URI {address.replace('me:hunter2@', '')}"
        with refused(kind, "MLflow's server", where=place) as caught:
            tracking.start_pipeline_run("x", {})
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert not caplog.records


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_gone_is_not_waited_for_twice() -> None:
    with answering(500) as address:
        tracking = Tracking(address, None)
    with refused(TrackingLost, "NewConnectionError"):
        tracking.start_pipeline_run("x", {})
    with answering(401) as address:
        tracking._server.uri = address  # whatever is there now: it is not asked
        with refused(TrackingLost, "NewConnectionError"):
            tracking.finish("x")


def test_patience_ends_and_files_get_more_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own defaults would let a run hang for a quarter of an hour."""
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with answering(401) as address:
        connection = Connection(address, None, "x")
        with pytest.raises(TrackingError):
            connection.open()
    retries, factor, seconds = (int(os.environ[name]) for name in names)
    pauses = sum(factor * 2**count for count in range(1, retries))
    assert 20 <= pauses <= 30, "a restart is bridged"
    assert pauses + (retries + 1) * seconds <= 90, "a server that hangs is given up"
    with connection.transferring():
        assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) > seconds
    assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) == seconds
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    with connection.transferring():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"


def test_nothing_reaches_the_terminal_and_torch_stays_out(tmp_path: Path) -> None:
    """A fresh process on a fresh database: silent, without torch, and warmed up by a thread."""
    script = (
        "import sys, pathlib\n"
        "from deepspec.registry.mlflow.tracking import Tracking\n"
        "assert 'mlflow' not in sys.modules, 'imported too early'\n"
        f"tracking = Tracking.embedded(pathlib.Path({str(tmp_path / 'home')!r}))\n"
        "tracking.warm_up().join()\n"
        "assert 'mlflow' in sys.modules, 'not warmed up'\n"
        "run = tracking.start_pipeline_run('quiet', {'a': 1})\n"
        "tracking.finish(run)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-W", "default", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_experiment_opens_in_the_pages_of_training(tmp_path: Path) -> None:
    """A new one does; so does one that an earlier deepspec made, and what a person has chosen stays."""
    tracking = Tracking.embedded(tmp_path / "home")
    client = tracking._server.client

    def kind() -> str | None:
        return client.get_experiment(tracking.experiment_id).tags.get(keys.EXPERIMENT_KIND)

    assert kind() == keys.TRAINING
    client.delete_experiment_tag(tracking.experiment_id, keys.EXPERIMENT_KIND)
    tracking.start_pipeline_run("a run", {})
    assert kind() == keys.TRAINING
    client.set_experiment_tag(tracking.experiment_id, keys.EXPERIMENT_KIND, "finetuning")
    tracking.start_pipeline_run("a run", {})
    assert kind() == "finetuning"


def test_a_run_gets_the_name_of_its_outcome(tracking: Tracking, client: Any) -> None:
    """At its end, or when a later run ends it for it."""
    ended, dead = (tracking.start_pipeline_run("tiny · 2026-12-01", {}) for _ in range(2))
    tracking.finish(ended, name="tiny · 2026-12-01 · promoted v1")
    for _ in range(2):
        tracking.end_dead(dead, "KILLED", "interrupted")
    names = [client.get_run(run).info.run_name for run in (ended, dead)]
    assert names == ["tiny · 2026-12-01 · promoted v1", "tiny · 2026-12-01 · interrupted"]


def test_a_run_that_waited_for_a_person_gets_the_name_of_what_came_of_it(
    tracking: Tracking, client: Any, tmp_path: Path
) -> None:
    """The version that was promoted, an earlier one, and one of a model that still waits."""
    tags = {keys.STATUS: keys.WAITING}
    names = {}
    for model, version in (("tiny", "1"), ("tiny", "2"), ("other tiny", "2")):
        run = tracking.start_pipeline_run(model, {})
        name = keys.run_name(model, "20261203-020000-aaaaaa", keys.WAITING, version)
        tracking.finish(run, tags=tags, name=name)
        names[run] = name
    directory, draft = a_draft(tmp_path)
    for _ in range(2):
        serves = tracking.register(directory, "tiny", next(iter(names)), {}, draft=draft)
        tracking.name_waiting(replace(serves, version="2"))
        assert [client.get_run(run).info.run_name for run in names] == [
            "tiny · 2026-12-03 · superseded v1",
            "tiny · 2026-12-03 · promoted v2",
            "other tiny · 2026-12-03 · awaiting approval v2",
        ]


def test_what_is_measured_of_versions_stands_with_run_and_version_and_in_one_chart(
    tracking: Tracking, client: Any, tmp_path: Path
) -> None:
    """Also of a version that is found again by a later run, whose measures add nothing to the chart."""
    versions, runs = [], []
    for number, tau in ((1, 3.0), (2, 3.5), (2, 3.5)):
        directory, draft = a_draft(tmp_path / str(len(runs)), f"measured {number}")
        runs.append(tracking.start_pipeline_run("measures", {}))
        version = tracking.register(directory, "measured", runs[-1], {}, draft=draft)
        versions.append(tracking.version_of("measured", draft))
        assert version.version == str(number)
        tracking.measured(versions[-1], runs[-1], {"tau/gate": tau, "version_cost/amount": 2.0})
    assert [client.get_run(run).data.metrics["tau/gate"] for run in runs] == [3.0, 3.5, 3.5]
    logged = client.get_logged_model(versions[1].logged_model)
    assert {(metric.key, metric.value, metric.step) for metric in logged.metrics} >= {("tau/gate", 3.5, 2)}
    chart = tracking.chart_of("measured")
    points = client.get_metric_history(chart, "tau/gate")
    assert sorted((point.step, point.value) for point in points) == [(1, 3.0), (2, 3.5)]
    assert client.get_run(chart).info.status == "FINISHED"
    anew = Tracking(tracking.uri, None, tracking._server._experiment)
    assert chart == anew.chart_of("measured")
    names = client.get_run(chart).data.metrics
    assert keys.undocumented(keys.Entity.VERSIONS, keys.Sort.METRIC, names) == []


def test_a_models_page_says_what_it_is_told_and_no_model_is_made_for_it(
    tracking: Tracking, client: Any, tmp_path: Path
) -> None:
    tracking.describe_model("unheard of", "# Page")
    assert "unheard of" not in tracking.list_models()
    directory, draft = a_draft(tmp_path, "told")
    tracking.register(directory, "told", tracking.start_pipeline_run("registers", {}), {}, draft=draft)
    tracking.describe_model("told", "# Page\n" + "a line\n" * 1000)
    said = client.get_registered_model("told").description
    assert said.startswith("# Page\na line\n")
    assert len(said) <= 5000
    client.update_registered_model("told", f"{said}Ours: ask Ada.")
    for page in ("# Another\n", "# A third\n" + "a line\n" * 1000):
        tracking.describe_model("told", page)
        said = client.get_registered_model("told").description
        assert said.startswith(page[:10])
        assert said.endswith("what stands below is kept.*\n\nOurs: ask Ada.")
        assert len(said) <= 5000


def test_what_a_person_wrote_of_a_model_before_is_kept(tracking: Tracking, client: Any, tmp_path: Path) -> None:
    directory, draft = a_draft(tmp_path, "theirs")
    tracking.register(directory, "theirs", tracking.start_pipeline_run("registers", {}), {}, draft=draft)
    client.update_registered_model("theirs", "Ask Ada.")
    for _ in range(2):
        tracking.describe_model("theirs", "# Page\n")
    said = client.get_registered_model("theirs").description
    assert said.startswith("# Page\n")
    assert said.endswith("kept.*\n\nAsk Ada.")
    assert said.count("Ask Ada.") == 1
