"""A person's approval on Prefect's server (`gates.approval: manual`).

The flow run of a deployment is suspended once a draft waits: its process ends, and its page shows verdict and form. Who
resumes it approves. It then starts again, on any worker, and does what `deepspec promote` does; nothing is made,
measured or judged another time. A promotion by command, or a newer night, ends the wait.

Prefect suspends only flow runs of deployments. Any other run ends as AwaitingApproval; the command is on its page.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import create_flow_run_input, read_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from pydantic import Field

from deepspec.dashboard.publish import publish_dashboard
from deepspec.errors import GateFailed
from deepspec.record import RunRecord, RunStatus
from deepspec.registry import operations
from deepspec.registry.errors import PromotionConflict
from deepspec.registry.following import follow
from deepspec.registry.production import production_of
from deepspec.reports.run_markdown import summary
from deepspec.store import Store
from flows.model_page import show_again
from flows.outcome_page import show_status
from flows.waiting import try_to_supersede
from tasks.runtime.prefect.flow import state_of

_KEY = "approval"


class Approval(RunInput):
    """The form on a suspended flow run's page."""

    reason: str = Field(min_length=1, title="Reason", description="Why it may serve; kept in the promotion log.")
    name: str = Field("", title="Your name", description="Prefect does not know it: the log shows it as claimed.")


@dataclass(frozen=True)
class Approved:
    """What a person has approved.

    Attributes:
        version: as `models:/MODEL/N`.
        approval: what the person has written.
    """

    version: str
    approval: Approval


def wait_for_person(record: RunRecord, hours: float) -> None:
    """Suspend this flow run until a person approves the run's draft; this call does not return then.

    Args:
        record: of a run that ended as awaiting_approval.
        hours: the time limit. After it Prefect refuses an approval, and ends the flow run as failed; the command
            `deepspec promote` still promotes.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return  # nothing could start it again
    key = f"{_KEY}-{len(_asked(context))}"
    create_flow_run_input(f"{key}-version", record.models[0].uri)
    form = Approval.with_initial_data(description=f"To resume is to promote.\n\n{summary(record)}")
    suspend_flow_run(wait_for_input=form, timeout=round(hours * 3600), key=key)


def approved() -> Approved | None:
    """What a person has approved by resuming this flow run; None: nobody was asked, or nobody answered."""
    context = FlowRunContext.get()
    asked = [] if context is None else _asked(context)
    if not asked:
        return None
    key = max(asked, key=lambda name: int(name.rpartition("-")[2]))
    try:
        given = Approval.load(keyset_from_base_key(f"suspended-{key}"))
        # Called from no event loop, neither is a coroutine.
        return Approved(str(read_flow_run_input(f"{key}-version")), cast("Approval", given))
    except (ObjectNotFound, ValueError):
        return None  # started again after its time was over


def promote(given: Approved, home: Path, store: Store) -> State[None]:
    """Promote what was approved; return the state that the flow run ends in."""
    production = production_of(store, home)
    try:
        done = operations.promote(
            home, store, given.version, given.approval.reason, claimed=given.approval.name or "unnamed, on Prefect"
        )
    except (GateFailed, PromotionConflict) as error:
        return _ended("refused", str(error))
    publish_dashboard(store)
    followed = follow(store, home, done.model, production).notes if production is not None else ()
    show_again(home, store, done.model)
    why = " ".join((*done.said, *followed))
    try_to_supersede(done.model, why)
    return _ended("no_change" if done.entry is None else "promoted", why)


def _ended(status: RunStatus, why: str) -> State[None]:
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        show_status(context.flow_run.id, status)
    return state_of(status, why)


def _asked(context: FlowRunContext) -> list[str]:
    """Keys of the approvals that this flow run has waited for."""
    policy = context.flow_run.empirical_policy if context.flow_run is not None else None
    keys = (policy.pause_keys or set()) if policy is not None else set()
    return sorted(key for key in keys if key.startswith(f"{_KEY}-"))
