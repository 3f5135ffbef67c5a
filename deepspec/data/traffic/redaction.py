"""The hook that takes personal data out of rows: a program, or a function of the user's.

It is handed conversations, and must return as many. What it says on stderr may quote them, and is shown nowhere.
"""

import hashlib
import importlib
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deepspec.data.traffic_config import Redaction
from deepspec.errors import DataError

WHERE = "data.source traffic.redaction"


def redacted(hook: Redaction, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what the hook takes out.

    Args:
        hook: the recipe's.
        rows: conversations, in one of the forms.

    Raises:
        DataError: the hook is not there, dies, or returns something that is not as many rows. No row is quoted.
    """
    found = _by_function(hook, rows) if hook.function else _by_command(hook, rows)
    if len(found) != len(rows):
        raise _broken(hook, f"returned {len(found)} rows for {len(rows)}", "It must return one row for each, in order.")
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict) or not row:
            raise _broken(hook, f"returned no object as row {number} of {len(rows)}", "A row is a JSON object.")
    return found


def code_of(hook: Redaction) -> str:
    """A digest of the files that the hook names itself: an edit without a new version must not go unnoticed."""
    if hook.function:
        module = hook.function.partition(":")[0]
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        paths = [spec.origin] if spec is not None and spec.origin is not None else []
    else:
        paths = [shutil.which((hook.command or ("",))[0]) or "", *(hook.command or ())[1:]]
    digest = hashlib.sha256()
    for path in paths:
        if path and Path(path).is_file():
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()


def _by_function(hook: Redaction, rows: Sequence[dict[str, Any]]) -> list[Any]:
    module, _, name = (hook.function or "").partition(":")
    try:
        function: Callable[[list[dict[str, Any]]], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise _broken(hook, "cannot be imported", "Install the package, or correct the name.") from error
    try:
        # A copy: whatever the function does to what it was handed, the rows are what it returns.
        return list(function(json.loads(json.dumps(list(rows)))))
    except Exception as error:  # noqa: BLE001 - the hook is code from outside; its words may quote a row
        why = f"failed with {type(error).__name__}"
        raise _broken(hook, why, "Call it with a few rows of your own.") from None


def _by_command(hook: Redaction, rows: Sequence[dict[str, Any]]) -> list[Any]:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        done = subprocess.run(
            hook.command or (),
            input=text.encode(errors="surrogatepass"),
            capture_output=True,
            timeout=hook.timeout_seconds,
            check=False,
        )
    except OSError as error:
        raise _broken(hook, f"cannot be started: {error.strerror}", "Give its full path.") from error
    except subprocess.TimeoutExpired:
        why = f"did not end within {hook.timeout_seconds:g} s"
        raise _broken(hook, why, "Raise traffic.redaction.timeout_seconds, or see why it waits.") from None
    if done.returncode:
        how = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        raise _broken(hook, f"died with {how}", "Run it by hand on a few rows; what it printed may quote rows.")
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        raise _broken(hook, "wrote something that is not JSON Lines", "It must write one JSON row a line.") from None


def _broken(hook: Redaction, what: str, remedy: str) -> DataError:
    return DataError(f"the redaction hook {what}; nothing was taken.", where=f"{WHERE} {hook.name}", remedy=remedy)
