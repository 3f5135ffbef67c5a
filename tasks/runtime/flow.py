"""The decorator of flows: a plain function of a run that reads as the DAG, called to preview it and as a Prefect flow.

    @flow
    def retrain(run: Run[Recipe]) -> Outcome:
        target = target_of(run)
        asked = conversations(run, source=source_of(run))
        ...

`retrain(run)` calls the function: a preview. `prefect/flow.py` makes the Prefect flow of the same name, and runs it.
Prefect's own decorator would import Prefect with the module, and a run in which every stage hits never needs it.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from deepspec.record import RunStatus
from tasks.runtime.references import Reference
from tasks.runtime.run import Run

Status: TypeAlias = RunStatus
"""How a run of a recipe ended."""


@dataclass(frozen=True)
class Outcome:
    """What a flow came to.

    Attributes:
        artifacts: what it is reported by, by name; in a preview some are pending.
        status: how it ended, for a flow that can end in several ways.
        notes: what a person has to know of it that no artifact says, in sentences.
    """

    artifacts: Mapping[str, Reference]
    status: Status | None = None
    notes: tuple[str, ...] = ()


class Flow:
    """A DAG of stages."""

    def __init__(self, function: Callable[..., Outcome], **arguments: Any) -> None:
        self.function = function
        self.arguments = arguments
        self.name = function.__name__.replace("_", "-")
        self.purpose = inspect.getdoc(function) or ""
        functools.update_wrapper(self, function)

    def __call__(self, run: Run[Any]) -> Outcome:
        """Call every stage: in a preview each is only looked up."""
        return self.function(run, **self.arguments)

    def with_arguments(self, **arguments: Any) -> "Flow":
        """The same flow with further arguments of its function."""
        return Flow(self.function, **{**self.arguments, **arguments})


def flow(function: Callable[..., Outcome]) -> Flow:
    """Make a flow of a function `(run, **arguments) -> Outcome`."""
    return Flow(function)
