"""Prefect's events, for what happens outside of flow runs: an automation can start a night on one."""

import logging
from typing import Any

from deepspec.errors import LaunchError
from tasks.runtime.prefect import server

logger = logging.getLogger(__name__)

DRIFT_ALARM = "deepspec.drift.alarm"
"""That the served acceptance of a model fell; its resource is `deepspec.model.<name>`."""


def emit_drift_alarm(model: str, alarm: dict[str, Any]) -> bool:
    """Emit an alarm as an event; it is sent in the background, at the latest when the process ends.

    Args:
        model: registered model name.
        alarm: as JSON; goes along as the event's payload.

    Returns:
        Whether it was: False where no Prefect server is configured, or it does not answer, which is warned of.
    """
    if not server.is_configured():
        return False
    try:
        server.check()
    except LaunchError as error:
        logger.warning("The alarm was not sent to Prefect: %s", error)
        return False
    from prefect.events import emit_event

    resource = {"prefect.resource.id": f"deepspec.model.{model}", "prefect.resource.name": model}
    return emit_event(DRIFT_ALARM, resource, payload=alarm) is not None
