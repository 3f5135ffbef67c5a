"""What the nights do: when each runs next, how its last run ended, what runs now and how far, and what is wrong.

All of it is asked of Prefect's server, so that it is the same from every machine.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.nights import automations, control
from flows.nights.server import FLOW, asked, deployments
from tasks.runtime.prefect.pages import RUN_PROGRESS

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

_LATE = timedelta(minutes=15)
"""After which a run that no worker took is named as trouble: workers ask every few seconds."""

_MOST = 200
"""Runs of a night that are looked at; Prefect gives no more at a time."""


@dataclass(frozen=True)
class Run:
    """A run of a night.

    Attributes:
        flow_run: its id.
        name: its name.
        state: how it ended or stands, as its state is called.
        at: when it came into that state.
        said: what the state says.
        doing, percent: what a running one does, and how far it is; None: nothing yet that takes long.
    """

    flow_run: str
    name: str
    state: str
    at: datetime
    said: str
    doing: str | None = None
    percent: float | None = None


@dataclass(frozen=True)
class Night:
    """A night as the server has it.

    Attributes:
        model: whose.
        deployment: FLOW/NAME.
        recipe: its parameter.
        schedule: when it runs, in words.
        active: whether the schedule is switched on.
        next: the next start; None: none is scheduled.
        last: the run that ended last.
        now: the runs that have begun and not ended, or wait: for a person, or for the run before them.
        trouble: what is wrong, a sentence each.
    """

    model: str
    deployment: str
    recipe: str
    schedule: str
    active: bool
    next: datetime | None
    last: Run | None
    now: tuple[Run, ...]
    trouble: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As the command line prints it."""
        return dict(_as_json(asdict(self)))


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, tuple | list) else value


def nights(home: Path) -> list[Night]:
    """Every night that the server has.

    Raises:
        LaunchError: it does not answer.
    """
    with asked(home) as client:
        return [_night(client, deployment) for deployment in deployments(client).values()]


def _night(client: "SyncPrefectClient", deployment: "DeploymentResponse") -> Night:
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    ended = _runs(client, deployment.id, _ended(), FlowRunSort.END_TIME_DESC, 1)
    scheduled = _runs(client, deployment.id, [StateType.SCHEDULED], FlowRunSort.EXPECTED_START_TIME_ASC, _MOST)
    queued = [run for run in scheduled if run.state_name == "AwaitingConcurrencySlot"]
    begun = unfinished(client, deployment.id)
    missed = automations.owned(client, deployment.id).get(f"{deployment.name}: missed")
    now = datetime.now(UTC)
    active = control.is_active(deployment)
    due = [run.expected_start_time for run in scheduled if run.expected_start_time and run not in queued]
    within = getattr(missed.trigger, "within", None) if missed is not None else None
    trouble = [_late([time for time in due if now - time > _LATE])]
    trouble += [_pending(run, now) for run in begun if run.state and run.state.type == StateType.PENDING]
    trouble += [_missed(ended, deployment, now, within)] if active and within is not None else []
    return Night(
        model=deployment.name,
        deployment=f"{FLOW}/{deployment.name}",
        recipe=str(deployment.parameters.get("recipe", "")),
        schedule=", ".join(_in_words(each.schedule) for each in deployment.schedules) or "none",
        active=active,
        next=next((time for time in due if time > now), None),
        last=_run(ended[0]) if ended else None,
        now=tuple(_progress(client, run) for run in (*begun, *queued)),
        trouble=tuple(filter(None, trouble)),
    )


def unfinished(client: "SyncPrefectClient", deployment: UUID) -> "list[FlowRun]":
    """The runs of a night that have begun and not ended."""
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    begun = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
    return _runs(client, deployment, begun, FlowRunSort.EXPECTED_START_TIME_ASC, _MOST)


def _ended() -> list[Any]:
    from prefect.client.schemas.objects import TERMINAL_STATES

    return list(TERMINAL_STATES)


def _runs(client: "SyncPrefectClient", deployment: UUID, states: list[Any], sort: Any, limit: int) -> "list[FlowRun]":
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )

    return client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))),
        sort=sort,
        limit=limit,
    )


def _run(run: "FlowRun") -> Run:
    state = run.state
    at = run.end_time or (state.timestamp if state else None) or datetime.now(UTC)
    return Run(
        str(run.id), run.name, (state.name if state else None) or "", at, (state.message if state else None) or ""
    )


def _progress(client: "SyncPrefectClient", run: "FlowRun") -> Run:
    """A run with how far it is: the whole of it where it shows that, else the stage that it is in."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
    from prefect.client.schemas.sorting import ArtifactSort

    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), type=ArtifactFilterType(any_=["progress"])
        ),
        sort=ArtifactSort.UPDATED_DESC,
    )
    shown = max(found, key=lambda artifact: artifact.key == RUN_PROGRESS, default=None)  # the first, if none is that
    if shown is None:
        return _run(run)
    percent = float(shown.data) if isinstance(shown.data, int | float) else None
    return replace(_run(run), doing=shown.description, percent=percent)


def _late(due: "Sequence[datetime]") -> str:
    return f"No worker took {len(due)} run(s), the first due at {due[0]:%Y-%m-%d %H:%M} UTC." if due else ""


def _pending(run: "FlowRun", now: datetime) -> str:
    since = run.state.timestamp if run.state else now
    if now - since < timedelta(minutes=5):
        return ""
    return f"{run.name} was taken by a worker at {since:%Y-%m-%d %H:%M} UTC, and its process was not heard of."


def _missed(ended: "Sequence[FlowRun]", deployment: "DeploymentResponse", now: datetime, within: timedelta) -> str:
    since = (ended[0].end_time if ended else None) or deployment.created or now
    if now - since <= within:
        return ""
    return f"A night was missed: no run has ended since {since:%Y-%m-%d %H:%M} UTC."


def _in_words(schedule: Any) -> str:
    if hasattr(schedule, "cron"):
        return f"{schedule.cron} {schedule.timezone or 'UTC'}"
    interval = getattr(schedule, "interval", None)
    return f"every {interval / timedelta(hours=1):g} h" if interval else str(getattr(schedule, "rrule", schedule))
