"""Flow runs that wait on Prefect's server for a person's approval, and how they are ended without one.

A flow run that waits has the tag `awaiting:MODEL`. It is superseded by a newer run of the model that waits, or that
promotes, and by a person's `deepspec promote`.
"""

import logging
from collections.abc import Collection
from uuid import UUID

import httpx

from tasks.runtime.prefect.server import named

AWAITING = "awaiting:"

logger = logging.getLogger(__name__)


def try_to_supersede(model: str, why: str, *, but: Collection[str] = ()) -> list[str]:
    """As `supersede`; where the server cannot be asked, that is warned of, and nothing is ended."""
    try:
        return supersede(model, why, but=but)
    except (httpx.HTTPError, RuntimeError) as error:
        logger.warning("Flow runs that wait for an approval of %s could not be ended: %s", model, named(error) or error)
        return []


def supersede(model: str, why: str, *, but: Collection[str] = ()) -> list[str]:
    """End the flow runs that wait for an approval of this model's drafts.

    Args:
        model: the registered model.
        why: what a person reads on their pages.
        but: ids of flow runs that go on waiting.

    Returns:
        names of those that were ended.

    Raises:
        httpx.HTTPError: Prefect's server cannot be asked.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        FlowRunFilterTags,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled

    waiting = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[f"{AWAITING}{model}"]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])),
    )
    kept = {UUID(flow_run) for flow_run in but}
    with get_client(sync_client=True) as client:
        found = [run for run in client.read_flow_runs(flow_run_filter=waiting) if run.id not in kept]
        for flow_run in found:
            client.set_flow_run_state(flow_run.id, Cancelled(name="Superseded", message=why), force=True)
    return [flow_run.name for flow_run in found]
