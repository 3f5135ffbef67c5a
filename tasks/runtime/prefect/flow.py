"""Prefect around a flow: one flow run for a call, and quiet logging.

Prefect is imported inside functions: a run in which every stage hits never pays for it.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from deepspec.errors import BudgetExceeded
from tasks.runtime.flow import Flow, Outcome, Status
from tasks.runtime.prefect.server import named

if TYPE_CHECKING:
    import prefect
    from prefect.client.schemas.objects import State
    from prefect.context import FlowRunContext

    from tasks.runtime.run import Run

STATES: Mapping[Status, tuple[str, str]] = MappingProxyType(
    {
        "promoted": ("Promoted", "COMPLETED"),
        "awaiting_approval": ("AwaitingApproval", "COMPLETED"),
        "refused": ("Refused", "COMPLETED"),
        "no_change": ("NoChange", "COMPLETED"),
        "budget_exhausted": ("BudgetExhausted", "COMPLETED"),
        "interrupted": ("Crashed", "CRASHED"),
        "failed": ("Failed", "FAILED"),
    }
)
"""Status of a run, as in run.json -> name and type of the state that its flow run ends in."""

lost = False
"""Whether the server stopped answering: at the end Prefect's threads would keep trying to reach it."""


class FlowRun:
    """One run of a flow: a context in which `call` is to be called with the recipe, the Prefect flow's parameter.

    In a deployment's flow run of the same name the flow is called as that run; other flows are its children.

    Raises:
        LaunchError: Prefect's server does not answer any more, or does not let us in.
    """

    def __init__(self, run: "Run[Any]", flow: Flow) -> None:
        self._run = run
        self._flow = flow
        self._outcome: Outcome | None = None
        self._over_budget: BudgetExceeded | None = None
        self._patience = contextlib.ExitStack()
        self.call: Callable[[Any], object]

    @property
    def outcome(self) -> Outcome:
        """What the flow came to.

        Raises:
            BudgetExceeded: it ended early, in the state BudgetExhausted.
        """
        if self._over_budget is not None:
            raise self._over_budget
        if self._outcome is None:
            raise RuntimeError("the flow was not called")
        return self._outcome

    def __enter__(self) -> Self:
        from prefect.context import FlowRunContext

        around = FlowRunContext.get()
        if around is None:
            _quiet(self._run.home)
        else:
            self._note(around)
        if around is not None and around.flow is not None and around.flow.name == self._flow.name:
            self.call = self._call_directly
        else:
            self.call = self._as_prefect()
        return self

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        global lost  # noqa: PLW0603  # it is the process's server
        self._patience.close()
        about_server = named(error) if isinstance(error, Exception) else None
        if about_server is not None:
            lost = True
            raise about_server from error

    def _as_prefect(self) -> "prefect.Flow[..., State[Any] | None]":
        """The Prefect flow: its parameter is the typed recipe, from whose model Prefect makes its form."""
        from prefect import flow
        from prefect.context import FlowRunContext
        from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

        run, dag = self._run, self._flow

        def body(recipe: Any) -> "State[Any] | None":
            del recipe
            self._note(FlowRunContext.get())
            try:
                self._outcome = dag.function(run, **dag.arguments)
                status, said = self._outcome.status, " ".join(self._outcome.notes) or None
                return None if status is None else state_of(status, said)
            except BudgetExceeded as error:
                self._over_budget = error
                return state_of("budget_exhausted", str(error))
            except Exception as error:
                if named(error) is not None:
                    # The engine reports it to the server next.
                    self._patience.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
                raise

        body.__annotations__["recipe"] = type(run.recipe)
        body.__doc__ = dag.purpose
        return flow(name=dag.name, flow_run_name=run.run_id, validate_parameters=False, log_prints=False)(body)

    def _note(self, context: "FlowRunContext | None") -> None:
        """Leave the flow run's id where a later run finds it, should this one die."""
        alive = self._run.alive
        if alive is None or context is None or context.flow_run is None:
            return
        flow_run = str(context.flow_run.id)
        if flow_run not in alive.flow_runs:
            alive.flow_runs.append(flow_run)
            alive.write()

    def _call_directly(self, recipe: object) -> None:
        del recipe
        self._outcome = self._flow(self._run)


def state_of(status: Status, message: str | None = None) -> "State[Any]":
    """The state of a flow run that ends as a run's record says."""
    from prefect.client.schemas.objects import State, StateType

    name, kind = STATES[status]
    return State(type=StateType(kind), name=name, message=message)


def _quiet(home: Path) -> None:
    """Prefect's log lines go to a file in the home folder, and to a configured server, but not to the terminal."""
    from prefect.logging.configuration import setup_logging

    setup_logging()
    logging.raiseExceptions = False  # else it prints what it could not send to its server
    path = home / "prefect" / "flows.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # All that Prefect has made so far: some of its loggers have handlers of their own and do not propagate.
    made = [name for name in logging.root.manager.loggerDict if name.startswith("prefect.")]
    for name in ("prefect", *made, "httpx", "httpcore"):
        logger = logging.getLogger(name)
        logger.handlers = [handler, *(old for old in logger.handlers if type(old).__name__ == "APILogHandler")]
        logger.propagate = False
