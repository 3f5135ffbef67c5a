"""What the stages of one run share: the recipe, the store, progress, and the record that becomes `run.json`."""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from filelock import Timeout
from pydantic import BaseModel

from deepspec.config import RecipeValue
from deepspec.cost.accounts import Accounts
from deepspec.errors import LeaseHeld
from deepspec.file_lock import FileLock
from deepspec.inputs import local
from deepspec.recipe import Recipe, RunConfig
from deepspec.registry.entries import Promotion
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Artifact, Store
from deepspec.store.fingerprint import External, Fingerprints
from deepspec.store.lease import Lease
from deepspec.usage import Usage
from tasks.runtime.display import Display, Hidden, Sayings
from tasks.runtime.outlook import Outlook
from tasks.runtime.reasons import Reason
from tasks.runtime.records import StageRecord

if TYPE_CHECKING:
    from deepspec.registry.mlflow.tracking import Tracking

logger = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 1.0
_STAGE_LEASE_SECONDS = 30.0
"""How long others wait for a run that died while it made something."""


RecipeT = TypeVar("RecipeT", bound=BaseModel)


class SignsOfLife(Protocol):
    """What a later run ends this one by, should it die (record/alive.py).

    Attributes:
        flow_runs: ids of its flow runs on Prefect's server.
        tracking_runs: ids of its runs in MLflow.
    """

    flow_runs: list[str]
    tracking_runs: list[str]

    def write(self) -> None:
        """Keep them, and what the run has recorded."""

    def end(self, *, in_order: bool = True) -> None:
        """The run has ended, and all that others see of it; else a later run ends what this one could not."""


