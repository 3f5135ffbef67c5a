"""What trainings were started from: one record for each distinct training of a model that asked for its champion.

Records `registry/<model>/starts/<n>.json` are numbered once (numbered.py), before the training begins. So what a run
decides holds for every later one with the same data and the same recipe: a run that was killed is resumed from what it
had begun, and one without news finds what was made, whoever is champion by then.
"""

from deepspec.registry.entries import DraftReference
from deepspec.registry.numbered import NumberedRecord, NumberedRecords
from deepspec.registry.records import ROOT, Records


class Start(NumberedRecord):
    """What one training is started from.

    Its subject is a digest of all that the training depends on but for the draft that it is started from.

    Attributes:
        draft: that draft; None: new weights.
        control: whether that is so by turn (`train.control_every`), although there was a champion.
    """

    draft: DraftReference | None = None
    control: bool = False


class Starts:
    """The starts of one model's trainings.

    Args:
        records: where they lie; a store's backend.
        model: registered model name.
    """

    def __init__(self, records: Records, model: str) -> None:
        self._model = model
        self._starts = NumberedRecords(
            records,
            f"{ROOT}/{model}/starts",
            Start,
            what="a training's start",
            until_then=f"no training of {model} starts from its champion",
        )

    def find(self, subject: str) -> Start | None:
        """What was decided for a training; None: nothing yet.

        Raises:
            PromotionLogDamaged: a record cannot be read.
        """
        return self._starts.find(subject, self._starts.last())

    def reserve(self, subject: str, champion: DraftReference | None, control_every: int | None) -> Start:
        """What is decided for a training from now on.

        Args:
            subject: see `Start`.
            champion: that it is started from, unless it is its turn to be a control.
            control_every: see `is_turn`.

        Raises:
            PromotionConflict: other processes reserved theirs all the time.
            PromotionLogDamaged: a record cannot be read.
        """

        def start(number: int, attempt: str) -> Start:
            control = champion is not None and self._is_turn(number, control_every)
            draft = None if control else champion
            return Start(number=number, subject=subject, attempt=attempt, draft=draft, control=control)

        return self._starts.reserve(subject, self._model, start)

    def is_turn(self, control_every: int | None) -> bool:
        """Whether the next training starts from new weights as a control: the `control_every - 1` before it did not.

        Raises:
            PromotionLogDamaged: a record cannot be read.
        """
        return self._is_turn(self._starts.last() + 1, control_every)

    def _is_turn(self, number: int, control_every: int | None) -> bool:
        if control_every is None or number < control_every:
            return False
        before = range(number - control_every + 1, number)
        return all(self._starts.read(earlier).draft is not None for earlier in before)
