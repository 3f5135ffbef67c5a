"""Records that are numbered once, in the order in which they came, by whoever comes: 1.json, 2.json … in a folder.

One record for each distinct subject; records are created, never overwritten or collected, at n = last + 1. So a run
that ends in the middle, and every later one of the same subject, finds its record again. No clock has a part in it.
"""

import re
import uuid
from collections.abc import Callable
from typing import Generic, TypeVar

from pydantic import ValidationError

from deepspec.errors import ArtifactError
from deepspec.registry.errors import PromotionConflict, PromotionLogDamaged
from deepspec.registry.records import Records
from deepspec.store.records import JsonRecord, refuse_newer, seal, unseal

FORMAT = 1
_ENTRY = re.compile(r"([1-9][0-9]{0,8})\.json")
_ATTEMPTS = 8


class NumberedRecord(JsonRecord):
    """A record in a numbered folder.

    Attributes:
        format: version of this record.
        number: from 1.
        subject: digest of what it is about; each has one record.
        attempt: unique to the call that wrote it.
    """

    format: int = FORMAT
    number: int
    subject: str
    attempt: str


RecordT = TypeVar("RecordT", bound=NumberedRecord)


class NumberedRecords(Generic[RecordT]):
    """The records in one folder.

    Args:
        records: where they lie; a store's backend.
        folder: theirs alone.
        kind: their class.
        what: one of them, in words for errors, with its article.
        until_then: what is not done as long as one is damaged, in words.
    """

    def __init__(self, records: Records, folder: str, kind: type[RecordT], *, what: str, until_then: str) -> None:
        self._records = records
        self._folder = folder
        self._kind = kind
        self._what = what
        self._until_then = until_then

    def last(self) -> int:
        """The highest number; 0 if there is no record.

        Raises:
            PromotionLogDamaged: one is missing.
        """
        names = (path.removeprefix(f"{self._folder}/") for path in self._records.list(self._folder))
        numbers = {int(match[1]) for match in map(_ENTRY.fullmatch, names) if match}
        if numbers and max(numbers) > len(numbers):
            missing = next(number for number in range(1, len(numbers) + 2) if number not in numbers)
            raise self._damaged(missing, "it is missing, but later ones are there")
        return len(numbers)

    def find(self, subject: str, last: int) -> RecordT | None:
        """The subject's record among the first `last`; from the newest on, for whose run is repeated most.

        Raises:
            PromotionLogDamaged: a record cannot be read.
        """
        return next((one for one in map(self.read, range(last, 0, -1)) if one.subject == subject), None)

    def reserve(self, subject: str, where: str, make: Callable[[int, str], RecordT]) -> RecordT:
        """The subject's record from now on.

        Args:
            subject: see `NumberedRecord`.
            where: what it is about, for errors.
            make: (number, attempt) -> the record; called only if there is none yet.

        Raises:
            PromotionConflict: other processes reserved theirs all the time.
            PromotionLogDamaged: a record cannot be read.
        """
        for _ in range(_ATTEMPTS):
            last = self.last()
            found = self.find(subject, last)
            if found is not None:
                return found
            record = make(last + 1, uuid.uuid4().hex)
            if self._records.create(self._path(record.number), seal(record.to_json())):
                return record
            # It may be ours after all, with the answer lost on the way back: the next turn finds it.
        raise PromotionConflict(
            f"Other processes wrote {self._what} {_ATTEMPTS} times in a row.", where=where, remedy="Run again."
        )

    def read(self, number: int) -> RecordT:
        """A record that is there.

        Raises:
            PromotionLogDamaged: it cannot be read.
        """
        path = self._path(number)
        try:
            record = unseal(self._records.read(path))
            refuse_newer(record, FORMAT, what=f"This record of {self._what}", where=path, otherwise="use another store")
            return self._kind.model_validate(record)
        except FileNotFoundError as error:
            raise self._damaged(number, "it was listed but cannot be found") from error
        except ArtifactError:
            raise
        except (ValidationError, ValueError) as error:
            raise self._damaged(number, "its checksum or a field is wrong") from error

    def _damaged(self, number: int, flaw: str) -> PromotionLogDamaged:
        return PromotionLogDamaged(
            f"The record of {self._what} is damaged: {flaw}.",
            where=self._path(number),
            remedy=f"Restore it from a backup; {self._until_then} until then.",
        )

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number}.json"
