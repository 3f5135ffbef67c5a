"""How often a champion was challenged: one record for each distinct challenger that was judged against it.

Records `registry/<model>/looks/<champion>/<n>.json` are created, never overwritten or collected, at n = last + 1. So a
look is numbered once, before it is taken: a run that ends in the middle, and every later judging of the same draft on
the same answers, finds its number again. What a look may spend is `deepspec.gates.looks`.
"""

import re
import uuid

from pydantic import ValidationError

from deepspec.errors import ArtifactError
from deepspec.registry.errors import PromotionConflict, PromotionLogDamaged
from deepspec.registry.records import ROOT, Records
from deepspec.store.records import JsonRecord, refuse_newer, seal, unseal

FORMAT = 1
_ENTRY = re.compile(r"([1-9][0-9]{0,8})\.json")
_ATTEMPTS = 8


class Look(JsonRecord):
    """One challenger's turn at a champion.

    Attributes:
        format: version of this record.
        number: from 1.
        subject: digest of all that the measurement depends on: the challenger, the gate prompts with their answers, and
            how they are decoded. Another of these is another look.
        challenger: digest of the draft.
        attempt: unique to the call that wrote it.
    """

    format: int = FORMAT
    number: int
    subject: str
    challenger: str
    attempt: str


class Looks:
    """The looks at all champions on one backend.

    Args:
        records: where they lie; a store's backend.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    def number(self, model: str, champion: str, subject: str) -> int:
        """The number that a subject has, or would get; nothing is written.

        Args:
            model: registered model name.
            champion: digest of the draft that is challenged.
            subject: see `Look`.

        Raises:
            PromotionLogDamaged: a record cannot be read.
        """
        last = self._last(model, champion)
        return self._find(model, champion, subject, last) or last + 1

    def reserve(self, model: str, champion: str, subject: str, challenger: str) -> int:
        """The number that a subject has from now on; arguments as of `number`, and the draft's digest.

        Raises:
            PromotionConflict: other processes reserved theirs all the time.
            PromotionLogDamaged: a record cannot be read.
        """
        for _ in range(_ATTEMPTS):
            last = self._last(model, champion)
            found = self._find(model, champion, subject, last)
            if found is not None:
                return found
            attempt = uuid.uuid4().hex
            look = Look(format=FORMAT, number=last + 1, subject=subject, challenger=challenger, attempt=attempt)
            if self._records.create(_path(model, champion, look.number), seal(look.to_json())):
                return look.number
            # It may be ours after all, with the answer lost on the way back: the next turn finds it.
        raise PromotionConflict(
            f"Other processes wrote their looks at champion {champion[:12]} {_ATTEMPTS} times in a row.",
            where=model,
            remedy="Run again.",
        )

    def _find(self, model: str, champion: str, subject: str, last: int) -> int | None:
        """From the newest on: that is whose run is repeated most."""
        for number in range(last, 0, -1):
            if self._read(_path(model, champion, number)).subject == subject:
                return number
        return None

    def _last(self, model: str, champion: str) -> int:
        folder = _folder(model, champion)
        names = (path.removeprefix(f"{folder}/") for path in self._records.list(folder))
        numbers = {int(match[1]) for match in map(_ENTRY.fullmatch, names) if match}
        if numbers and max(numbers) > len(numbers):
            missing = next(number for number in range(1, len(numbers) + 2) if number not in numbers)
            raise _damaged(_path(model, champion, missing), "it is missing, but later ones are there")
        return len(numbers)

    def _read(self, path: str) -> Look:
        try:
            record = unseal(self._records.read(path))
            refuse_newer(record, FORMAT, what="This look", where=path, otherwise="use another store")
            return Look.model_validate(record)
        except FileNotFoundError as error:
            raise _damaged(path, "it was listed but cannot be found") from error
        except ArtifactError:
            raise
        except (ValidationError, ValueError) as error:
            raise _damaged(path, "its checksum or a field is wrong") from error


def _damaged(where: str, flaw: str) -> PromotionLogDamaged:
    return PromotionLogDamaged(
        f"The record of a look at a champion is damaged: {flaw}.",
        where=where,
        remedy="Restore it from a backup; nothing is judged against this champion until then.",
    )


def _folder(model: str, champion: str) -> str:
    return f"{ROOT}/{model}/looks/{champion}"


def _path(model: str, champion: str, number: int) -> str:
    return f"{_folder(model, champion)}/{number}.json"
