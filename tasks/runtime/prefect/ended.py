"""Ending flow runs on Prefect's server whose process has died: it would show them as running for ever."""

from collections.abc import Collection, Iterator
from uuid import UUID

from tasks.runtime.prefect.flow import state_of


def end_flow_runs(flow_runs: Collection[str], alive: Collection[str]) -> bool:
    """Give flow runs, and what of their task runs is running, the state of an interrupted run.

    Args:
        flow_runs: their ids; those that have ended stay as they are.
        alive: ids of flow runs that a live process has, which may have gone on with one of them.

    Returns:
        whether the server knows any of those to be ended, or there are none.

    Raises:
        httpx.HTTPError: the server cannot be asked.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterId,
        TaskRunFilter,
        TaskRunFilterState,
        TaskRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.context import FlowRunContext

    around = FlowRunContext.get()
    kept = {*alive, *([str(around.flow_run.id)] if around is not None and around.flow_run is not None else [])}
    dead = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run) for flow_run in flow_runs if flow_run not in kept]))
    if not dead.id or not dead.id.any_:
        return True
    begun = TaskRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
    unfinished = TaskRunFilter(state=TaskRunFilterState(type=begun))
    state = state_of("interrupted", "Its process ended without a word; a later run has found that out.")
    with get_client(sync_client=True) as client:
        for task_run in client.read_task_runs(flow_run_filter=dead, task_run_filter=unfinished):
            client.set_task_run_state(task_run.id, state, force=True)
        known = client.read_flow_runs(flow_run_filter=dead)
        for flow_run in known:
            if flow_run.state is None or not flow_run.state.is_final():
                client.set_flow_run_state(flow_run.id, state, force=True)
    return bool(known)


def ousted() -> Iterator[str]:
    """Ids of flow runs that say they go on in the place of this one: of a deployment that lets one run at a time.

    Prefect gave their concurrency slot to this flow run, so that their processes have died, perhaps before they could
    leave a sign of life. Nothing where the process is no deployment's, or that has another limit.

    Raises:
        httpx.HTTPError: the server cannot be asked.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.context import FlowRunContext

    around = FlowRunContext.get()
    if around is None or around.flow_run is None or around.flow_run.deployment_id is None:
        return
    own, deployment = around.flow_run.id, around.flow_run.deployment_id
    begun = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
    with get_client(sync_client=True) as client:
        limit = client.read_deployment(deployment).global_concurrency_limit
        if limit is None or limit.limit != 1:
            return
        others = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=begun)),
        )
        yield from (str(other.id) for other in others if other.id != own)
