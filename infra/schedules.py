"""A step of `prefect deploy` (infra/prefect.yaml): a schedule that a person has resumed or paused stays so.

`prefect deploy` makes every deployment what its file says, and so would pause a schedule that a person has resumed.
The file therefore takes `active` from this step; a value of its own is for what the server does not have yet. Prefect
imports the step from the checkout's root, where `prefect deploy` has to be called.
"""

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound


def as_on_the_server(deployment: str, active: dict[str, bool]) -> dict[str, bool]:
    """Whether the schedules of a deployment are active.

    Args:
        deployment: `flow/name`.
        active: slug -> whether the schedule is active where the server does not have it yet.

    Returns:
        slug -> whether the schedule is active; none is if the deployment is paused, which `prefect deploy` ends.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            return active
        known = {schedule.slug: schedule.active for schedule in found.schedules if schedule.slug}
        # Prefect updates schedules by slug, and replaces all of them where one has none: a person's, or, the oldest, of
        # a file before there were slugs.
        ours = [] if known else list(active)
        for schedule in sorted(found.schedules, key=lambda schedule: str(schedule.created)):
            slug = schedule.slug or (ours.pop(0) if ours else f"schedule-{schedule.id.hex[:8]}")
            known[slug] = schedule.active and not found.paused
            if (slug, known[slug]) != (schedule.slug, schedule.active):
                client.update_deployment_schedule(found.id, schedule.id, slug=slug, active=known[slug])
    return {**active, **known}
