"""PostgreSQL: one cluster, a role and its databases for MLflow and for Prefect.

It refuses to run as root, and an ordinary account may not enter the folders above the cluster's (the stack's own is
private). So the server inherits the cluster as an open folder, and needs no other access.
"""

import os
import pwd
import shutil
import signal
from pathlib import Path

from deepspec.errors import LaunchError
from infra.stack.service import Command, NotHealthy, Service, Stack, run_once
from infra.stack.settings import HOST

DATABASES = {"mlflow": ("mlflow", "mlflow_auth"), "prefect": ("prefect",)}
"""Role -> the databases it owns."""

_PROGRAMS = Path("/usr/lib/postgresql")


def database_url(stack: Stack, database: str, *, scheme: str = "postgresql") -> str:
    """The address of a database, with its role and password: never on a command line."""
    role = next(role for role, databases in DATABASES.items() if database in databases)
    return f"{scheme}://{role}:{stack.secret(f'postgres-{role}')}@{HOST}:{stack.ports['postgres']}/{database}"


def _command(stack: Stack) -> Command:
    cluster = stack.folder / "postgres"
    made = stack.folder / "postgres.made"
    account = _account()
    if not made.is_file():
        if cluster.is_dir():
            shutil.rmtree(cluster)  # half made: an earlier start was interrupted
        cluster.mkdir(mode=0o700)
        if account is not None:
            shutil.chown(cluster, account, account)
    # A killed server leaves it, and the next one looks whether any process has that id. We know that none of ours runs.
    (cluster / "postmaster.pid").unlink(missing_ok=True)
    programs = _programs(cluster)
    # Inherited by the server; ours ends with us.
    folder = os.open(cluster, os.O_RDONLY | os.O_DIRECTORY)
    data = f"/proc/self/fd/{folder}"

    def as_server(program: str, *arguments: str) -> Command:
        return Command([str(programs / program), *arguments], folder=Path("/"), user=account, files=(folder,))

    if not made.is_file():
        options = ("--username=postgres", "--auth=reject", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions")
        run_once(stack, "postgres", as_server("initdb", "-D", data, *options))
        # Before it listens, so that it never accepts a connection without a password.
        run_once(stack, "postgres", as_server("postgres", "--single", "-D", data, "postgres"), given=_roles(stack))
        (cluster / "pg_hba.conf").write_text(f"host all all {HOST}/32 scram-sha-256\n", encoding="utf-8")
        made.touch()
    listening = (f"listen_addresses={HOST}", f"port={stack.ports['postgres']}", "unix_socket_directories=")
    return as_server("postgres", "-D", data, *(part for setting in listening for part in ("-c", setting)))


def _roles(stack: Stack) -> str:
    """Statements for the single-user server, one a line."""
    lines = []
    for role, databases in DATABASES.items():
        lines.append(f"CREATE ROLE {role} LOGIN PASSWORD '{stack.secret(f'postgres-{role}')}';")
        for database in databases:
            lines.append(f"CREATE DATABASE {database} OWNER {role};")
            lines.append(f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC;")
    return "\n".join(lines) + "\n"


def _account() -> str | None:
    """The account that the server runs as, if it cannot be ours."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _programs(cluster: Path) -> Path:
    """The folder of the programs that made the cluster, or of the newest ones."""
    version = cluster / "PG_VERSION"
    wanted = version.read_text(encoding="utf-8").strip() if version.is_file() else "*"
    found = [path.parent for path in _PROGRAMS.glob(f"{wanted}/bin/postgres")]
    if not found:
        which = "" if wanted == "*" else f" {wanted}, which made the databases,"
        raise LaunchError(
            f"PostgreSQL{which} is not installed.",
            where=str(_PROGRAMS),
            remedy="`bash infra/install_services.sh services` installs what the stack needs.",
        )
    return max(found, key=lambda path: float(path.parent.name))


def _check(stack: Stack) -> None:
    import psycopg2

    for databases in DATABASES.values():
        try:
            psycopg2.connect(database_url(stack, databases[0]), connect_timeout=5).close()
        except psycopg2.OperationalError as error:
            raise NotHealthy(str(error).strip().splitlines()[-1].strip()) from error


# SIGINT is its fast shutdown: sessions are ended, everything is written.
POSTGRES = Service("postgres", _command, _check, stop_signal=signal.SIGINT)
