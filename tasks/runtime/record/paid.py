"""What attempts at an artifact have cost that did not finish it: the one that does adds them up in its manifest.

An attempt keeps the file `<home>/paid/<key>/<run id>-<attempt>.json` while it lasts. One that is killed leaves it, and
so does one that fails. The artifact that is made in the end takes them over, and the folder goes.
"""

import contextlib
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deepspec.atomic_write import write_text
from deepspec.usage import cpu_seconds_so_far

FIELDS = ("seconds", "cpu_seconds", "gpu_seconds")
EARLIER = "earlier_"
"""Before a field's name in a manifest's `cost`: of earlier attempts, which did not finish."""

_FIRST_SECONDS = 1.0
_EVERY_SECONDS = 10.0


@contextmanager
def paid(home: Path, key: str, run_id: str, *, num_gpus: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Account for one attempt at the artifact `key` while the block runs; if it raises, the account stays.

    Args:
        home: of the user.
        key: of the artifact, which no other process of the home is making.
        run_id: of the run that makes it.
        num_gpus: that it computes on.

    Yields:
        a function: what earlier attempts have cost, as fields of a manifest's `cost`; empty if there were none.
    """
    folder = home / "paid" / key
    earlier = added_up(folder.glob("*.json"))
    own = folder / f"{run_id}-{uuid.uuid4().hex[:6]}.json"
    started, started_cpu = time.monotonic(), cpu_seconds_so_far()
    ended = threading.Event()

    def write() -> None:
        seconds, cpu_seconds = time.monotonic() - started, cpu_seconds_so_far() - started_cpu
        values = dict(zip(FIELDS, (seconds, cpu_seconds, seconds * num_gpus), strict=True))
        with contextlib.suppress(OSError):  # without room for it the stage is none the worse
            folder.mkdir(parents=True, exist_ok=True)
            write_text(own, json.dumps({name: round(value, 3) for name, value in values.items()}))

    def keep_writing() -> None:
        pause = _FIRST_SECONDS
        while not ended.wait(pause):
            write()
            pause = _EVERY_SECONDS

    writing = threading.Thread(target=keep_writing, name="paid", daemon=True)
    writing.start()
    finished = False
    try:
        yield lambda: {f"{EARLIER}{name}": value for name, value in earlier.items() if value}
        finished = True
    finally:
        ended.set()
        writing.join()
        if finished:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            write()


def paid_by(home: Path, run_id: str) -> dict[str, float]:
    """What a run has paid for artifacts that are not finished yet."""
    return added_up((home / "paid").glob(f"*/{run_id}-*.json"))


def added_up(files: Iterator[Path]) -> dict[str, float]:
    """Sums of accounts; one that cannot be read counts nothing."""
    sums = dict.fromkeys(FIELDS, 0.0)
    for file in files:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(file.read_text(encoding="utf-8"))
            values = {name: float(found[name]) for name in FIELDS}
            sums = {name: round(sums[name] + value, 3) for name, value in values.items()}
    return sums
