"""Prefect's server on PostgreSQL, one process worker in the checkout, and the nights of infra/nights.yaml.

A worker runs every flow that the server is asked for, under our account: so the server needs a password, too.
"""

import json
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from infra.stack.postgres import database_url
from infra.stack.service import Command, NotHealthy, Service, Stack, ask, run_once
from infra.stack.settings import HOST, ROOT
from infra.stack.variables import USER, variables

POOL = "deepspec"

_WORKER = "stack"
_QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


def _prefect(stack: Stack, *arguments: str, **environment: str) -> Command:
    return _python(stack, "-m", "prefect", "--no-prompt", *arguments, **environment)


def _python(stack: Stack, *arguments: str, **environment: str) -> Command:
    """A command in the checkout, of which the worker runs the code; the user's own profile of Prefect is left alone."""
    home = {"PREFECT_HOME": str(stack.folder / "prefect")}
    return Command([sys.executable, *arguments], {**_QUIET, **home, **environment}, ROOT)


def _server(stack: Stack) -> Command:
    (stack.folder / "prefect").mkdir(mode=0o700, exist_ok=True)
    return _prefect(
        stack,
        "server",
        "start",
        "--host",
        HOST,
        "--port",
        str(stack.ports["prefect"]),
        PREFECT_SERVER_DATABASE_CONNECTION_URL=database_url(stack, "prefect", scheme="postgresql+asyncpg"),
        # In memory, as by default, they would be lost with a restart, and concurrency slots be taken for ever.
        PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="prefect.server.concurrency.lease_storage.filesystem",
        PREFECT_SERVER_API_AUTH_STRING=f"{USER}:{stack.secret('prefect-admin')}",
        # Otherwise its page asks at the usual port, even if the server has another one or a tunnel.
        PREFECT_SERVER_UI_API_URL="/api",
    )


def _check_server(stack: Stack) -> None:
    ask(f"{stack.url('prefect')}/api/ready")  # answers only if its database does


def _worker(stack: Stack) -> Command:
    arguments = ("--pool", POOL, "--type", "process", "--name", _WORKER, "--install-policy", "never")
    return _prefect(
        stack, "worker", "start", *arguments, **variables(stack), TMPDIR=str(_temporary(stack, started=time.time()))
    )


def _temporary(stack: Stack, *, started: float) -> Path:
    """A folder of the worker's own, and a note of when it was started.

    Prefect's runner has a fixed name under the temporary folder, which the first account on a machine keeps for itself.
    Not under the stack's folder: the path of a socket, which a flow run may make there, must be short.
    """
    note = stack.folder / "prefect" / "worker.json"
    known = json.loads(note.read_text(encoding="utf-8"))["temporary"] if note.is_file() else ""
    folder = Path(known) if known and Path(known).is_dir() else Path(tempfile.mkdtemp(prefix="deepspec-worker-"))
    note.write_text(json.dumps({"started": started, "temporary": str(folder)}) + "\n", encoding="utf-8")
    return folder


def _check_worker(stack: Stack) -> None:
    started = json.loads((stack.folder / "prefect" / "worker.json").read_text(encoding="utf-8"))["started"]
    url = f"{stack.url('prefect')}/api/work_pools/{POOL}/workers/filter"
    for worker in ask(url, user=USER, password=stack.secret("prefect-admin"), body={}):
        if worker["name"] == _WORKER and worker["status"] == "ONLINE":
            seen = datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp()
            if seen >= started:  # the one before may not be missed yet
                return
    raise NotHealthy("the server has not heard of it")


def _deploy(stack: Stack) -> None:
    """Apply the nights of infra/nights.yaml; what people have switched on or off on the server stays so."""
    arguments = ("-m", "flows.cli.main", "nights", "apply", "infra/nights.yaml")
    command = _python(stack, *arguments, **variables(stack))
    log = stack.log("deploy")
    with log.open("a", encoding="utf-8") as output:
        output.write(run_once(stack, "deploy", command, what="deepspec nights apply"))


PREFECT_SERVICES = (
    Service("prefect", _server, _check_server, after=("postgres",)),
    Service(
        "worker", _worker, _check_worker, after=("prefect", "mlflow", "radosgw"), settle=_deploy, stop_seconds=60.0
    ),
)
