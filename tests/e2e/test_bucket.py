"""The same flow with its store in a bucket, and its inputs there: nothing but the environment and the recipe differ."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deepspec.store import open_store
from tests.e2e.conftest import Home
from tests.fixtures.s3 import S3Server, bucket_client

AFTER_TRAIN = ["train", "calibrate", "evaluate", "register", "gate", "promote"]


@pytest.fixture
def bucket(moto: S3Server, tmp_path: Path) -> dict[str, str]:
    """The environment of somebody whose store is a prefix of a bucket."""
    return {**moto.environment(), "DEEPSPEC_STORE": f"s3://{moto.bucket}/{tmp_path.name}/store"}


def moto_of(bucket: dict[str, str]) -> dict[str, str]:
    """The same endpoint, for somebody whose store is at home."""
    return {name: value for name, value in bucket.items() if name != "DEEPSPEC_STORE"}


def upload(moto: S3Server, folder: Path, prefix: str) -> None:
    client = bucket_client(moto)
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), moto.bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


@pytest.mark.full  # a training and an evaluation
def test_a_moved_store_is_hit_and_another_machine_goes_on_with_it(
    warm: Home, bucket: dict[str, str], tmp_path: Path
) -> None:
    warm.run("artifacts", "copy", bucket["DEEPSPEC_STORE"], environment=moto_of(bucket))
    shutil.rmtree(warm.path / "store")
    warm.run("run", "tiny", environment=bucket)
    assert warm.ran() == []
    assert not (warm.path / "store").exists()
    # Another machine: the same bucket, and nothing else.
    other = Home(tmp_path / "other")
    changed = ["run", "tiny", "--set", "train.lr=1e-3", "--set", "gates.min_tau_gain=50"]
    other.run(*changed, environment=bucket, code=3)
    assert other.ran() == AFTER_TRAIN
    assert not list((other.path / "cache").glob("*/states/*/*/*")), "states are read by range, not fetched"
    costs = {stage["name"]: stage.get("cost", {}) for stage in other.record()["stages"]}
    assert costs["train"]["bytes_read"] > 1_000_000, "which the training process did"
    for name in AFTER_TRAIN[:-1]:  # it was refused
        assert costs[name]["put_requests"] > 0
    whole = other.record()["cost"]
    assert whole["put_requests"] > sum(cost.get("put_requests", 0) for cost in costs.values())
    verified = json.loads(other.run("artifacts", "verify", "--json", environment=bucket).out)
    assert verified["damaged"] == {}
    listed: list[dict[str, Any]] = json.loads(other.run("artifacts", "ls", "train", "--json", environment=bucket).out)
    assert len(listed) == 2


def test_inputs_in_a_bucket_are_the_inputs_they_were(
    warm: Home, moto: S3Server, bucket: dict[str, str], tmp_path: Path
) -> None:
    upload(moto, warm.path / "tiny", f"{tmp_path.name}/inputs")
    at = f"s3://{moto.bucket}/{tmp_path.name}/inputs"
    benchmarks = {name: f"{at}/corpus/benchmarks/{name}.jsonl" for name in ("arithmetic", "code", "chat")}
    warm.run(
        *("run", "tiny", "--set", f"data.source={at}/corpus/conversations.jsonl", "--set", f"target.path={at}/target"),
        *("--set", f"evaluate.benchmarks={json.dumps(benchmarks)}"),
        environment=moto.environment(),
    )
    assert warm.ran() == []
    record = json.loads((warm.path / "last-run.json").read_text())
    assert record["status"] == "no_change"


def test_a_wrong_bucket_is_one_sentence(warm: Home, moto: S3Server) -> None:
    environment = {**moto.environment(), "DEEPSPEC_STORE": "s3://not-there/store"}
    for arguments in (("run", "tiny"), ("artifacts", "ls"), ("models", "history", "tiny")):
        said = warm.run(*arguments, environment=environment, code=1).err
        lines = [line for line in said.splitlines() if line.startswith("deepspec: ")]
        assert len(lines) == 1, said
        assert "DEEPSPEC_STORE s3://not-there/store: There is no bucket 'not-there'" in lines[0]
        assert moto.endpoint in lines[0]
        assert "Traceback" not in said


def test_the_store_of_a_run_holds_what_the_library_reads(warm: Home, bucket: dict[str, str], monkeypatch: Any) -> None:
    warm.run("artifacts", "copy", bucket["DEEPSPEC_STORE"], environment=moto_of(bucket))
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    local, remote = (open_store(at) for at in (str(warm.path / "store"), bucket["DEEPSPEC_STORE"]))
    assert {(item.kind, item.key, item.digest) for item in local.artifacts()} == {
        (item.kind, item.key, item.digest) for item in remote.artifacts()
    }
