"""Pausing a night, resuming it, and running it now."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.nights import automations
from flows.nights.server import asked, night_of

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse


def switch(home: Path, model: str, *, active: bool) -> bool:
    """Pause or resume the schedules of a model's night; whether that changed anything.

    Raises:
        BadArgument: the model has no night.
        LaunchError: the server does not answer.
    """
    with asked(home) as client:
        night = night_of(client, model)
        was = is_active(night)
        (resume if active else pause)(client, night)
        return was != active


def pause(client: "SyncPrefectClient", night: "DeploymentResponse") -> None:
    """Start no more runs by schedule; one that runs goes on."""
    _set(client, night, active=False)


def resume(client: "SyncPrefectClient", night: "DeploymentResponse") -> None:
    """Start runs by schedule again."""
    if night.paused:
        client.resume_deployment(night.id)
    _set(client, night, active=True)


def _set(client: "SyncPrefectClient", night: "DeploymentResponse", *, active: bool) -> None:
    for schedule in night.schedules:
        if schedule.active != active:
            client.update_deployment_schedule(night.id, schedule.id, active=active)
    automations.set_enabled(client, night.name, night.id, active=active)


def is_active(night: "DeploymentResponse") -> bool:
    """Whether a night's runs start by schedule."""
    return not night.paused and any(schedule.active for schedule in night.schedules)


def run_now(home: Path, model: str) -> tuple[str, str]:
    """Start a run of a model's night now; it waits while another one runs.

    Returns:
        id and name of the flow run.

    Raises:
        BadArgument: the model has no night.
        LaunchError: the server does not answer.
    """
    with asked(home) as client:
        made = client.create_flow_run_from_deployment(night_of(client, model).id)
        return str(made.id), made.name
