"""Where object storage is: `s3://` URLs, and the endpoint and region of the usual AWS variables.

No boto3 here: readers that stream with pyarrow need the same.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from deepspec.errors import RecipeError

SCHEME = "s3://"

_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Location:
    """A bucket, and a folder in it ("" for the whole bucket)."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str, *, where: str = "DEEPSPEC_STORE") -> "Location":
        """The location that `url` names.

        Raises:
            RecipeError: it is no `s3://bucket/prefix`.
        """
        match = _URL.fullmatch(url)
        parts = [part for part in (match["prefix"] or "").split("/") if part] if match else []
        if match is None or ".." in parts or "." in parts:
            # It may hold a password: the value itself is not repeated.
            raise RecipeError(
                "This is no s3://bucket/prefix (a bucket's name has 3 to 63 lower-case letters, digits, dots, dashes).",
                where=where,
                remedy="Name bucket and prefix only; credentials and the endpoint come from the AWS variables.",
            )
        return cls(match["bucket"], "/".join(parts))

    @property
    def url(self) -> str:
        """As `s3://bucket/prefix`."""
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, path: str) -> str:
        """The object's key of a path in this location."""
        return f"{self.prefix}/{path}" if self.prefix else path

    def folder(self, path: str) -> str:
        """What the keys of everything in the folder `path` begin with."""
        key = self.key(path).rstrip("/")
        return f"{key}/" if key else ""

    def path(self, key: str) -> str:
        """The path in this location of an object's key."""
        return key.removeprefix(f"{self.prefix}/") if self.prefix else key

    def digest(self, endpoint: str | None) -> str:
        """A name for this location at this endpoint, for a folder of local copies."""
        return hashlib.sha256(f"{shown(endpoint)} {self.url}".encode()).hexdigest()[:16]


def endpoint_url(environment: Mapping[str, str] = os.environ) -> str | None:
    """The endpoint that an environment names; None for AWS itself.

    Raises:
        RecipeError: it is no address.
    """
    value = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if not value:
        return None
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise RecipeError(
            "This is no address of an S3 endpoint.",
            where="AWS_ENDPOINT_URL",
            remedy="Write it as http://host:port or https://host.",
        )
    return value


def region(environment: Mapping[str, str] = os.environ) -> str | None:
    """The region that an environment names; a custom endpoint without one gets the name that all of them accept."""
    named = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    return named or ("us-east-1" if endpoint_url(environment) else None)


def shown(endpoint: str | None) -> str:
    """An endpoint's address for people: without credentials that may stand in it."""
    if endpoint is None:
        return ""
    parts = urlsplit(endpoint)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
