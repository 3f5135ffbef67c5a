"""A training run as a file: what `launch` hands to the processes it starts.

No torch here: the launching process never imports it.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from deepspec.config import Section
from deepspec.errors import LaunchError
from deepspec.training.config import Config, TrainingExecution


class TrainJob(Section):
    """Everything that a training process needs to know.

    `objective` names a function `(job: TrainJob, placement: Placement) -> Objective` inside deepspec: a draft, or the
    demo's target. `config` is whatever that function reads.
    """

    objective: str = Field(pattern=r"^deepspec(\.[a-z0-9_]+)+:[a-z0-9_]+$")
    config: dict[str, Any]
    train: Config
    execution: TrainingExecution = TrainingExecution()
    out: Path
    identity: str = Field("", description="Key of the result: checkpoints of another identity are refused.")

    @classmethod
    def read(cls, path: Path) -> "TrainJob":
        """The job that was written to `path`."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))

    def write(self, path: Path) -> None:
        """Write the job to `path` as JSON."""
        path.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    def factory(self) -> Callable[..., Any]:
        """The function that `objective` names.

        Raises:
            LaunchError: there is no such function.
        """
        module_name, _, name = self.objective.partition(":")
        try:
            function = getattr(importlib.import_module(module_name), name, None)
        except ModuleNotFoundError as error:
            raise LaunchError(
                f"There is no module {error.name}.", where=self.objective, remedy="Name it as module:function."
            ) from error
        if not callable(function):
            raise LaunchError(
                f"{module_name} has no function {name}.", where=self.objective, remedy="Name it as module:function."
            )
        return function  # type: ignore[no-any-return]  # looked up by name
