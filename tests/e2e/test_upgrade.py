"""What earlier versions left is read by the present code: see tests/fixtures/upgrade/README.md."""

import json
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest

from tests.e2e.conftest import Home

ARCHIVES = sorted((Path(__file__).parents[1] / "fixtures" / "upgrade").glob("*.tar.xz"))
SMALL = [
    word
    for setting in (
        "data.max_length_tokens=192",
        "draft.target_layer_ids=[-1]",
        "draft.markov_rank=4",
        "train.num_epochs=1",
    )
    for word in ("--set", setting)
]
STAGES = ["conversations", "responses", "tokens", "states", "train", "calibrate", "evaluate", "register"]


@pytest.fixture(scope="session", params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The home of an earlier version, as its archive says."""
    folder = tmp_path_factory.mktemp("upgrade")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return Home(folder / "home")


@pytest.fixture
def old(unpacked: Home, tmp_path: Path) -> Home:
    """A copy of it, free to be changed."""
    shutil.copytree(unpacked.path, tmp_path / "home", copy_function=shutil.copy2)
    return Home(tmp_path / "home")


def test_there_is_something_to_read() -> None:
    assert "0eaacd8.tar.xz" in [path.name for path in ARCHIVES]  # the first version that landed


def test_its_artifacts_are_whole_and_lead_back_to_the_data(old: Home) -> None:
    listed = json.loads(old.run("artifacts", "ls", "--json").out)
    manifests = list((old.path / "store").glob("*/*/manifest.*.json"))
    assert len(listed) == len(manifests) == 19
    assert json.loads(old.run("artifacts", "verify", "--json").out) == {"checked": 19, "damaged": {}}
    champion = json.loads(old.run("models", "history", "tiny", "--json").out)[-1]["champion"]
    lineage = json.loads(old.run("artifacts", "lineage", f"train/{champion['key'][:12]}", "--json").out)
    assert {item["kind"] for item in lineage} == {"train", "states", "tokens", "responses", "conversations"}
    registered = [item["key"] for item in listed if item["kind"] == "register"]
    for key in registered:
        lineage = json.loads(old.run("artifacts", "lineage", f"register/{key[:12]}", "--json").out)
        assert {item["kind"] for item in lineage} == set(STAGES)


def test_its_versions_and_its_promotion_log_go_on(old: Home) -> None:
    versions = json.loads(old.run("models", "ls", "--json").out)
    assert {row["version"]: row["aliases"] for row in versions} == {"1": ["champion"], "2": []}
    assert all(float(row["tau"]["macro"]) > 1 for row in versions)
    before = json.loads(old.run("models", "history", "tiny", "--json").out)
    assert [(entry["number"], entry["kind"]) for entry in before] == [(1, "promote"), (2, "promote"), (3, "rollback")]
    old.run("promote", "models:/tiny/2", code=3)  # its roll back is as sticky as one of today
    # Under the verdict that the old gate gave.
    old.run("promote", "models:/tiny/2", "--unblock", "--reason", "by the present code")
    old.run("rollback", "tiny", "--reason", "and back")
    after = json.loads(old.run("models", "history", "tiny", "--json").out)
    assert after[:3] == before
    shown = old.run("models", "history", "tiny").out
    for entry in after:
        sentence = " ".join(reason["sentence"] for reason in (entry["verdict"] or {}).get("reasons", []))
        [line] = [line for line in shown.splitlines() if line.startswith(f"{entry['number']} ")]
        assert 0 < line.find(entry["reason"]) <= line.rfind(sentence)
    assert [(entry["kind"], entry["champion"]["version"]) for entry in after[3:]] == [
        ("unblock", "1"),
        ("promote", "2"),
        ("rollback", "1"),
    ]
    assert "already says 1" in old.run("models", "reconcile", "tiny").out


def test_its_runs_are_explained(old: Home) -> None:
    told = old.run("explain").out
    assert "promoted" in told
    assert "train.lr changed 0.0001 -> 0.002" in told
    for record in (old.path / "runs").glob("*/run.json"):
        told = json.loads(old.run("explain", record.parent.name, "--json").out)
        assert told["stages"] == json.loads(record.read_text())["stages"]


def test_its_results_are_read_as_values_and_written_again_as_they_were(unpacked: Home, tmp_path: Path) -> None:
    from deepspec.data.tables import write_summary
    from deepspec.evaluation.calibration.results import CalibrationResult
    from deepspec.evaluation.results import Evaluation
    from tasks.runtime.record.run_record import read_record

    files = [
        *((Evaluation, path) for path in (unpacked.path / "store" / "evaluate").glob("*/*/evaluation.json")),
        *((Evaluation, path) for path in (unpacked.path / "store" / "gate").glob("*/*/champion/evaluation.json")),
        *((CalibrationResult, path) for path in (unpacked.path / "store" / "calibrate").glob("*/*/calibration.json")),
    ]
    assert len(files) == 5
    for kind, path in files:
        found = kind.from_json(json.loads(path.read_text()), where=str(path))
        write_summary(tmp_path / "again.json", found.to_json())
        assert (tmp_path / "again.json").read_bytes() == path.read_bytes(), path
    for path in (unpacked.path / "runs").glob("*/run.json"):
        record = read_record(unpacked.path, path.parent.name)
        assert record is not None
        assert record.to_json() == json.loads(path.read_text())


def test_its_drafts_are_downloaded_and_decode_losslessly(old: Home, tmp_path: Path) -> None:
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.responses.requests import GenerationRequest
    from deepspec.decoding.config import Sampling
    from deepspec.decoding.engine import Engine
    from deepspec.drafts import algorithm_of
    from deepspec.registry.mlflow.tracking import Tracking
    from deepspec.store import open_store
    from deepspec.targets.directory import read_spec
    from deepspec.targets.model import Target

    store = open_store(str(old.path / "store"))
    (made,) = store.artifacts("demo_target")
    tokenizer = load_tokenizer(made.directory())
    prompts = ["What is 12 plus 30?", "Write a function that adds two numbers.", "Hello"]
    requests = [
        GenerationRequest(str(number), tuple(tokenizer(prompt)["input_ids"]), 24, number)
        for number, prompt in enumerate(prompts)
    ]

    def decoded(target: Target, drafter: object = None) -> dict[str, tuple[int, ...]]:
        engine = Engine(target, drafter, sampling=Sampling(temperature=0.0))  # type: ignore[arg-type]
        return {completion.id: completion.output_ids for completion in engine.run(requests)}

    plain = decoded(Target.load(made.directory(), device="cpu", dtype="float32"))
    assert all(plain.values())
    tracking = Tracking.embedded(old.path)
    for version in tracking.list_versions("tiny"):
        # The archive's own folder was never here: the database has to have been corrected.
        folder = tracking.download(version, tmp_path / version.version)
        algorithm = algorithm_of(folder)
        draft = algorithm.load(folder, read_spec(made.directory()), device="cpu", dtype="float32")
        drafter = algorithm.drafter(draft, algorithm.read_config(folder))
        target = Target.load(made.directory(), device="cpu", dtype="float32", layer_ids=drafter.layer_ids)
        assert decoded(target, drafter) == plain
        old.run("export", version.uri, "--format", "deepspec", "--out", str(tmp_path / f"exported-{version.version}"))


@pytest.mark.full
def test_a_run_goes_on_from_it_and_its_artifacts_can_be_collected(old: Home) -> None:
    old.run("run", "tiny", *SMALL, code=None)
    statuses = old.statuses()
    # The demo's inputs have not changed since; what a bumped stage version makes anew says so.
    assert {statuses[name] for name in ("demo_corpus", "demo_tokenizer", "demo_target")} == {"hit"}
    why = {stage["name"]: stage["why"] for stage in old.record()["stages"]}
    assert "stage version changed 1 -> " in why["train"]
    versions = json.loads(old.run("models", "ls", "--json").out)
    assert [row["version"] for row in versions] == ["3", "2", "1"]
    # Its champion was made before splits kept together what is asked: all that this gate could ask was trained on.
    again = old.run("run", "tiny", *SMALL, code=3)
    assert "All 4 gate prompts were trained or chosen on" in " ".join(again.out.split())
    assert {status for name, status in old.statuses().items() if name in STAGES} == {"hit"}

    old.run("artifacts", "gc", "--grace-seconds", "0")
    left = json.loads(old.run("artifacts", "verify", "--json").out)
    assert left["damaged"] == {}
    kinds = [item["kind"] for item in json.loads(old.run("artifacts", "ls", "--json").out)]
    assert kinds.count("train") == kinds.count("register") == 3  # every registered version is still there
    old.run("rollback", "tiny", "--to", "2")


def test_a_home_that_was_moved_finds_its_tracked_files(old: Home, tmp_path: Path) -> None:
    def places(home: Path) -> set[str]:
        connection = sqlite3.connect(home / "mlflow.db")
        queries = (
            "SELECT artifact_location FROM experiments WHERE name = 'deepspec'",
            "SELECT artifact_uri FROM runs",
            "SELECT artifact_location FROM logged_models",
            "SELECT storage_location FROM model_versions",
        )
        found = {row[0] for query in queries for row in connection.execute(query)}
        connection.close()
        return found

    assert all(place.startswith("/tmp/deepspec-upgrade/home/mlartifacts") for place in places(old.path))
    old.run("models", "ls")
    assert all(place.startswith(str(old.path / "mlartifacts")) for place in places(old.path))
    old.path.rename(tmp_path / "moved")
    Home(tmp_path / "moved").run("models", "ls")
    assert all(place.startswith(str(tmp_path / "moved" / "mlartifacts")) for place in places(tmp_path / "moved"))
    # Another name for the same folder is no move.
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    Home(tmp_path / "link").run("models", "ls")
    assert all(place.startswith(str(tmp_path / "moved" / "mlartifacts")) for place in places(tmp_path / "moved"))
