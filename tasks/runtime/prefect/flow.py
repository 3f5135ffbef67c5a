"""Prefect around a flow: one flow run for a call, and quiet logging.

Prefect is imported inside functions: a run in which every stage hits never pays for it.
"""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.runtime.prefect.server import named

if TYPE_CHECKING:
    from tasks.runtime.run import Run

lost = False
"""Whether the server stopped answering: Prefect's threads would go on trying to tell it things at the end."""


def run_as_flow(run: "Run[Any]", function: Callable[["Run[Any]"], Any], recipe: Any) -> Any:
    """Call `function(run)` as a Prefect flow run whose parameter is the typed recipe.

    In a deployment's flow run of the same name it is called as that run; other flows are its children.

    Raises:
        LaunchError: Prefect's server does not answer any more, or does not let us in.
    """
    from prefect import flow
    from prefect.context import FlowRunContext
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    global lost  # noqa: PLW0603  # it is the process's server
    name = function.__name__.replace("_", "-")
    around = FlowRunContext.get()
    if around is None:
        _quiet(run.home)
    outcome: list[Any] = []
    giving_up = contextlib.ExitStack()

    def body(recipe: Any) -> None:
        del recipe
        try:
            outcome.append(function(run))
        except Exception as error:
            if named(error) is not None:
                # The engine is about to tell the server of it.
                giving_up.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
            raise

    # Prefect's parameter form is built from the recipe's own model.
    body.__annotations__["recipe"] = type(recipe)
    body.__doc__ = function.__doc__
    try:
        if around is not None and around.flow is not None and around.flow.name == name:
            return function(run)
        with giving_up:
            flow(name=name, flow_run_name=run.run_id, validate_parameters=False, log_prints=False)(body)(recipe)
    except Exception as error:
        about_server = named(error)
        if about_server is None:
            raise
        lost = True
        raise about_server from error
    return outcome[0]


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
