"""How far a run is, and when it is expected to end: what its stages took in earlier runs, or the plan's estimate.

    outlook = Outlook(expected_seconds(stages, store=store, models=models, recipe=recipe, home=home))
    outlook.begin("train"); outlook.advance(0.4)
    outlook.percent, outlook.ends_at

Not here: showing it (prefect/pages.py).
"""

import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deepspec import history
from deepspec.errors import DeepspecError
from deepspec.recipe import Recipe
from deepspec.record import RunRecord
from deepspec.reports.run_markdown import duration
from deepspec.store import Store

_DAYS = 31
_RUNS = 5
"""So many earlier runs are asked what a stage takes, the newest ones."""
_PLANNED = {"capture": "states", "training": "train"}
"""Work of the plan's estimate -> the stage that does it."""
_UNKNOWN_SECONDS = 30.0
_ALMOST = 0.95
"""The most of a stage that can be done by the clock alone: one that takes longer than expected is not finished."""


class Outlook:
    """What is expected of a run's stages, and what has come of it.

    Args:
        expected: stage -> seconds, of those that are to be made, in order.
        clock: seconds since the epoch.
    """

    def __init__(self, expected: Mapping[str, float], clock: Callable[[], float] = time.time) -> None:
        self._expected = dict(expected)
        self._clock = clock
        self._made: set[str] = set()
        self._stage: str | None = None
        self._began = self._share = 0.0
        self._started = clock()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self._clock() - self._started

    def begin(self, stage: str) -> None:
        """A stage is being made from now on."""
        self._expected.setdefault(stage, _UNKNOWN_SECONDS)
        self._stage, self._began, self._share = stage, self._clock(), 0.0

    def advance(self, share: float) -> None:
        """So much of the stage is done, 0 to 1."""
        self._share = max(self._share, min(share, 1.0))

    def end(self) -> None:
        """The stage is made."""
        if self._stage is not None:
            self._made.add(self._stage)
        self._stage = None

    @property
    def percent(self) -> float:
        """How much of the run is done, by expected duration."""
        total = sum(self._expected.values())
        done = sum(seconds for stage, seconds in self._expected.items() if stage in self._made)
        if self._stage is not None and self._stage not in self._made:
            expected = self._expected[self._stage]
            by_clock = min(self._elapsed / expected, _ALMOST) if expected else 0.0
            done += expected * (self._share or by_clock)
        return min(100.0 * done / total, 100.0) if total else 100.0

    @property
    def ends_at(self) -> datetime:
        """When the run is expected to end, in UTC."""
        return datetime.fromtimestamp(self._clock(), UTC) + timedelta(seconds=self._remaining)

    @property
    def sentence(self) -> str:
        """All of it in words."""
        if self._made >= set(self._expected):
            return "Every stage is made."
        stages = list(self._expected)
        at = f"{self.ends_at:%Y-%m-%d %H:%M} UTC"
        place = f"{self._stage} (stage {stages.index(self._stage) + 1} of {len(stages)})" if self._stage else ""
        doing = place or "between two stages"
        return f"Running: {doing}, {self.percent:.0f} % done, expected to end at {at}, in {duration(self._remaining)}."

    @property
    def _elapsed(self) -> float:
        return max(self._clock() - self._began, 0.0)

    @property
    def _remaining(self) -> float:
        left = sum(
            seconds for stage, seconds in self._expected.items() if stage not in self._made and stage != self._stage
        )
        if self._stage is None or self._stage in self._made:
            return left
        if self._share:
            return left + self._elapsed * (1 - self._share) / self._share
        return left + max(self._expected[self._stage] - self._elapsed, 0.0)


def expected_seconds(
    stages: Sequence[str], *, store: Store, models: Collection[str], recipe: object, home: Path
) -> dict[str, float]:
    """What the making of stages is expected to take.

    Known from earlier runs of the same models; else from the plan; else from whichever artifact of that kind was made
    last. Costs a listing of the history and a read for each run of a month.

    Args:
        stages: that are to be made, in order.
        store: with the history and earlier artifacts.
        models: that the run is about.
        recipe: the run's; what is no `Recipe` has no plan.
        home: the home folder.
    """
    try:
        since = datetime.now(UTC) - timedelta(days=_DAYS)
        earlier = [
            record
            for record in history.records(store.backend, since=since)
            if set(record.registered_models) & set(models)
        ]
    except DeepspecError:  # an outlook is worth no failure
        earlier = []
    found: dict[str, float | None] = {stage: took(earlier, stage) for stage in stages}
    if any(found.get(stage, 0.0) is None for stage in _PLANNED.values()):
        found = {
            **_planned(recipe, home),
            **{stage: seconds for stage, seconds in found.items() if seconds is not None},
        }
    return {stage: usual if (usual := found.get(stage)) is not None else _last_made(store, stage) for stage in stages}


def took(records: Iterable[RunRecord], stage: str) -> float | None:
    """The median of what a stage took in the last runs that made it, in seconds; None: none did."""
    made = [
        float(entry.seconds)
        for record in records
        for entry in record.stages
        if entry.name == stage and entry.status in ("ran", "rebuilt")
    ]
    return statistics.median(made[-_RUNS:]) if made else None


def _planned(recipe: object, home: Path) -> dict[str, float]:
    """The plan's estimate, where the recipe names a GPU and the lengths of its documents are known."""
    from deepspec.planning.before_run import estimate_run

    if not isinstance(recipe, Recipe) or recipe.run.gpu is None:
        return {}
    try:
        estimate = estimate_run(recipe, home)
    except DeepspecError:
        return {}
    hours = estimate.gpu.hours if estimate is not None and estimate.gpu is not None else {}
    return {_PLANNED[work]: 3600 * float(value) for work, value in hours.items()}


def _last_made(store: Store, stage: str) -> float:
    """Seconds that the making of the last artifact of a stage took."""
    try:
        last = next(store.latest(stage, 1), None)
    except DeepspecError:
        last = None
    return float(last.cost.get("seconds", _UNKNOWN_SECONDS)) if last is not None else _UNKNOWN_SECONDS
