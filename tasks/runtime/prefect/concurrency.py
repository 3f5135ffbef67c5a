"""Concurrency slots: on a Prefect server, the stages that run a model share its machines by a concurrency limit.

The first run that needs the global limit creates it, with one concurrency slot for each device of its machine; from
then on it is the operators' (`prefect gcl update deepspec-cuda --limit 8`). Prefect frees the concurrency slot of a
holder that died after a minute, unless the server has lost its leases (it keeps them in memory, if not told otherwise).
Therefore each holder leaves a note, a Prefect variable: those who wait say for whom, and free what is held by runs that
have ended. Without a server (the embedded default) nothing is limited.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from deepspec.errors import LaunchError, RecipeError
from tasks.runtime.job import device_of
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

logger = logging.getLogger(__name__)

_LEASE_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 24 * 3600.0
"""A run that could not compute within a day ends with an error: the next night is waiting, too."""
_ENDED_SECONDS = 180.0
"""Later than this after its holder's end Prefect will not free a concurrency slot by itself."""


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
        LaunchError: others have held them for a day.
    """
    if not (run.on_shared_server and computes):
        yield
        return
    from prefect.client.orchestration import get_client

    device = device_of(run.execution)
    name = f"deepspec-{device}"
    wanted = int(getattr(run.execution, workers)) if device == "cuda" and workers else 1
    with ExitStack() as held:
        with run.waiting():
            with get_client(sync_client=True) as client:
                _make_limit(client, name, device)
                limit, _ = _limit(client, name)
            if wanted > limit:
                raise RecipeError(
                    f"{stage} needs {wanted} concurrency slots of Prefect's limit {name!r}, which has {limit}.",
                    where=f"run.{workers}",
                    remedy=f"Use fewer processes, or `prefect gcl update {name} --limit {wanted}`.",
                )
            _take(run, held, stage, name, wanted)
        yield


def _take(run: Run[Any], held: ExitStack, stage: str, name: str, wanted: int) -> None:
    """Take concurrency slots as soon as there are any; `held` gives them back."""
    from prefect.client.orchestration import get_client
    from prefect.concurrency.sync import concurrency

    note = held.enter_context(_noted(run, stage, name, wanted))
    said, deadline = "", time.monotonic() + _LONGEST_WAIT_SECONDS
    while True:
        # A client for each look: a server closes a connection that was idle for as long as is waited here.
        with get_client(sync_client=True) as client:
            holders = free_ended(client, name)
            limit, taken = _limit(client, name)
        if taken + wanted > limit:
            by = ", ".join(f"run {holder['run']} ({holder['stage']})" for holder in holders)
            text = f"{name}: {taken} of {limit} are taken" + (f" by {by}." if by else ".")
            if text != said:
                run.display.say(f"Waiting for a concurrency slot of {text}")
            said = text
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{stage} has waited {_LONGEST_WAIT_SECONDS / 3600:.0f} hours for a concurrency slot of {text}",
                    where="PREFECT_API_URL",
                    remedy=f"See what holds it, or `prefect gcl update {name} --limit {limit + wanted}`. "
                    "What was finished is kept; run again.",
                )
            time.sleep(_LOOK_AGAIN_SECONDS)
            continue
        # While Prefect's server is down, hours of training are worth more than a limit that is exceeded meanwhile.
        taking = concurrency(
            name,
            occupy=wanted,
            timeout_seconds=_LOOK_AGAIN_SECONDS,
            lease_duration=_LEASE_SECONDS,
            strict=True,
            raise_on_lease_renewal_failure=False,
        )
        with suppress(TimeoutError):  # another one was first
            held.enter_context(taking)
            note()
            return


@contextmanager
def _noted(run: Run[Any], stage: str, name: str, slots: int) -> Iterator[Callable[[], None]]:
    """A function that leaves the holder's note; the note goes when the server has the concurrency slots back."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import VariableCreate, VariableUpdate
    from prefect.context import TaskRunContext
    from prefect.exceptions import ObjectNotFound

    context = TaskRunContext.get()
    flow_run = None if context is None else str(context.task_run.flow_run_id)
    variable = f"{name}-holder-{uuid.uuid4().hex}"
    value = {"run": run.run_id, "stage": stage, "flow_run": flow_run, "slots": slots, "ended": None}
    left = False

    def leave() -> None:
        nonlocal left
        # It is for those who wait: without it the stage is none the worse.
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            client.create_variable(VariableCreate(name=variable, value=value))
            left = True

    try:
        yield leave
    finally:
        if left:
            with suppress(httpx.HTTPError, ObjectNotFound), get_client(sync_client=True) as client:
                others = sum(holder["slots"] for other, holder in _notes(client, name).items() if other != variable)
                if _limit(client, name)[1] <= others:
                    client.delete_variable_by_name(variable)
                else:  # a server that has lost the lease does not have them back
                    value["ended"] = datetime.now(UTC).isoformat()
                    client.update_variable(VariableUpdate(name=variable, value=value))


