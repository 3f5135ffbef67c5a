"""How and where a stage runs: the argument `job` of its function."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deepspec.config import RecipeValue
from deepspec.progress import SILENT, Progress
from deepspec.recipe import RunConfig, flat
from deepspec.store import Artifact, Store
from deepspec.store.fingerprint import External
from tasks.runtime.allowance import Allowance
from tasks.runtime.references import Reference

if TYPE_CHECKING:
    from deepspec.registry.mlflow.runs import RunWriter
    from deepspec.registry.mlflow.tracking import Tracking

ResultT = TypeVar("ResultT")


@dataclass
class Job:
    """One making of one artifact. Nothing here decides a byte of it.

    Attributes:
        stage: its name.
        key: of the artifact.
        run_id: of the run that makes it.
        home: where this user's caches and work folders are.
        store: for what stages look up themselves: lineage, the promotion log.
        execution: the recipe's `run:` section.
        progress: what the stage reports its progress to.
        sections: what the stage reads of the recipe, by dotted path; the tracker's parameters.
        inputs: by name.
        artifact: (kind, key) -> an artifact that must be there; known to the run, or looked up.
        tracking, tracking_run: the experiment tracker, and the pipeline run's id in it; None where nothing is tracked.
        say: a line for a person.
        allowance: what the budget still allows; a stage that can end in the middle asks it.
        waiting: around what waits for others: that is not the stage's time.
    """

    stage: str
    key: str
    run_id: str
    home: Path
    store: Store
    artifact: Callable[[str, str], Artifact]
    execution: RunConfig = field(default_factory=RunConfig)
    progress: Progress = SILENT
    sections: Mapping[str, RecipeValue] = field(default_factory=dict)
    inputs: Mapping[str, Reference] = field(default_factory=dict)
    tracking: "Tracking | None" = None
    tracking_run: str | None = None
    say: Callable[[str], None] = lambda _: None
    allowance: Allowance = field(default_factory=lambda: Allowance((), {}, num_gpus=0))
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def code_version(self) -> str:
        """The commit that makes it, or deepspec's version."""
        return str(self.store.code.get("commit") or self.store.code.get("deepspec", ""))

    @property
    def work_folder(self) -> Path:
        """Where the stage keeps what it needs to resume; removed once the artifact is published."""
        return self.home / "work" / self.key

    @cached_property
    def device(self) -> str:
        """`run.device` with "auto" resolved; a stage that reads it counts as computing there."""
        return device_of(self.execution)

    @property
    def computes_on_gpu(self) -> bool:
        """Whether the stage has asked for its device, and that is a GPU."""
        return self.__dict__.get("device") == "cuda"

    @contextmanager
    def tracked(self) -> Iterator["RunWriter"]:
        """The tracker's run of this stage: its sections as parameters, its inputs as data sets."""
        from pydantic_core import to_jsonable_python

        tracking, parent = self.tracker()
        with tracking.child_run(parent, self.stage) as writer:
            writer.params(flat(to_jsonable_python(dict(self.sections))))
            for name, item in self.inputs.items():
                if isinstance(item, Artifact):
                    where = f"{item.kind}/{item.key}"
                    writer.dataset(name, item.digest, where, item.manifest.counts, context=self.stage)
                elif isinstance(item, External):
                    writer.dataset(name, item.fingerprint, "external", context=self.stage)
            yield writer

    def with_tracker(self, call: "Callable[[Tracking], ResultT]") -> ResultT:
        """What `call` returns, which needs the tracker's answers: a server that is away is waited for."""
        tracking, _ = self.tracker()
        return tracking.patiently(lambda: call(tracking), self.say, self.waiting)

    def tracker(self) -> "tuple[Tracking, str]":
        """The experiment tracker, and the pipeline run's id in it."""
        if self.tracking is None or self.tracking_run is None:
            raise RuntimeError("the run is not tracked")
        return self.tracking, self.tracking_run


def device_of(execution: RunConfig) -> str:
    """`run.device`, where "auto" is a GPU if there is one."""
    if execution.device != "auto":
        return execution.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
