"""The end-to-end tests' cold run, for tests that compare with it, or go on from it."""

from deepspec.store.backends.s3_location import Location
from tests.e2e.conftest import Home, cold
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
