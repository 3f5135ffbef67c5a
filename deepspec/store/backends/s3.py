"""Artifacts in S3-compatible object storage, through boto3; loaded only when a store's URL asks for it.

The one atomic operation is a single PUT with `If-None-Match: *`: the endpoint is probed for it before the first
create, and refused without it. Everything else is plain: files go up as they are (in parts above 64 MiB), are looked up
by listing, and come down into a local cache that a reader compares with the manifest's checksums anyway.

Requests are signed over their bodies, so that a server refuses what changed on the way. botocore repeats requests that
end in 5xx, throttling, timeouts or resets, with exponential backoff and jitter; we repeat those whose bodies break off,
and reads of records whose bytes do not match the server's ETag. A repeated create may find what its own first request
made: `contract.created` resolves that by reading back.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import boto3
import botocore.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as failures
from botocore.config import Config
from botocore.loaders import create_loader
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from deepspec.account import Actor
from deepspec.atomic_write import replacing
from deepspec.errors import ArtifactError, RecipeError, TransientError
from deepspec.file_system import readable_as_its_folder
from deepspec.store.backends.contract import MAX_RECORD_BYTES, full_disk, refuse_large
from deepspec.store.backends.local import unpruned
from deepspec.store.backends.s3_errors import (
    MISSING,
    NOT_SUPPORTED,
    BodyChanged,
    Refused,
    attempts,
    client_error,
    code_of,
    named_error,
    passing,
    safe,
)
from deepspec.store.backends.s3_location import Location, endpoint_url, region, shown
from deepspec.store.layout import Stat, inside, is_plain, listing
from deepspec.usage import count

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DESCRIPTIONS = create_loader()
"""What botocore knows of S3, read once: of the 75 ms that a client takes that is most."""

PART_BYTES = 64 << 20
"""Larger files go up and come down in parts of this size."""

_BILLED_AS = {
    "GetObject": "get_requests",
    "HeadObject": "get_requests",
    "HeadBucket": "get_requests",
    "ListObjectsV2": "list_requests",
    "ListMultipartUploads": "list_requests",
    "DeleteObject": "delete_requests",
    "AbortMultipartUpload": "delete_requests",
}
"""Operation -> what its requests are counted as; any other writes, and is a put (a part of an upload, its end)."""

_SERVED_AS = {".html": "text/html; charset=utf-8", ".json": "application/json"}
"""What a browser takes small records for that the bucket hands out itself."""
_CHUNK_BYTES = 1 << 20
_PARALLEL_PARTS = 4
_PARALLEL_FILES = 4
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_READ_SECONDS_ELSEWHERE = 15
"""Nothing here needs a store of another environment's: what it does not take now it is given later."""
_WHO_SECONDS = 5
_LONGEST_WAIT_SECONDS = 20


