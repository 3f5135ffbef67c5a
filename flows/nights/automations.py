"""What Prefect's server does by itself about nights: it tells people, and ends runs that never started.

A flow run's state is an event by the state's own name (`prefect.flow-run.Promoted`), and so are those that no other
flow has. A missed night is the absence of every event that ends a run.

    A run is Pending from when a worker takes it until its process is heard of. If the worker dies in between, Prefect
    leaves it so (seen as opsmill/infrahub#9856 and #9925; PrefectHQ/prefect#17415 is why leases came). The slot of its
    deployment is free once the lease has run out, and the automation NEVER_STARTS ends the run itself.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from deepspec.nights import Occasion
from flows.nights.server import TAG

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger

_EVENT = "prefect.flow-run."

STATES: Mapping[Occasion, tuple[str, ...]] = {
    "failed": ("Failed", "Crashed", "TimedOut"),
    "refused": ("Refused",),
    "promoted": ("Promoted",),
    "awaiting_approval": ("Suspended", "AwaitingApproval"),
    "budget_exhausted": ("BudgetExhausted",),
}
"""Occasion -> names of the states that it is told by."""

ENDS = ("Completed", "NoChange", "Superseded", *(name for names in STATES.values() for name in names))
"""Names of the states after which a night was not missed."""

_STARTED = ("Running", "Retrying", "Scheduled", "Late", "AwaitingConcurrencySlot", "Cancelling", "Cancelled", *ENDS)
"""Names of the states that a run goes on to from Pending."""

NEVER_STARTS = "nights: a run that never starts"


@dataclass(frozen=True)
class Told:
    """Who is told, and of what.

    Attributes:
        block: id of the block on Prefect's server.
        is_webhook: whether it takes JSON; any other takes a subject and a text.
        on: the occasions.
    """

    block: UUID
    is_webhook: bool
    on: tuple[Occasion, ...]


def wanted(model: str, deployment: UUID, told: Told | None, missed_after: timedelta) -> "list[AutomationCore]":
    """The automations of a night.

    Args:
        model: whose night.
        deployment: its id.
        told: who is told; None: nobody, but Prefect's page still shows missed nights.
        missed_after: in what time a run has to end.
    """
    occasions: tuple[Occasion, ...] = told.on if told is not None else ()
    found = [_missed(model, deployment, told if "missed" in occasions else None, missed_after)]
    return found + [_outcome(model, deployment, told, each) for each in occasions if told and each != "missed"]


def _missed(model: str, deployment: UUID, told: Told | None, missed_after: timedelta) -> "AutomationCore":
    from prefect.events.schemas.automations import Posture

    hours = missed_after / timedelta(hours=1)
    sentence = f"{model}: a night was missed: no run has ended for {hours:g} h."
    text = {"night": model, "occasion": "missed", "text": sentence}
    trigger = _trigger(_of(deployment), ENDS, posture=Posture.Proactive, within=missed_after)
    return _automation(model, "missed", deployment, trigger, told, sentence, json.dumps(text))


def _outcome(model: str, deployment: UUID, told: Told, occasion: Occasion) -> "AutomationCore":
    trigger = _trigger(_of(deployment), STATES[occasion])
    words = occasion.replace("_", " ")
    # The server fills in the braces when it tells: the run's name, what its state says, and the address of its page.
    sentence = f"{model}: {words}. {{{{ flow_run.name }}}}: {{{{ flow_run.state.message or flow_run.state.name }}}}"
    said = (
        f"{json.dumps(f'{model}: {words}. ')} ~ flow_run.name ~ ': ' ~ (flow_run.state.message or flow_run.state.name)"
    )
    payload = (
        f'{{"night": {json.dumps(model)}, "occasion": "{occasion}", "text": {{{{ ({said}) | tojson }}}}, '
        '"flow_run": {{ flow_run.id | string | tojson }}, "url": {{ (flow_run | ui_url) | tojson }}}'
    )
    return _automation(model, occasion, deployment, trigger, told, sentence, payload)


def _automation(
    model: str,
    occasion: Occasion,
    deployment: UUID,
    trigger: "EventTrigger",
    told: Told | None,
    sentence: str,
    payload: str,
) -> "AutomationCore":
    from prefect.events.actions import CallWebhook, DoNothing, SendNotification
    from prefect.events.schemas.automations import AutomationCore

    words = occasion.replace("_", " ")
    action: Any = DoNothing()
    if told is not None and told.is_webhook:
        action = CallWebhook(block_document_id=told.block, payload=payload)
    elif told is not None:
        action = SendNotification(block_document_id=told.block, subject=f"{model}: {words}", body=sentence)
    return AutomationCore(
        name=f"{model}: {words}",
        description="Made by `deepspec nights apply`.",
        tags=[TAG],
        trigger=trigger,
        actions=[action],
        owner_resource=_resource(deployment),
    )


def never_starts(within: timedelta) -> "AutomationCore":
    """The automation that ends runs of any night that stay Pending."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, Posture

    related = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    minutes = within / timedelta(minutes=1)
    return AutomationCore(
        name=NEVER_STARTS,
        description="Made by `deepspec nights apply`.",
        tags=[TAG],
        trigger=_trigger(
            related,
            _STARTED,
            after=("Pending", "Submitting", "InfrastructurePending"),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"Its worker took it, and its process was not heard of for {minutes:g} minutes.",
            )
        ],
    )


