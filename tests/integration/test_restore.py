"""infra/BACKUP.md, "Services", step by step: everything is lost, and comes back on servers that know nothing of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from infra.stack import lifecycle
from infra.stack.postgres import POSTGRES
from infra.stack.s3 import S3_SERVICES
from infra.stack.settings import PORTS, Settings
from tests.fixtures.command import call
from tests.fixtures.stack import Running

pytestmark = pytest.mark.full

HASTY = ("train.num_steps=2", "train.seed=7")
"""A second version, soon made."""


def deepspec(stack: Running, home: Path, *arguments: str, code: int = 0) -> Any:
    """What a command with `--json` prints."""
    done = call([*arguments, "--json"], stack.as_user(home), seconds=400)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def mlflow_files(stack: Running) -> Iterator[tuple[str, bytes]]:
    """The objects that MLflow's server keeps, by key."""
    s3 = stack.s3()
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="deepspec", Prefix="mlflow/"):
        for item in page.get("Contents", []):
            yield item["Key"], s3.get_object(Bucket="deepspec", Key=item["Key"])["Body"].read()


def curve(stack: Running) -> list[tuple[int, float]]:
    """(step, loss) of the first training that MLflow knows."""
    wanted = {"experiment_ids": ["1"], "filter": "tags.`deepspec.stage` = 'train'", "order_by": ["start_time ASC"]}
    runs = stack.get("/api/2.0/mlflow/runs/search", body=wanted, credentials=stack.admin)["runs"]
    path = f"/api/2.0/mlflow/metrics/get-history?run_id={runs[0]['info']['run_id']}&metric_key=loss"
    metrics = stack.get(path, credentials=stack.admin)["metrics"]
    return [(int(metric.get("step", 0)), metric["value"]) for metric in metrics]


class Lost(NamedTuple):
    """What was there, and what was saved of it.

    Attributes:
        models: what `models ls` said: two versions, the second of them younger than the dumps.
        history: what `models history` said.
        curve: (step, loss) of the first version's training.
        dumps: database -> what pg_dump wrote.
        files: key -> content of MLflow's own artifacts.
        store: the folder that the artifacts were copied to.
    """

    models: list[dict[str, Any]]
    history: list[dict[str, Any]]
    curve: list[tuple[int, float]]
    dumps: dict[str, bytes]
    files: dict[str, bytes]
    store: Path


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """Backed up as the page says, with a run between the databases and the store; then the servers are gone."""
    folder = tmp_path_factory.mktemp("lost")
    stack, home = Running(folder / "state"), folder / "home"
    try:
        stack.up()
        assert deepspec(stack, home, "run", "tiny")["status"] == "promoted"
        dumps = {name: stack.postgres("pg_dump", name, name, "--format=custom") for name in ("mlflow", "prefect")}
        assert deepspec(stack, home, "run", "tiny", *(part for one in HASTY for part in ("--set", one)), code=3)
        store = folder / "copy"
        copied = deepspec(stack, home, "artifacts", "copy", "--from", "s3://deepspec/store", str(store))
        assert copied["complete"]
        files = dict(mlflow_files(stack))
        models, history = deepspec(stack, home, "models", "ls"), deepspec(stack, home, "models", "history", "tiny")
        return Lost(models, history, curve(stack), dumps, files, store)
    finally:
        stack.call("down")


@pytest.fixture(scope="module")
def restored(lost: Lost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """Other servers with other passwords, filled before MLflow and Prefect have ever looked at them; another home."""
    folder = tmp_path_factory.mktemp("restored")
    stack, home = Running(folder / "state"), folder / "home"
    empty = Settings(stack.folder, dict.fromkeys(PORTS, 0), "memstore")
    try:
        lifecycle.up(empty, (POSTGRES, *S3_SERVICES))
        for name, dump in lost.dumps.items():
            stack.postgres("pg_restore", name, name, "--exit-on-error", given=dump)
        stack.up()
        copied = deepspec(stack, home, "artifacts", "copy", "--from", str(lost.store), "s3://deepspec/store")
        assert copied["complete"]
        for key, content in lost.files.items():
            stack.s3().put_object(Bucket="deepspec", Key=key, Body=content)
        yield stack, home
    finally:
        stack.call("down")


def test_the_dumps_are_older_than_the_store(lost: Lost, restored: tuple[Running, Path]) -> None:
    stack, home = restored
    assert [version["version"] for version in lost.models] == ["2", "1"]
    assert deepspec(stack, home, "models", "ls") == [version for version in lost.models if version["version"] == "1"]
    assert curve(stack) == lost.curve
    assert len(lost.curve) > 1


def test_reconciling_registers_what_only_the_store_knows(lost: Lost, restored: tuple[Running, Path]) -> None:
    stack, home = restored
    checked = deepspec(stack, home, "artifacts", "verify")
    assert (checked["checked"] > 10, checked["damaged"]) == (True, {})
    call(["models", "reconcile", "tiny"], stack.as_user(home), seconds=400).check_returncode()
    # The run that had made the second one is gone with what it tracked.
    versions = [{**version, "run_id": ""} if version["version"] == "2" else version for version in lost.models]
    assert deepspec(stack, home, "models", "ls") == versions
    assert deepspec(stack, home, "models", "history", "tiny") == lost.history


def test_the_next_run_finds_everything(restored: tuple[Running, Path], tmp_path: Path) -> None:
    stack, home = restored
    again = deepspec(stack, home, "run", "tiny")
    assert again["status"] == "no_change"
    assert {stage["status"] for stage in again["stages"]} == {"hit"}
