"""The command line: `python -m infra.stack up | down | status`, behind `make stack`."""

import argparse
import json
import signal
import sys
import time
from types import FrameType

from rich.console import Console
from rich.table import Table

from deepspec.errors import DeepspecError
from infra.stack import lifecycle
from infra.stack.services import SERVICES
from infra.stack.settings import Settings
from infra.stack.variables import write_variables


def up() -> int:
    """Start what is not up, and wait until everything answers."""
    settings = Settings.from_environment()
    begun = time.monotonic()
    stack = lifecycle.up(settings, SERVICES, _say)
    write_variables(stack)
    _say(f"\nAll up in {time.monotonic() - begun:.0f} s.")
    _say(f"Use it    source {settings.folder / 'env'}")
    _say(f"MLflow    {stack.url('mlflow')}   Prefect  {stack.url('prefect')}   (user and password: in that file)")
    _say(f"Logs      {settings.folder / 'logs'}")
    return 0


def down() -> int:
    """End every process; the data stays."""
    lifecycle.down(Settings.from_environment(), SERVICES, _say)
    _say("Nothing is running.")
    return 0


def status(*, as_json: bool) -> int:
    """Say what is up; exit code 1 if something is not."""
    states = lifecycle.status(Settings.from_environment(), SERVICES)
    if as_json:
        sys.stdout.write(json.dumps([state.as_json() for state in states], indent=1) + "\n")
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("service", "state", "address", "pid", "memory", ""):
            table.add_column(column, justify="right" if column in ("pid", "memory") else "left")
        for state in states:
            memory = f"{state.memory_bytes / 2**20:.0f} MiB" if state.pid else ""
            table.add_row(state.service, state.state, state.address, str(state.pid or ""), memory, state.reason)
        Console().print(table)
    return 1 if any(state.state != "up" for state in states) else 0


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description=lifecycle.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (up, down, status):
        commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
    commands.choices["status"].add_argument("--json", action="store_true", help="print one JSON document to stdout")
    chosen = parser.parse_args(arguments)
    if chosen.command == "status":
        return status(as_json=chosen.json)
    return up() if chosen.command == "up" else down()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """What was started is ended on the way out, and a second signal must not disturb that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the command line; the exit code is the contract's."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return _run(sys.argv[1:])
    except KeyboardInterrupt:
        _say("stack: interrupted; what this command had started is ended")
        return 130
    except DeepspecError as error:
        _say(f"stack: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