def _trigger(
    related: dict[str, str], expect: Iterable[str], *, after: Iterable[str] = (), **arguments: Any
) -> "EventTrigger":
    from prefect.events.schemas.automations import EventTrigger

    return EventTrigger(
        match={"prefect.resource.id": f"{_EVENT}*"},
        match_related=related,
        after={_EVENT + name for name in after},
        expect={_EVENT + name for name in expect},
        **arguments,
    )


def _of(deployment: UUID) -> dict[str, str]:
    return {"prefect.resource.role": "deployment", "prefect.resource.id": _resource(deployment)}


def _resource(deployment: UUID) -> str:
    return f"prefect.deployment.{deployment}"


def owned(client: "SyncPrefectClient", deployment: UUID) -> "dict[str, Automation]":
    """Name -> the automations of a night as they are."""
    # Whose an automation is the server keeps to itself: a person's that starts this deployment is related to it, too.
    return {
        each.name: each for each in client.read_resource_related_automations(_resource(deployment)) if TAG in each.tags
    }


def differs(wanted: "AutomationCore", found: "AutomationCore") -> bool:
    """Whether one has to be put in the place of the other; whether it is switched on does not count."""

    def content(automation: "AutomationCore") -> Any:
        return automation.model_dump(mode="json", include={"name", "description", "tags", "trigger", "actions"})

    return bool(_sorted(content(wanted)) != _sorted(content(found)))


def _sorted(value: Any) -> Any:
    """Events without an order, and no ids: the server gives triggers some of their own."""
    if isinstance(value, Mapping):
        return {name: _sorted(item) for name, item in value.items() if name != "id"}
    if isinstance(value, list):
        items = [_sorted(item) for item in value]
        return sorted(items) if all(isinstance(item, str) for item in items) else items
    return value


def replace(client: "SyncPrefectClient", old: "Automation", wanted: "AutomationCore") -> None:
    """Put an automation in the place of another, switched on or off as that was; its owner cannot be named again."""
    content = wanted.model_dump(exclude={"owner_resource"}) | {"enabled": old.enabled}
    client.update_automation(old.id, type(wanted).model_validate(content))


def set_enabled(client: "SyncPrefectClient", model: str, deployment: UUID, *, active: bool) -> None:
    """Let missed nights be told of only while the schedule runs."""
    missed = owned(client, deployment).get(f"{model}: missed")
    if missed is not None and missed.enabled != active:
        (client.resume_automation if active else client.pause_automation)(missed.id)
