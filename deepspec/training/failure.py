"""How a training process says why it ended: our errors as JSON, rebuilt as the same class in the launching process.

JSON rather than pickle: a work directory may be shared, and nothing from it is ever unpickled.
"""

import importlib
import json
from pathlib import Path

from deepspec.atomic_write import write_text
from deepspec.errors import DeepspecError, LaunchError

EXIT_STOPPED = 75
"""Exit code of a training process that was asked to stop, saved and ended (EX_TEMPFAIL: run it again)."""


class TrainingDiverged(DeepspecError):
    """The loss or its gradient became infinite or not a number."""


class TrainingStopped(LaunchError):
    """The training was asked to stop, and has saved.

    Attributes:
        step, num_steps: where it is, and how many there are.
    """

    step = 0
    num_steps = 0


class OutOfMemory(DeepspecError):
    """The device has no room for a training step."""


def write_error(path: Path, error: DeepspecError) -> None:
    """Write `error` to `path` as JSON, atomically."""
    kind = type(error)
    content = {"class": f"{kind.__module__}:{kind.__qualname__}", "state": error.__dict__}
    write_json(path, content)


def read_error(path: Path) -> DeepspecError | None:
    """The error that was written to `path`, as the class it was; None if there is none that can be understood."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        module_name, _, name = content["class"].partition(":")
        if module_name.split(".")[0] != "deepspec":
            return None
        kind = getattr(importlib.import_module(module_name), name)
        state = dict(content["state"])
        what = state["what"]
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError):
        return None
    if not (isinstance(kind, type) and issubclass(kind, DeepspecError)):
        return None
    error = kind.__new__(kind)
    Exception.__init__(error, what)
    error.__dict__.update(state)
    return error


def write_json(path: Path, content: object) -> None:
    """Write `content` to `path` so that a reader sees all of it or nothing."""
    write_text(path, json.dumps(content, indent=1, default=str))