@dataclass
class Run(Generic[RecipeT]):
    """One run of a flow, or the preview of one.

    Attributes:
        recipe: the resolved recipe, its inputs local; stages are handed what they declare of it.
        store: where artifacts are.
        home: where this user's runs, databases and work folders are.
        display: shows stages and their progress to a person.
        run_id: sorts by time.
        previewing: whether stages are only looked up, not made.
        dry: whether nothing at all may be written: a preview that no run follows.
        on_shared_server: whether it runs on a Prefect server that others see; what is reused is shown there, too.
        algorithm: whose draft is being made, in a run that makes several; None in any other.
        records: what happened, in order.
        tracking, tracking_run: the experiment tracker and this run's id in it; None in a preview.
        known: (kind, key) -> the artifact, for each that was found or made; none is looked up twice.
        reasons: key -> why its artifact has to be made, of every one that was not found.
        resolved: name -> the external input, of every one that was looked at for this recipe.
        given: the recipe as a person gave it.
        waited: seconds that it has waited for others.
        making, making_key: the stage that is being made or looked up, and its key; after an error, those that it ended.
        name: what it is called in its record; empty if it leaves none.
        models: the registered models that its recipes are about, as its record says.
        night: the Prefect deployment that started it, as its record says.
        alive: its signs of life, once it makes something.
        on_making: called before a stage makes something.
        recipes: all that it is about, in order; empty in a run that leaves no record.
        usage: what it has used so far; None in a run that leaves no record.
        outlook: how far it is; None where nothing is made, or nobody else sees it.
        progress_artifact: id of the artifact in Prefect that says so.
        began: model -> number of the last entry in its promotion log when the run first looked.
    """

    recipe: RecipeT
    store: Store
    home: Path
    display: Display = field(default_factory=Hidden)
    run_id: str = ""
    previewing: bool = False
    dry: bool = False
    on_shared_server: bool = False
    algorithm: str | None = None
    records: list[StageRecord] = field(default_factory=list)
    tracking: "Tracking | None" = None
    tracking_run: str | None = None
    known: dict[tuple[str, str], Artifact] = field(default_factory=dict)
    reasons: dict[str, Reason] = field(default_factory=dict)
    resolved: dict[str, External] = field(default_factory=dict)
    leased: list[tuple[str, str]] = field(default_factory=list)
    on_lease: Callable[[list[tuple[str, str]]], None] | None = None
    on_making: Callable[[], None] = lambda: None
    given: RecipeT | None = None
    waited: float = 0.0
    making: str | None = None
    making_key: str | None = None
    name: str = ""
    models: tuple[str, ...] = ()
    night: str | None = None
    alive: "SignsOfLife | None" = None
    recipes: tuple[Recipe, ...] = ()
    usage: Usage | None = None
    outlook: Outlook | None = None
    progress_artifact: uuid.UUID | None = None
    _fingerprints: Fingerprints | None = None
    _accounts: Accounts | None = None
    _promotions: PromotionLog | None = None
    began: dict[str, int] = field(default_factory=dict)
    _histories: dict[str, tuple[Promotion, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run_id = self.run_id or new_run_id()

    def begin(self, recipe: RecipeT, algorithm: str | None = None) -> None:
        """Go on with this recipe: what it names in object storage is copied into the home first."""
        self.given, self.recipe, self.algorithm = recipe, local(recipe, self.home), algorithm
        self.resolved = {}

    def preview(self) -> "Run[RecipeT]":
        """This run as it only looks: what it finds and resolves is known to both, its records are its own."""
        return replace(
            self,
            previewing=True,
            records=[],
            leased=[],
            on_lease=None,
            alive=None,
            display=Sayings(self.display),
            _promotions=self.promotions,
            _histories={},
        )

    @property
    def execution(self) -> RunConfig:
        """The recipe's `run:` section; its defaults where the recipe (of inputs) has none."""
        return self.recipe.run if isinstance(self.recipe, Recipe) else RunConfig()

    @property
    def fingerprints(self) -> Fingerprints:
        """Fingerprints of external inputs, remembered between runs in the home folder."""
        if self._fingerprints is None:
            self._fingerprints = Fingerprints(self.home / "fingerprints.json")
        return self._fingerprints

    @property
    def accounts(self) -> Accounts:
        """What attempts have cost that did not finish, as the store has it."""
        if self._accounts is None:
            self._accounts = Accounts(self.store.backend)
        return self._accounts

    @property
    def promotions(self) -> PromotionLog:
        """The promotion logs in the store; entries that the run has read are known to it."""
        if self._promotions is None:
            self._promotions = PromotionLog(self.store.backend, remembers=True)
        return self._promotions

    def history(self, model: str) -> tuple[Promotion, ...]:
        """A model's promotion log: in a preview as it was when first asked for, in a run as it is now.

        Raises:
            PromotionLogDamaged: as `PromotionLog.history`.
        """
        found = self._histories.get(model) if self.previewing else None
        if found is None:
            found = self._histories[model] = self.promotions.history(model)
            self.began.setdefault(model, len(found))
        return found

    @property
    def folder(self) -> Path:
        """Where this run's own files go (`run.json`, the report)."""
        return self.home / "runs" / self.run_id

    def work_folder(self, key: str) -> Path:
        """Where a stage keeps what it needs to resume the artifact `key`."""
        return self.home / "work" / key

    def artifact(self, kind: str, key: str) -> Artifact:
        """An artifact that must be there: known already, or looked up now.

        Raises:
            ArtifactMissing: it is not there, or damaged.
        """
        return self.find(kind, key) or self.store.get(kind, key)

    def find(self, kind: str, key: str) -> Artifact | None:
        """An artifact that may be there: known already, or looked up now."""
        found = self.known.get((kind, key)) or self.store.find(kind, key)
        if found is not None:
            self.known[kind, key] = found
        return found

    def once(self, name: str, resolve: Callable[[], External]) -> External:
        """An external input: looked at when it is first asked for, and the same from then on."""
        if name not in self.resolved:
            self.resolved[name] = resolve()
        return self.resolved[name]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for others: that is no stage's time."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.waited += time.monotonic() - started

    @contextmanager
    def alone_with(self, key: str, name: str) -> Iterator[None]:
        """Hold off other runs that want to make the same artifact; waits while one does.

        Runs in this home wait for the process that holds a file's lock; those on other machines, which share the
        store only, for a lease. That only saves double work: where two make the same artifact, the first to publish
        wins.

        Args:
            key: of the artifact.
            name: of the stage, for the reader.
        """
        folder = self.home / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / key)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock.acquire(blocking=False))
            except Timeout:
                self.display.say(f"Waiting for another run that is making {name}.")
                with self.waiting():
                    stack.enter_context(lock.acquire())
            if self.store.shared:
                lease = Lease(self.store.backend, f"stages/{name}-{key}", _STAGE_LEASE_SECONDS)
                with self.waiting():
                    self._wait_for(lease, name)
                stack.callback(lease.release)
            yield

    def _wait_for(self, lease: Lease, name: str) -> None:
        said = False
        while True:
            try:
                lease.acquire(run=self.run_id)
                return
            except LeaseHeld:
                if not said:
                    self.display.say(f"Waiting for a run on another machine that is making {name}.")
                said = True
                time.sleep(_LOOK_AGAIN_SECONDS)

    def lease(self, kind: str, key: str) -> None:
        """Protect an artifact, or one in the making, from collectors for as long as the run lives."""
        self._protect([(kind, key)])

    def lease_all(self, artifacts: Iterable[Artifact]) -> None:
        """Protect artifacts from collectors for as long as the run lives."""
        self._protect([(artifact.kind, artifact.key) for artifact in artifacts])

    def _protect(self, pairs: list[tuple[str, str]]) -> None:
        more = [pair for pair in pairs if pair not in self.leased]
        if more and self.on_lease is not None:
            self.leased += more
            self.on_lease(self.leased)

    def begin_making(self, stage: str, key: str) -> None:
        """The stage is being made, or looked up, from now on; what the run has used until now is noted."""
        self.making, self.making_key = stage, key
        if self.alive is not None:
            self.alive.write()

    def record(self, record: StageRecord) -> None:
        """Append to the run's record; a stage that is run again after damage replaces its earlier line.

        A stage that several algorithms share has one line without an algorithm. A stage that this run made stays `ran`
        when it is found again.
        """
        self._record(record)
        if self.alive is not None:
            self.alive.write()

    def _record(self, record: StageRecord) -> None:
        record.algorithm = self.algorithm
        index = self._line_of(record)
        if index is None:
            self.records.append(record)
            self.display.done(record)
            return
        earlier = self.records[index]
        shared = earlier.algorithm != self.algorithm
        if shared:
            earlier.algorithm = record.algorithm = None
        if record.status in ("hit", "would_run") and (shared or earlier.status in ("ran", "rebuilt")):
            return
        self.records[index] = record
        self.display.done(record)

    def _line_of(self, record: StageRecord) -> int | None:
        """Where this algorithm's line for the stage is, or the line of another that came to the same artifact."""
        for index, earlier in enumerate(self.records):
            same = record.key != "" and earlier.key == record.key
            if earlier.name == record.name and (same or earlier.algorithm == record.algorithm):
                return index
        return None

    def skip(self, stage: str, why: str) -> None:
        """Record that a stage was left out on purpose."""
        self.record(StageRecord(stage, "skipped", kind=stage, why=why))

    def section(self, path: str) -> RecipeValue:
        """The recipe's value at a dotted path."""
        value: RecipeValue = self.recipe
        for name in path.split("."):
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        return value


def new_run_id() -> str:
    """A run id that sorts by time."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:6]
