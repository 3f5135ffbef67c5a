"""Concurrency slots: on a Prefect server, the stages that run a model share its machines by a concurrency limit.

The first run that needs the global limit creates it, with one concurrency slot for each device of its machine; from
then on it is the operators' (`prefect gcl update deepspec-cuda --limit 8`). A concurrency slot whose holder died is
free after a minute. Without a server (the embedded default) nothing is limited.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepspec.errors import RecipeError
from tasks.runtime.job import device_of
from tasks.runtime.run import Run

_LEASE_SECONDS = 60.0


@contextmanager
def concurrency_slots(run: Run[Any], stage: str, *, computes: bool, workers: str | None) -> Iterator[None]:
    """Hold the concurrency slots that a stage needs while the block runs; waits for them.

    Args:
        run: the run.
        stage: its name.
        computes: whether it needs any.
        workers: the field of `run:` that says how many GPUs it computes on; None: one.

    Raises:
        RecipeError: the stage needs more concurrency slots than the limit has.
    """
    if not (run.on_shared_server and computes):
        yield
        return
    from prefect.concurrency.sync import concurrency

    device = device_of(run.execution)
    name = f"deepspec-{device}"
    wanted = int(getattr(run.execution, workers)) if device == "cuda" and workers else 1
    limit, taken = _limit(name, device)
    if wanted > limit:
        raise RecipeError(
            f"{stage} needs {wanted} concurrency slots of Prefect's limit {name!r}, which has {limit}.",
            where=f"run.{workers}",
            remedy=f"Use fewer processes, or `prefect gcl update {name} --limit {wanted}`.",
        )
    if taken + wanted > limit:
        run.display.say(f"Waiting for a concurrency slot of {name}: {taken} of {limit} are taken.")
    # While Prefect's server is down, hours of training are worth more than a limit that is exceeded meanwhile.
    holding = concurrency(
        name, occupy=wanted, lease_duration=_LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    )
    with holding:
        yield


def _limit(name: str, device: str) -> tuple[int, int]:
    """Concurrency slots of a limit, and how many are taken; creates the limit if there is none."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        for _ in range(2):
            try:
                found = client.read_global_concurrency_limit_by_name(name)
                return found.limit, found.active_slots
            except ObjectNotFound:
                try:
                    client.create_global_concurrency_limit(
                        GlobalConcurrencyLimitCreate(name=name, limit=_num_devices(device))
                    )
                except (ObjectAlreadyExists, PrefectHTTPStatusError):  # another run was first
                    continue
        found = client.read_global_concurrency_limit_by_name(name)
        return found.limit, found.active_slots


def _num_devices(device: str) -> int:
    """GPUs of this machine; a CPU is one."""
    if device != "cuda":
        return 1
    import torch

    return max(1, torch.cuda.device_count())
