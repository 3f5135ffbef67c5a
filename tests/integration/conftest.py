"""What several tests here go on from: the end-to-end tests' cold run, and a home with drafts for a real engine."""

import pytest
from filelock import FileLock

from deepspec.store.backends.s3_location import Location
from tests.e2e.conftest import Home, cold
from tests.fixtures.engines import DRAFTS, FOLDER
from tests.fixtures.s3 import S3Server, bucket_client

__all__ = ["cold"]


def capture_before(server: S3Server, cold: Home, location: str) -> None:
    """Put the cold run's artifacts into a bucket, up to the states."""
    cold.run("artifacts", "copy", location, environment=server.environment())
    at = Location.parse(location)
    objects = bucket_client(server)
    for kind in ("train", "calibrate", "evaluate", "register", "gate", "promote", "registry"):
        listed = objects.list_objects_v2(Bucket=at.bucket, Prefix=at.key(f"{kind}/")).get("Contents", [])
        assert listed, kind
        for item in listed:
            objects.delete_object(Bucket=at.bucket, Key=item["Key"])


@pytest.fixture(scope="session")
def served_home(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Home:
    """A home with a target of the demo's shape and a trained draft of every kind, for all processes that run tests.

    It is only read: who changes something takes a copy.
    """
    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent
    home = Home(folder / "served" / "home")
    inputs = ("--set", f"inputs={FOLDER / 'served-inputs.yaml'}")
    with FileLock(folder / "served.lock"):
        if not (home.path / "drafts").exists():
            for name, changes in DRAFTS.items():
                sets = [argument for change in (f"name={name}", *changes) for argument in ("--set", change)]
                home.run("run", str(FOLDER / "served.yaml"), *inputs, *sets, code=None, seconds=600)
            (home.path / "drafts").touch()
    return home
