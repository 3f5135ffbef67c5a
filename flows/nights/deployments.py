"""`deepspec nights apply`: Prefect's server is made to have what a file of nights says, and nothing else is touched.

A night is a deployment of `flows.nightly.retrain`, called by its model, with a schedule of the slug `night`. All is
read and checked first, the server's side too; what then differs is written, night by night, so that a second call does
nothing, and one after a failure the rest.

    One run at a time is Prefect's own limit on the deployment, with the strategy ENQUEUE: a night that is due while
    another runs (a person's, or of three late ones) waits and then ends as NoChange in seconds, where CANCEL_NEW would
    drop it, also when the slot's holder is dead and its lease only has not run out. A run that waits for a person holds
    no slot.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from deepspec.errors import NightsError
from deepspec.nights import NightsFile, Notification, PlannedNight
from flows.nights import automations, control, listing, schedule
from flows.nights.automations import Told
from flows.nights.server import FLOW, TAG, asked, deployments

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import AutomationCore

ENTRYPOINT = "flows.nightly.retrain"
"""A module: a worker imports it from where deepspec is installed in its environment."""

SLUG = "night"

Done = Literal["created", "changed", "unchanged", "not in the file", "removed", "paused"]


@dataclass(frozen=True)
class Change:
    """What was, or would be, done about a night.

    Attributes:
        model: whose.
        done: what.
        fields: that differed.
    """

    model: str
    done: Done
    fields: tuple[str, ...] = ()


def apply(file: NightsFile, home: Path, *, prune: bool = False, dry_run: bool = False) -> list[Change]:
    """Make the server have the nights of a file.

    Args:
        file: the nights.
        home: where things are.
        prune: remove nights of models that are not in the file.
        dry_run: only say what would be done.

    Returns:
        what was done about each night: those of the file in order, then those that are not in it.

    Raises:
        NightsError: a schedule, a webhook's variable, a block or the work pool is not there; nothing was changed.
        LaunchError: the server does not answer.
    """
    schedule.check(file.nights)
    addresses = {night.where: _address(night) for night in file.nights}
    with asked(home) as client:
        _check_pool(client, file.work_pool)
        told = {night.model: _told(client, night, addresses[night.where], dry_run=True) for night in file.nights}
        found = deployments(client)
        changes = []
        for night in file.nights:
            if not dry_run:
                told[night.model] = _told(client, night, addresses[night.where], dry_run=False)
            changes.append(_apply_one(client, night, file, found.get(night.model), told[night.model], dry_run=dry_run))
        if file.nights:
            _end_pending(client, timedelta(minutes=file.pending_minutes), dry_run=dry_run)
        gone = [name for name in found if name not in {night.model for night in file.nights}]
        return changes + [_gone(client, found[name], prune=prune, dry_run=dry_run) for name in gone]


def _address(night: PlannedNight) -> str | None:
    """The address that a webhook's variable holds."""
    variable = night.notification.webhook_from if night.notification else None
    if variable is None:
        return None
    address = os.environ.get(variable, "")
    if not address.startswith(("http://", "https://")):
        raise NightsError(
            f"notification.webhook_from: the environment variable {variable} holds no http:// or https:// address.",
            where=night.where,
            remedy=f"Set {variable} where you apply the nights; the server keeps the address encrypted.",
        )
    return address


def _check_pool(client: "SyncPrefectClient", name: str) -> None:
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_pool(name)
    except ObjectNotFound as error:
        raise NightsError(
            f"Prefect's server has no work pool {name!r}.",
            where="work_pool",
            remedy=f"Start a worker (`prefect worker start --pool {name} --type process`), or name another pool.",
        ) from error


def _told(client: "SyncPrefectClient", night: PlannedNight, address: str | None, *, dry_run: bool) -> Told | None:
    """Whom the server tells of a night; makes the webhook's block unless it is a dry run.

    Raises:
        NightsError: there is no such block.
    """
    from prefect.exceptions import ObjectNotFound

    notification = night.notification
    if notification is None:
        return None
    kind, _, name = (notification.block or f"webhook/{_block_name(notification)}").partition("/")
    try:
        block = client.read_block_document_by_name(name, kind, include_secrets=True)
        if address is None or block.data.get("url") == address or dry_run:
            return Told(block.id, kind == "webhook", notification.on)
    except ObjectNotFound as error:
        if address is None:
            raise NightsError(
                f"notification.block: Prefect's server has no block {notification.block}.",
                where=night.where,
                remedy="Make it on Prefect's page Blocks, or name one that is there.",
            ) from error
        if dry_run:
            return Told(UUID(int=0), is_webhook=True, on=notification.on)
    from prefect.blocks.webhook import Webhook

    made = Webhook(url=address, headers={"Content-Type": "application/json"}).save(name, overwrite=True)
    return Told(UUID(str(made)), is_webhook=True, on=notification.on)


def _block_name(notification: Notification) -> str:
    """Prefect allows lower-case letters, digits and dashes."""
    return f"nights-{(notification.webhook_from or '').lower().replace('_', '-')}"