class S3Backend:
    """A bucket (or a prefix in one) that holds artifacts; see `Backend` for the contract of each method.

    Args:
        url: `s3://bucket` or `s3://bucket/prefix`. Endpoint, region and credentials come from the usual AWS variables.
        cache: local folder for files on their way up, and for those that were fetched.
        environment: where these variables are; None: in the process's own. Credentials that it does not name are those
            of the process.

    Raises:
        RecipeError: the URL or the endpoint's address is malformed.
    """

    def __init__(self, url: str, cache: Path, environment: Mapping[str, str] | None = None) -> None:
        self._at = Location.parse(url)
        self._environment = os.environ if environment is None else environment
        self._endpoint = endpoint_url(self._environment)
        self._cache = cache.expanduser().absolute() / self._at.digest(self._endpoint)
        self._made: Any = None
        self._making = threading.Lock()
        self._conditional = False

    @property
    def location(self) -> str:
        """The URL."""
        return self._at.url

    def actor(self) -> Actor:
        """Whose credentials sign its requests: at AWS the caller's name there, elsewhere the access key.

        Of the key only its ends, by which its owner knows it: what is recorded must not help anyone to sign.
        Without credentials it is nobody. At AWS this costs a request.
        """
        credentials = botocore.session.Session().get_credentials()
        if credentials is None:
            return Actor()
        caller = _aws_caller() if self._endpoint is None else None
        return caller or Actor(name=_ends(str(credentials.access_key)), known_by="access key")

    def create(self, path: str, data: bytes) -> bool:
        """Write `data` if nothing is at `path`; return whether this call created it."""
        refuse_large(len(data), path, self.location)
        self._probe()
        return self._create(path, data)

    def put(self, path: str, data: bytes) -> None:
        """Write or overwrite a small record."""
        refuse_large(len(data), path, self.location)
        served_as = {"ContentType": mime} if (mime := _SERVED_AS.get(PurePosixPath(path).suffix)) else {}
        with self._named_errors("written"):
            self._client.put_object(Bucket=self._at.bucket, Key=self._key(path), Body=data, **served_as)

    def read(self, path: str, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        """The whole content of `path`; FileNotFoundError if nothing is there."""

        def get() -> tuple[bytes, bool]:
            answer = self._client.get_object(Bucket=self._at.bucket, Key=self._key(path))
            data = self._body(answer, path, max_bytes)
            return data, hashlib.md5(data, usedforsecurity=False).hexdigest() == answer["ETag"].strip('"')

        def checked() -> bytes:
            data, right = get()
            if right:
                return data
            # The ETag of some encrypted objects is no checksum: what comes twice is what is there.
            again, right = get()
            if not right and again != data:
                raise BodyChanged
            return again

        with self._named_errors("read"):
            return self._repeated(checked)

    def _body(self, answer: dict[str, Any], path: str, max_bytes: int) -> bytes:
        """The bytes of an answer; no more of them are read than one too many."""
        chunks, size = [], 0
        with contextlib.closing(answer["Body"]) as body:
            refuse_large(answer.get("ContentLength", 0), path, self.location, max_bytes)
            for chunk in body.iter_chunks(_CHUNK_BYTES):  # a proxy may send on a body without its length
                size += len(chunk)
                refuse_large(size, path, self.location, max_bytes)
                chunks.append(chunk)
        return b"".join(chunks)

    def list(self, prefix: str) -> dict[str, Stat]:
        """Every object under the folder `prefix`, by path relative to the store."""
        if prefix and not is_plain(prefix):
            return {}
        return listing(self._objects(prefix), self.location)

    def delete(self, path: str) -> None:
        """Remove the object `path`, and the local copy of it."""
        with self._named_errors("written"):
            self._client.delete_object(Bucket=self._at.bucket, Key=self._key(path))
        copy = self._local(path)
        with contextlib.suppress(OSError):
            copy.unlink()
        _prune(copy.parent, self._cache)

    def staging(self, prefix: str) -> Path:
        """A folder in the local cache: what is published from there need not be fetched again."""
        folder = self._local(prefix)
        with self._named_errors("written"):
            unpruned(lambda: folder.mkdir(parents=True))
        return folder

    def publish(self, prefix: str, staging: Path) -> None:
        """Upload every file of the attempt, and see that all of it arrived."""
        files = [path for path in staging.rglob("*") if path.is_file()]
        sizes = {f"{prefix}/{path.relative_to(staging).as_posix()}": path.stat().st_size for path in files}

        def upload(path: str) -> None:
            local = staging / path.removeprefix(f"{prefix}/")
            self._client.upload_file(str(local), self._at.bucket, self._key(path), Config=self._transfer())

        with self._named_errors("written"):
            for path in files:  # they stay here as local copies
                readable_as_its_folder(path)
            self._each(upload, sorted(sizes))
            arrived = {path: stat.size for path, stat in self._objects(prefix)}
        if arrived != sizes:
            odd = sorted(path for path in sizes.keys() | arrived.keys() if sizes.get(path) != arrived.get(path))
            raise TransientError(
                f"Of {len(sizes)} uploaded files {len(odd)} are not in the bucket as they were sent, "
                f"the first of them {odd[0]}.",
                where=self.location,
                remedy="Run again; what was finished is kept.",
            )

    def fetch(self, prefix: str, names: Sequence[str], *, refetch: bool = False) -> Path:
        """The attempt's folder in the local cache, with `names` in it."""
        folder = self._local(prefix)

        def download(name: str) -> None:
            target = folder / name
            if target.is_file() and not refetch:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            key = self._key(f"{prefix}/{name}")
            try:
                with replacing(target) as part:
                    self._repeated(
                        lambda: self._client.download_file(self._at.bucket, key, str(part), Config=self._transfer())
                    )
            except failures.ClientError as error:
                if code_of(error) not in MISSING:
                    raise
                target.unlink(missing_ok=True)

        with self._named_errors("read"):
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)  # `sweep` removes what was not used for long
            self._each(download, names)
        return folder

    def clock(self) -> float:
        """The endpoint's clock, to the second."""
        with self._named_errors("read"):
            answer = self._client.head_bucket(Bucket=self._at.bucket)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(date).timestamp() if date else time.time()

    def sweep(self, older_than_seconds: float) -> None:
        """Abort uploads in parts that have stopped, and remove local copies that were not used for as long."""
        now = self.clock()
        with self._named_errors("written"):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._at.bucket, Prefix=self._at.folder("")
            )
            for upload in (upload for page in pages for upload in page.get("Uploads", [])):
                if now - upload["Initiated"].timestamp() >= older_than_seconds:
                    self._client.abort_multipart_upload(
                        Bucket=self._at.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
        for attempt in self._cache.glob("*/*/*"):
            with contextlib.suppress(OSError):
                if time.time() - attempt.stat().st_mtime >= older_than_seconds:
                    shutil.rmtree(attempt)
                    _prune(attempt.parent, self._cache)

    @property
    def _client(self) -> Any:
        """Made at first use, and safe to use from several threads."""
        with self._making:
            if self._made is None:
                self._made = client(self._environment)
            return self._made

    def _transfer(self) -> TransferConfig:
        return _transfer(attempts(self._environment))

    def _repeated(self, ask: Callable[[], T]) -> T:
        return _repeated(ask, attempts(self._environment))

    def _local(self, path: str) -> Path:
        return inside(self._cache, path)

    def _key(self, path: str) -> str:
        """The object's key; ArtifactError for a name that lies outside the store."""
        self._local(path)
        return self._at.key(path)

    def _objects(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        with self._named_errors("read"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._at.bucket, Prefix=self._at.folder(prefix)
            )
            for entry in (entry for page in pages for entry in page.get("Contents", [])):
                key = entry["Key"]
                # A server may list what was not asked for: as an absolute name it is no part of the store.
                name = self._at.path(key) if key.startswith(self._at.folder("")) else f"/{key}"
                yield name, Stat(entry["Size"], entry["LastModified"].timestamp())

    def _each(self, work: Callable[[str], None], paths: Sequence[str]) -> None:
        """Call `work` for each path, a few at a time; the first failure is raised once the others have ended."""
        with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="s3") as pool:
            for done in [pool.submit(work, path) for path in paths]:
                done.result()

    def _create(self, path: str, data: bytes) -> bool:
        def put() -> bool:
            try:
                self._client.put_object(Bucket=self._at.bucket, Key=self._key(path), Body=data, IfNoneMatch="*")
            except failures.ClientError as error:
                if code_of(error) in ("PreconditionFailed", "412"):
                    return False
                raise
            return True

        with self._named_errors("written"):
            return self._repeated(put)

    def _probe(self) -> None:
        """Create a record twice: the second time has to be refused, or two runs could overwrite each other's work.

        Raises:
            ArtifactError: the endpoint has no conditional writes (or not in this bucket).
        """
        with self._making:
            known = self._conditional
        if known:
            return
        path = f"work/probes/{uuid.uuid4().hex}"
        refused = ArtifactError(
            f"The object storage{self._whose()} ignores `If-None-Match: *` when it writes, so that two runs could "
            "overwrite each other's work.",
            where=f"DEEPSPEC_STORE {self.location}",
            remedy="Use AWS S3, MinIO, or Ceph (there: a bucket without versioning).",
        )
        try:
            first = self._create(path, b"1")
            if self._create(path, b"2"):
                raise refused
        except (ArtifactError, TransientError) as error:
            if isinstance(error.__cause__, Refused) and error.__cause__.code in NOT_SUPPORTED:
                raise refused from error.__cause__
            raise
        if not first:
            logger.debug("the probe's first create was repeated after a lost answer")
        with contextlib.suppress(ArtifactError, TransientError):  # a user who may not delete may still create
            self.delete(path)
        with self._making:
            self._conditional = True

    def _whose(self) -> str:
        return f" at {shown(self._endpoint)}" if self._endpoint else ""

    @contextlib.contextmanager
    def _named_errors(self, verb: str) -> Iterator[None]:
        """The endpoint's refusals and the network's failures as errors that name the variable and the remedy."""
        try:
            yield
        # First, for botocore's timeouts are OSErrors, too.
        except (failures.ClientError, failures.BotoCoreError, Boto3Error, BodyChanged) as error:
            cause = client_error(error)
            if cause is not None and code_of(cause) == "NoSuchKey":
                raise FileNotFoundError(self.location) from None
            where = f"DEEPSPEC_STORE {self.location}"
            raise named_error(error, where, self._at.bucket, self._environment) from safe(error)
        except OSError as error:
            raise full_disk(error, str(self._cache)) or ArtifactError(
                f"The local copies of artifacts cannot be {verb}: {error.strerror}.",
                where=str(error.filename or self._cache),
                remedy="Check its permissions, or point DEEPSPEC_HOME elsewhere.",
            ) from error


def listed(bucket: str, prefix: str, where: str) -> Iterator[tuple[str, str]]:
    """Key and version (ETag, size, time) of every object whose key begins with `prefix`.

    Args:
        bucket, prefix: which.
        where: what asks, for messages.

    Raises:
        ArtifactError, TransientError: the endpoint refuses or does not answer.
    """
    with _named(where, bucket):
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for entry in (entry for page in pages for entry in page.get("Contents", [])):
            yield entry["Key"], f"{entry['ETag']} {entry['Size']} {entry['LastModified'].isoformat()}"


def download(bucket: str, key: str, target: Path, where: str) -> None:
    """Copy an object to a local file; errors as for `listed`."""
    with _named(where, bucket):
        _repeated(lambda: client().download_file(bucket, key, str(target), Config=_transfer(attempts())), attempts())


def _ends(key: str) -> str:
    """The first and last characters of an access key, at most half of it."""
    shown = min(4, len(key) // 4)
    return f"{key[:shown]}…{key[len(key) - shown :]}"


def _aws_caller() -> Actor | None:
    """Who AWS says that these credentials are; None: it does not answer, or they may not ask."""
    once = Config(connect_timeout=_WHO_SECONDS, read_timeout=_WHO_SECONDS, retries={"total_max_attempts": 1})
    try:
        sts = boto3.session.Session().client("sts", config=once, region_name=region() or "us-east-1")
        return Actor(name=str(sts.get_caller_identity()["Arn"]), known_by="AWS caller")
    except (failures.ClientError, failures.BotoCoreError) as error:
        logger.debug("AWS does not say who this is: %s", type(error).__name__)
        return None


def _session(environment: Mapping[str, str]) -> Any:
    """boto3's session for the credentials or the profile that an environment names; else for the process's own."""
    core = botocore.session.Session()
    core.register_component("data_loader", _DESCRIPTIONS)
    if environment is os.environ:
        return boto3.session.Session(botocore_session=core)
    return boto3.session.Session(
        botocore_session=core,
        profile_name=environment.get("AWS_PROFILE") or None,
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID") or None,
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY") or None,
        aws_session_token=environment.get("AWS_SESSION_TOKEN") or None,
    )


def client(environment: Mapping[str, str] = os.environ) -> Any:
    """An S3 client by the usual AWS variables and files, with our time limits and retries.

    Raises:
        RecipeError: the endpoint's address, region or profile cannot be used.
    """
    endpoint = endpoint_url(environment)
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS if environment is os.environ else _READ_SECONDS_ELSEWHERE,
        retries={"mode": "standard", "total_max_attempts": attempts(environment)},
        max_pool_connections=_PARALLEL_PARTS * _PARALLEL_FILES,
        # On a server without a wildcard domain, names of buckets are part of the path.
        s3={"addressing_style": "path" if endpoint else "auto", "payload_signing_enabled": True},
        # The signature covers the body; trailers with checksums are refused by some servers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        session = _session(environment)
        made = session.client("s3", config=config, endpoint_url=endpoint, region_name=region(environment))
    except (failures.BotoCoreError, ValueError) as error:
        raise RecipeError(
            f"No S3 client can be made: {type(error).__name__}.",
            where="AWS_ENDPOINT_URL" if endpoint else "AWS_PROFILE",
            remedy="Check AWS_ENDPOINT_URL (http://host:port), AWS_DEFAULT_REGION and AWS_PROFILE.",
        ) from error
    made.meta.events.register("before-send.s3", _count_request)
    made.meta.events.register("response-received.s3.GetObject", _count_bytes)
    return made


def _count_request(event_name: str, **_: Any) -> None:
    """One request as it leaves, a retry too."""
    count(_BILLED_AS.get(event_name.rpartition(".")[2], "put_requests"))


def _count_bytes(response_dict: Mapping[str, Any] | None = None, **_: Any) -> None:
    """Bytes of an object, or of a range of one, as the answer announces them."""
    headers = (response_dict or {}).get("headers") or {}
    said = str(headers.get("content-length", ""))
    if said.isdecimal():
        count("bytes_read", int(said))


@contextlib.contextmanager
def _named(where: str, bucket: str) -> Iterator[None]:
    try:
        yield
    except (failures.ClientError, failures.BotoCoreError, Boto3Error) as error:
        raise named_error(error, where, bucket) from safe(error)


def _transfer(times: int) -> TransferConfig:
    """How files go up and down."""
    return TransferConfig(PART_BYTES, _PARALLEL_PARTS, PART_BYTES, num_download_attempts=times)


def _repeated(ask: Callable[[], T], times: int) -> T:
    """Ask again where an answer's body broke off, or another conditional write to the same name was going on."""
    return Retrying(
        retry=retry_if_exception(passing),
        wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_WAIT_SECONDS),
        stop=stop_after_attempt(times),
        reraise=True,
    )(ask)


def _prune(folder: Path, root: Path) -> None:
    """Remove folders that have become empty."""
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
