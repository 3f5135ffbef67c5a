"""A bundle under a prefix of a bucket: its files in a folder named by its digest, then the index that names it.

`PREFIX/bundle.json` always is the index of a bundle that is whole, in `PREFIX/<the first 16 digits of the index's
SHA-256>/`: a reader that takes it first never meets files of two bundles. Folders of earlier bundles stay.
"""

import shutil
from pathlib import Path

from deepspec.bundle.index import INDEX_FILE, Bundle
from deepspec.store import open_store

_DIGITS = 16


def send(folder: Path, bundle: Bundle, url: str, *, cache: Path) -> tuple[str, bool]:
    """Upload a bundle; return its folder's address, and whether anything was sent.

    Args:
        folder, bundle: which.
        url: `s3://bucket/prefix`; endpoint and credentials come from the usual AWS variables.
        cache: folder for files on their way.

    Raises:
        ArtifactError: the bucket refuses.
        TransientError: it does not answer.
    """
    backend = open_store(url, cache=cache).backend
    place = bundle.digest[:_DIGITS]
    address = f"{backend.location}/{place}"
    wanted = {f"{place}/{name}": file.bytes for name, file in bundle.files.items()}
    wanted[f"{place}/{INDEX_FILE}"] = (folder / INDEX_FILE).stat().st_size
    there = {path: stat.size for path, stat in backend.list(place).items()}
    text = bundle.text().encode()
    if there == wanted and _index(url, cache) == text:
        return address, False
    if there != wanted:
        staging = backend.staging(place)
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        backend.publish(place, staging)
    backend.put(INDEX_FILE, text)
    return address, True


def _index(url: str, cache: Path) -> bytes | None:
    try:
        return open_store(url, cache=cache).backend.read(INDEX_FILE)
    except FileNotFoundError:
        return None
