"""The manifest: the one file that makes an artifact exist, and says everything about it.

It is a sealed record (`records.py`), so that a flipped bit in it makes it invalid rather than wrong.
"""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticSerializationError

from deepspec.errors import ArtifactError
from deepspec.store.layout import is_plain
from deepspec.store.records import refuse_newer, seal, unseal

ABOUT = "about/"
"""Files that are kept and checked like any other, but are no part of what an artifact is."""

EARLIER = "earlier_"
"""Before a name in a manifest's `cost`: of earlier attempts, which did not finish."""

FORMAT = 1
"""Raised when a manifest is written that an older deepspec could not read."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Piece(_Record):
    """A contiguous part of a file that is read as a whole: a row group, a tensor, or the file itself."""

    offset: int = Field(ge=0)
    length: int = Field(ge=0)
    crc32: int


class FileEntry(_Record):
    """One file of an artifact.

    Attributes:
        path: relative to the attempt, with forward slashes.
        size: its bytes.
        sha256: of all of it.
        pieces: in order; together they are the file. Manifests call them `blocks`.
    """

    model_config = ConfigDict(populate_by_name=True)

    path: str
    size: int = Field(ge=0)
    sha256: str
    pieces: tuple[Piece, ...] = Field(alias="blocks")

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        # Manifests may come from a shared place: no name in one may lead a reader out of the attempt's folder.
        if not is_plain(path):
            raise ValueError(f"{path!r} is not a plain relative path")
        return path


class Parent(_Record):
    """An input: another artifact (kind, key), or something external (kind "external", no key)."""

    kind: str
    key: str | None = None
    digest: str


class Payer(_Record):
    """Who paid for an attempt at an artifact.

    Attributes:
        run: id of the run.
        attempt: distinguishes its attempts at one artifact.
        model: registered model that the run's recipe is about; None: it is about none.
        price_per_gpu_hour, price_per_cpu_hour, currency: of the run's recipe; None: it has no such price.
    """

    run: str
    attempt: str
    model: str | None = None
    price_per_gpu_hour: float | None = None
    price_per_cpu_hour: float | None = None
    currency: str | None = None


class EarlierAttempt(_Record):
    """An attempt that did not finish its artifact: it was killed, or it failed.

    Attributes:
        payer: who paid for it.
        cost: what it used, by the names in `deepspec.usage.USED`.
    """

    payer: Payer
    cost: dict[str, float]


class Manifest(_Record):
    """What an artifact consists of and where it comes from.

    Attributes:
        format: version of this record.
        kind, key: the artifact's name in the store.
        attempt: the folder of this try; two writers never share one.
        ingredients: what the key was made of (`Ingredients.canonical`).
        parents: by name.
        files: sorted by path.
        digest: SHA-256 over the sorted (path, size, sha256) list: what children's keys contain. Files in `about/` are
            left out of it: they say where something came from, and a child must compute nothing from them.
        counts: rows, tokens, bytes and so on, as the stage reported them.
        code: deepspec's version and commit, library versions, Python.
        cost: what the attempt used that finished, by the names in `deepspec.usage.USED`; with `earlier_` before the
            name, the sum over `earlier`. What there was none of is left out.
        made_by: who paid for that attempt; None: not recorded, as by an earlier deepspec.
        earlier: the attempts before it that did not finish; an earlier deepspec recorded their sum alone.
        created_at: ISO 8601, UTC.
    """

    format: int = 1
    kind: str
    key: str
    attempt: str = Field(pattern="^[0-9a-f]{32}$")
    ingredients: dict[str, Any]
    parents: dict[str, Parent]
    files: tuple[FileEntry, ...]
    digest: str
    counts: dict[str, Any] = {}
    code: dict[str, Any] = {}
    cost: dict[str, float] = {}
    made_by: Payer | None = None
    earlier: tuple[EarlierAttempt, ...] = ()
    created_at: str

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, as it is recorded."""
        return self.model_dump(mode="json", by_alias=True)

    def to_bytes(self) -> bytes:
        """The manifest as JSON with its own checksum.

        Raises:
            ArtifactError: what the stage reported is not JSON.
        """
        try:
            return seal(self.to_json())
        except (PydanticSerializationError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"This cannot be recorded in a manifest: {error}.",
                where=f"{self.kind}.counts",
                remedy="A stage reports plain numbers, texts, lists and mappings.",
            ) from error

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Manifest":
        """Read a manifest back.

        Raises:
            ValueError: it is damaged (the artifact does not exist for readers).
            ArtifactError: it was written by a newer deepspec, and must not be taken for damaged.
        """
        record = unseal(data)
        refuse_newer(record, FORMAT, what="This artifact", where=where, otherwise="use another store")
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error


def content_digest(files: tuple[FileEntry, ...]) -> str:
    """SHA-256 over the sorted list of (path, size, sha256), without what is only about the artifact (`ABOUT`)."""
    listing = sorted([entry.path, entry.size, entry.sha256] for entry in files if not entry.path.startswith(ABOUT))
    return hashlib.sha256(json.dumps(listing, separators=(",", ":")).encode()).hexdigest()
