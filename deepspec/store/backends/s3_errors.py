"""What failures of the object storage mean: which pass by themselves, and a named error for each of the others.

No error quotes a server's own words: they may hold credentials.
"""

import os
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from boto3.exceptions import S3UploadFailedError
from botocore import exceptions as failures

from deepspec.errors import ArtifactError, StoreFull, TransientError
from deepspec.store.backends.s3_location import endpoint_url, shown

_ATTEMPTS = 6
_HELD_AGAIN = ("ConditionalRequestConflict", "OperationAborted")
"""S3's answers while another conditional write to the same name goes on: asked again, either outcome comes."""

MISSING = ("NoSuchKey", "404", "NotFound")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
_OTHER_TIME = ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture")
_MOST_MINUTES_APART = 14.0
_UNKNOWN_USER = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId", "AuthFailure")
_FULL = ("QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity", "EntityTooLargeForBucket", "507")
NOT_SUPPORTED = ("NotImplemented", "501", "MethodNotAllowed")


class Refused(Exception):
    """What is safe to show of a server's refusal: its own words may quote credentials, and tracebacks are kept."""

    def __init__(self, code: str, status: int, operation: str, request: str) -> None:
        super().__init__(f"{operation}: {status} {code} (request {request})")
        self.code = code


class BodyChanged(Exception):
    """What came is not what the server says it sent."""


def named_error(
    error: Exception, where: str, bucket: str, environment: Mapping[str, str] = os.environ
) -> ArtifactError | TransientError:
    """What a failure of the object storage means, without any word of the server's own (it may quote credentials)."""
    endpoint = shown(endpoint_url(environment))
    at = f" at {endpoint}" if endpoint else ""
    cause = client_error(error)
    if isinstance(error, failures.NoCredentialsError | failures.PartialCredentialsError):
        return ArtifactError(
            f"There are no credentials for the object storage{at}.",
            where=where,
            remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE).",
        )
    if cause is None:
        return TransientError(
            f"The object storage{at} does not answer ({_kind(error)}).",
            where=where,
            remedy="Check AWS_ENDPOINT_URL and the network, and run again: what was finished is kept.",
        )
    code, status = code_of(cause), _status(cause)
    if code in _EXPIRED:
        return ArtifactError(
            f"The credentials for the object storage{at} have expired.",
            where=where,
            remedy="Renew AWS_SESSION_TOKEN and its keys, and run again: what was finished is kept.",
        )
    apart = _minutes_apart(cause)
    # A HEAD's refusal has no code, and some servers call it another name.
    if code in _OTHER_TIME or (status in (401, 403) and apart is not None and apart > _MOST_MINUTES_APART):
        by = "" if apart is None else f" by {apart:,.0f} minutes"
        return ArtifactError(
            f"The clocks of this machine and of the object storage{at} differ{by} ({code}).",
            where=where,
            remedy="Set this machine's clock (NTP), or the server's: signatures are valid for 15 minutes only.",
        )
    if code in _UNKNOWN_USER:
        return ArtifactError(
            f"The object storage{at} does not accept the credentials ({code}).",
            where=where,
            remedy="Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )
    if code == "NoSuchBucket" or (code in MISSING and cause.operation_name in ("HeadBucket", "ListObjectsV2")):
        return ArtifactError(
            f"There is no bucket {bucket!r}{at}.", where=where, remedy="Make it, or correct the bucket's name."
        )
    if code in _FULL or status == 507:
        return StoreFull(
            f"The bucket {bucket!r}{at} takes no more ({code}).",
            where=where,
            remedy="Raise its quota or free some space (`deepspec artifacts gc`), and run again: "
            "what was finished is kept.",
        )
    if status in (401, 403):
        return ArtifactError(
            f"The object storage{at} does not allow {cause.operation_name} ({code}).",
            where=where,
            remedy="Grant it in the bucket's policy (infra/README.md lists what is needed), or use other credentials.",
        )
    if status >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling", "ServiceUnavailable", "503", "500"):
        return TransientError(
            f"The object storage{at} failed {attempts(environment)} times ({code}).",
            where=where,
            remedy="Run again when it is well: what was finished is kept.",
        )
    return ArtifactError(
        f"The object storage{at} refused {cause.operation_name} ({code}).",
        where=where,
        remedy="`deepspec --debug …` shows its answer.",
    )


def attempts(environment: Mapping[str, str] = os.environ) -> int:
    """How often a request is sent; AWS_MAX_ATTEMPTS, which every AWS tool knows, overrides it."""
    try:
        return max(1, int(environment["AWS_MAX_ATTEMPTS"]))
    except (KeyError, ValueError):
        return _ATTEMPTS


def passing(error: BaseException) -> bool:
    if isinstance(error, failures.ClientError):
        return code_of(error) in _HELD_AGAIN
    return isinstance(
        error,
        BodyChanged
        | failures.IncompleteReadError
        | failures.ReadTimeoutError
        | failures.ResponseStreamingError
        | failures.HTTPClientError,
    )


def client_error(error: BaseException | None) -> failures.ClientError | None:
    """The server's refusal in `error` or in what caused it: a transfer wraps those of its requests."""
    while error is not None:
        if isinstance(error, failures.ClientError):
            return error
        error = error.__cause__ or (error.__context__ if isinstance(error, S3UploadFailedError) else None)
    return None


def safe(error: Exception) -> Exception:
    """`error` as the cause of another: without the server's own words."""
    cause = client_error(error)
    if cause is None:
        return error
    request = str(cause.response.get("ResponseMetadata", {}).get("RequestId", "unknown"))
    return Refused(code_of(cause), _status(cause), cause.operation_name, request)


def code_of(error: failures.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: failures.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _minutes_apart(error: failures.ClientError) -> float | None:
    """How far the server's clock is from ours, as its reply says."""
    said = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return abs(parsedate_to_datetime(said).timestamp() - time.time()) / 60
    except (TypeError, ValueError, OverflowError):
        return None


def _kind(error: Exception) -> str:
    inner = error.__cause__ or error
    return type(inner).__name__