def free_ended(client: "SyncPrefectClient", name: str) -> list[dict[str, Any]]:
    """Free concurrency slots of a limit whose holders have ended; the notes of those that hold some."""
    from prefect.exceptions import ObjectNotFound

    notes = _notes(client, name)
    ends = _ends(client, notes)
    before = datetime.now(UTC) - timedelta(seconds=_ENDED_SECONDS)
    over = {variable for variable, end in ends.items() if end < before}
    holders = [note for variable, note in notes.items() if variable not in over]
    for variable in over:
        slots = notes[variable]["slots"]
        excess = _limit(client, name)[1] - sum(holder["slots"] for holder in holders)
        with suppress(ObjectNotFound):  # another one that waits was first
            client.delete_variable_by_name(variable)
            if excess >= slots:
                logger.warning("A concurrency slot of %s is freed: run %s has ended.", name, notes[variable]["run"])
                client.release_concurrency_slots([name], slots, occupancy_seconds=1.0)
    return holders


def _notes(client: "SyncPrefectClient", name: str) -> dict[str, dict[str, Any]]:
    """Notes of a limit's holders, by the name of their variable."""
    wanted = {"variables": {"name": {"like_": f"{name}-holder-%"}}, "limit": 200}
    found = client.request("POST", "/variables/filter", json=wanted).json()
    return {str(variable["name"]): dict(variable["value"]) for variable in found}


def _ends(client: "SyncPrefectClient", notes: Mapping[str, Mapping[str, Any]]) -> dict[str, datetime]:
    """When the holders ended, of those that have, by the name of their variable."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    if not notes:
        return {}
    asked = [uuid.UUID(note["flow_run"]) for note in notes.values() if note["flow_run"] is not None]
    found = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=asked)))
    states = {str(flow_run.id): flow_run.state for flow_run in found}
    ends = {}
    for variable, note in notes.items():
        state = states.get(note["flow_run"])
        if note["ended"] is not None:
            ends[variable] = datetime.fromisoformat(note["ended"])
        elif state is not None and state.is_final():
            ends[variable] = datetime.fromisoformat(state.timestamp.isoformat())
    return ends


def _limit(client: "SyncPrefectClient", name: str) -> tuple[int, int]:
    """Concurrency slots of a limit, and how many are taken."""
    found = client.read_global_concurrency_limit_by_name(name)
    return found.limit, found.active_slots


def _make_limit(client: "SyncPrefectClient", name: str, device: str) -> None:
    """Make the limit if there is none."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError

    try:
        client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        new = GlobalConcurrencyLimitCreate(name=name, limit=_num_devices(device))
        with suppress(ObjectAlreadyExists, PrefectHTTPStatusError):  # another run was first
            client.create_global_concurrency_limit(new)


def _num_devices(device: str) -> int:
    """GPUs of this machine; a CPU is one."""
    if device != "cuda":
        return 1
    import torch

    return max(1, torch.cuda.device_count())
