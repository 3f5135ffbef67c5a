"""What is known of a version where the store does not have all that it was made from: in production.

A record `registry/<model>/versions/<digest>.json` is created, never overwritten, before the draft's first entry in the
promotion log there. It holds what MLflow and people are shown of the version. What users have said is no part of it:
conversations, answers and tokens stay in the store in which the draft was made, and are named by key and digest alone.
"""

import contextlib
import re
from typing import Any

from deepspec.registry.card import CARD_FILE
from deepspec.registry.entries import DraftReference
from deepspec.registry.errors import VersionRecordDamaged
from deepspec.registry.records import ROOT, Records
from deepspec.store.records import JsonRecord, refuse_newer, seal, unseal

FORMAT = 1
"""Raised when a record is written that an older deepspec could not read."""

_RECORD = re.compile(r"([0-9a-f]{64})\.json")


class Ancestor(JsonRecord):
    """An artifact that a version was made from or measured by.

    Attributes:
        kind, key, digest: what it is.
        in_store: whether this store has it.
    """

    kind: str
    key: str
    digest: str
    in_store: bool = True


class VersionRecord(JsonRecord):
    """A registered version, apart from its files.

    Attributes:
        format: version of this record.
        model: registered model name.
        draft: the artifact, and the version where it was registered first.
        tags: of the registered version.
        card: about the draft (Markdown); None: it has none.
        notes: further files about it, name -> text.
        evaluation: what it was measured at, as `evaluation.json`; None: not known.
        lineage: nearest first.
    """

    format: int = FORMAT
    model: str
    draft: DraftReference
    tags: dict[str, str]
    card: str | None
    notes: dict[str, str]
    evaluation: dict[str, Any] | None
    lineage: tuple[Ancestor, ...]

    def about(self) -> dict[str, str]:
        """What is said of the draft, by file: its notes, and its card."""
        return {**self.notes, **({CARD_FILE: self.card} if self.card is not None else {})}

    def write(self, records: Records) -> None:
        """Create the record, unless there is one: it says what was known when the version came."""
        records.create(_path(self.model, self.draft.digest), seal(self.model_dump(mode="json", by_alias=True)))


def version_record(records: Records, model: str, digest: str) -> VersionRecord | None:
    """The record of the draft with this digest; None: there is none.

    Raises:
        VersionRecordDamaged: it cannot be read.
        ArtifactError: a newer deepspec wrote it.
    """
    with contextlib.suppress(FileNotFoundError):
        return _read(records, _path(model, digest))
    return None


def version_records(records: Records, model: str) -> list[VersionRecord]:
    """All records of a model, in the order in which the versions were registered first; errors as `version_record`.

    Costs one listing, and a read of each.
    """
    folder = _folder(model)
    names = (path for path in records.list(folder) if _RECORD.fullmatch(path.removeprefix(f"{folder}/")))
    return sorted((_read(records, path) for path in names), key=_number)


def _number(record: VersionRecord) -> tuple[int, str]:
    version = record.draft.version or ""
    return int(version) if version.isdecimal() else 0, record.draft.digest


def _read(records: Records, path: str) -> VersionRecord:
    try:
        record = unseal(records.read(path))
        refuse_newer(record, FORMAT, what="This version's record", where=path, otherwise="use another store")
        return VersionRecord.from_json(record, where=path)
    except ValueError as error:
        raise VersionRecordDamaged(
            f"The record of a version is damaged: {error}.",
            where=path,
            remedy="Remove it: the next run where the draft was made writes it again.",
        ) from error


def _folder(model: str) -> str:
    return f"{ROOT}/{model}/versions"


def _path(model: str, digest: str) -> str:
    return f"{_folder(model)}/{digest}.json"
