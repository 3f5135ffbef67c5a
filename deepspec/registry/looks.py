"""How often a champion was challenged: one record for each distinct challenger that was judged against it.

Records `registry/<model>/looks/<champion>/<n>.json` are numbered once (numbered.py), before the look is taken: a run
that ends in the middle, and every later judging of the same draft on the same answers, finds its number again. What a
look may spend is `deepspec.gates.looks`.
"""

from deepspec.registry.numbered import NumberedRecord, NumberedRecords
from deepspec.registry.records import ROOT, Records


class Look(NumberedRecord):
    """One challenger's turn at a champion.

    Its subject is a digest of all that the measurement depends on: the challenger, the gate prompts with their answers,
    and how they are decoded. Another of these is another look.

    Attributes:
        challenger: digest of the draft.
    """

    challenger: str


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
        looks = self._at(model, champion)
        last = looks.last()
        found = looks.find(subject, last)
        return last + 1 if found is None else found.number

    def reserve(self, model: str, champion: str, subject: str, challenger: str) -> int:
        """The number that a subject has from now on; arguments as of `number`, and the draft's digest.

        Raises:
            PromotionConflict: other processes reserved theirs all the time.
            PromotionLogDamaged: a record cannot be read.
        """

        def look(number: int, attempt: str) -> Look:
            return Look(number=number, subject=subject, challenger=challenger, attempt=attempt)

        return self._at(model, champion).reserve(subject, model, look).number

    def _at(self, model: str, champion: str) -> NumberedRecords[Look]:
        return NumberedRecords(
            self._records,
            f"{ROOT}/{model}/looks/{champion}",
            Look,
            what="a look at a champion",
            until_then="nothing is judged against this champion",
        )
