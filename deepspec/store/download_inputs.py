"""Inputs that lie in object storage, as local files: fetched when they are new or have changed, and only then.

These are copies of the user's own objects, under their own names, not artifacts. A hidden file next to a copy says
which object it was made from (ETag, size, time); losing that costs a download, never correctness: keys are made of the
content. boto3 is loaded only if a location asks for it.
"""

import contextlib
import fnmatch
import hashlib
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deepspec.atomic_write import replacing
from deepspec.errors import DataError
from deepspec.store.backends.s3_location import SCHEME, endpoint_url, shown
from deepspec.store.layout import is_plain

logger = logging.getLogger(__name__)

_URL = re.compile(r"s3://([^/]+)/(.+)", re.DOTALL)
_PARALLEL = 4


def local_copy(location: str, cache: Path, *, where: str) -> str:
    """`location` as a local path; an `s3://` URL is copied into `cache` first, anything else is handed back.

    Args:
        location: a path, or the URL of an object, of a folder of objects, or a pattern (`s3://bucket/chats/*.jsonl`).
        cache: folder for the copies.
        where: the recipe's field, for messages.

    Raises:
        DataError: the URL names nothing.
        ArtifactError, TransientError: the object storage refuses or does not answer.
    """
    if not location.startswith(SCHEME):
        return location
    bucket, name = _parts(location, where)
    root = cache.absolute() / "inputs" / hashlib.sha256(shown(endpoint_url()).encode()).hexdigest()[:8] / bucket
    found = dict(_objects(bucket, name, where))
    if not found:
        raise DataError(
            "There is no such object, and no folder of that name.", where=f"{where} {location}", remedy="Check the URL."
        )
    _forget(root, root.joinpath(*name.split("/")), found)
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="inputs") as pool:
        for done in [pool.submit(_fetch, bucket, key, tag, root, where) for key, tag in found.items()]:
            done.result()
    return str(root.joinpath(*name.split("/")))


def versions(location: str, *, where: str) -> list[list[str]]:
    """Key and version of every object that a URL names, sorted; none if it names nothing.

    A version says that an object is still the one that was read, not what it contains.

    Raises:
        DataError: it is no `s3://` URL.
        ArtifactError, TransientError: the object storage refuses or does not answer.
    """
    return sorted([key, tag] for key, tag in _objects(*_parts(location, where), where))


def _parts(location: str, where: str) -> tuple[str, str]:
    """Bucket, and the name in it."""
    match = _URL.fullmatch(location)
    if match is None:
        raise DataError("This is no s3://bucket/key.", where=where, remedy="Name an object, a folder or a pattern.")
    return match[1], match[2].rstrip("/")


def _objects(bucket: str, name: str, where: str) -> Iterator[tuple[str, str]]:
    """Key and version of every object that `name` means."""
    from deepspec.store.backends.s3 import listed

    literal = re.split(r"[*?[]", name, maxsplit=1)[0]
    for key, tag in listed(bucket, literal, f"{where} {SCHEME}{bucket}/{name}"):
        inside = key == name or key.startswith(f"{name}/") or fnmatch.fnmatchcase(key, name)
        if inside and is_plain(key):
            yield key, tag
        elif inside and not key.endswith("/"):
            logger.warning("%s: the object %r lies outside the folder and is passed over", where, key)


def _fetch(bucket: str, key: str, tag: str, root: Path, where: str) -> None:
    """Bring one copy up to date."""
    from deepspec.store.backends.s3 import download

    path = root.joinpath(*key.split("/"))
    version = path.with_name(f".{path.name}.etag")
    with contextlib.suppress(OSError):
        if path.is_file() and version.read_text(encoding="utf-8") == tag:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        download(bucket, key, temporary, f"{where} {SCHEME}{bucket}/{key}")
        version.unlink(missing_ok=True)
    version.write_text(tag, encoding="utf-8")


def _forget(root: Path, folder: Path, found: dict[str, str]) -> None:
    """Remove copies in a folder whose objects are gone: they would still be read."""
    if folder.is_dir():
        for path in [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]:
            if path.relative_to(root).as_posix() not in found:
                path.unlink(missing_ok=True)