def _apply_one(
    client: "SyncPrefectClient",
    night: PlannedNight,
    file: NightsFile,
    found: "DeploymentResponse | None",
    told: Told | None,
    *,
    dry_run: bool,
) -> Change:
    wanted = _wanted(night, file)
    fields = [name for name, value in wanted.items() if found is None or value != _current(found)[name]]
    ours = None if found is None else next((each for each in found.schedules if each.slug == SLUG), None)
    if found is not None and (ours is None or ours.schedule != schedule.schedule_of(night)):
        fields.append("schedule")
    deployment = found.id if found is not None else UUID(int=0)
    if fields and not dry_run:
        deployment = _write(client, night, wanted, found)
    if found is None and dry_run:
        return Change(night.model, "created")
    active = night.active if found is None or ours is None else ours.active and not found.paused
    told_of = automations.wanted(night.model, deployment, told, schedule.missed_after(night))
    if _write_automations(client, night.model, deployment, told_of, active=active, dry_run=dry_run):
        fields.append("notification")
    if found is None:
        return Change(night.model, "created")
    return Change(night.model, "changed" if fields else "unchanged", tuple(fields))


def _wanted(night: PlannedNight, file: NightsFile) -> dict[str, Any]:
    """Field -> value of the deployment, but for its schedule."""
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

    return {
        "parameters": {"recipe": night.recipe, "overrides": list(night.overrides), "timezone": night.timezone},
        "tags": sorted([TAG, f"model:{night.model}", f"recipe:{night.resolved.name}"]),
        "work_pool_name": file.work_pool,
        "entrypoint": ENTRYPOINT,
        "description": f"Retrain {night.model}, judge it against the champion, and promote it if it is better.",
        "concurrency_limit": 1,
        "concurrency_options": ConcurrencyOptions(
            collision_strategy=ConcurrencyLimitStrategy.ENQUEUE,
            grace_period_seconds=max(60, round(file.pending_minutes * 60)),  # no less with Prefect
        ),
    }


def _current(found: "DeploymentResponse") -> Mapping[str, Any]:
    limit = found.global_concurrency_limit
    return {
        "parameters": found.parameters,
        "tags": sorted(found.tags),
        "work_pool_name": found.work_pool_name,
        "entrypoint": found.entrypoint,
        "description": found.description,
        "concurrency_limit": None if limit is None else limit.limit,
        "concurrency_options": found.concurrency_options,
    }


def _write(
    client: "SyncPrefectClient", night: PlannedNight, wanted: Mapping[str, Any], found: "DeploymentResponse | None"
) -> UUID:
    """Create the deployment, or put another in its place under the same id; its id."""
    from prefect.utilities.callables import parameter_schema

    from flows.nightly import retrain

    flow = client.create_flow_from_name(FLOW)
    return client.create_deployment(
        flow_id=flow,
        name=night.model,
        schedules=_schedules(night, found),
        parameter_openapi_schema=parameter_schema(retrain).model_dump_for_openapi(),
        enforce_parameter_schema=True,
        **wanted,
    )


def _schedules(night: PlannedNight, found: "DeploymentResponse | None") -> "list[DeploymentScheduleCreate]":
    """The night's schedule, active as a person has set it, and those that people have added."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    active, others = night.active, []
    for each in [] if found is None else found.schedules:
        if each.slug == SLUG:
            active = each.active
        else:
            fields = {name: getattr(each, name) for name in ("schedule", "active", "parameters", "slug")}
            others.append(DeploymentScheduleCreate(**fields))
    return [DeploymentScheduleCreate(schedule=schedule.schedule_of(night), active=active, slug=SLUG), *others]


def _write_automations(
    client: "SyncPrefectClient",
    model: str,
    deployment: UUID,
    wanted: "list[AutomationCore]",
    *,
    active: bool,
    dry_run: bool,
) -> bool:
    """Make a night's automations; whether any differed. What a person has switched off stays off."""
    found = automations.owned(client, deployment)
    differ = [each for each in wanted if each.name not in found or automations.differs(each, found[each.name])]
    gone = [found[name] for name in found if name not in {each.name for each in wanted}]
    if dry_run:
        return bool(differ or gone)
    for each in differ:
        old = found.get(each.name)
        if old is None:
            client.create_automation(each)
        else:
            automations.replace(client, old, each)
    for old in gone:
        client.delete_automation(old.id)
    automations.set_enabled(client, model, deployment, active=active)
    return bool(differ or gone)


def _end_pending(client: "SyncPrefectClient", within: timedelta, *, dry_run: bool) -> None:
    """Make the automation that ends runs which never start."""
    wanted = automations.never_starts(within)
    found = client.read_automations_by_name(wanted.name)
    if dry_run or (found and not automations.differs(wanted, found[0])):
        return
    if found:
        automations.replace(client, found[0], wanted)
    else:
        client.create_automation(wanted)


def _gone(client: "SyncPrefectClient", found: "DeploymentResponse", *, prune: bool, dry_run: bool) -> Change:
    """What becomes of a night that is not in the file; one that has a run now is paused, and removed another time."""
    if not prune:
        return Change(found.name, "not in the file")
    busy = bool(listing.unfinished(client, found.id))
    if not dry_run and busy:
        control.pause(client, found)
    elif not dry_run:
        for each in automations.owned(client, found.id).values():
            client.delete_automation(each.id)
        client.delete_deployment(found.id)
    return Change(found.name, "paused" if busy else "removed", ("it has a run now",) if busy else ())
