"""The files through which a launching process and its training processes talk.

    <work>/attempts/0001/   job.json      in: what to train
                            ready.json    out: step that training resumes at, process id, start-up times
                            result.json   out: how it ended
                            error.json    out: the typed error it ended with
                            counted-*.json   out: what each process asked of object storage, by its rank
                            log.txt       out: everything printed
    <work>/metrics.jsonl    the metric stream, shared by all attempts
    <work>/checkpoints/     likewise
    <work>/lock             held by the one attempt that trains

Every launch has an attempt of its own: a training that is still saving never shares a file with the next. The files of
an attempt are written and read by one deepspec, and need no format version; the stream goes with the checkpoints, and
is read only as far as one says that can be read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Attempt:
    """One launch in a work directory."""

    work_dir: Path
    name: str

    @classmethod
    def create(cls, work_dir: Path) -> "Attempt":
        """A new attempt, with a number no other has."""
        folder = work_dir / "attempts"
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
        while True:
            attempt = cls(work_dir, f"{number:04d}")
            try:
                attempt.path.mkdir()
            except FileExistsError:
                number += 1
                continue
            return attempt

    @property
    def path(self) -> Path:
        """The attempt's own folder."""
        return self.work_dir / "attempts" / self.name

    @property
    def job(self) -> Path:
        """The job, as JSON."""
        return self.path / "job.json"

    @property
    def ready(self) -> Path:
        """Written when training starts and the metric stream has been cut back."""
        return self.path / "ready.json"

    @property
    def result(self) -> Path:
        """Written when training ended without an error."""
        return self.path / "result.json"

    @property
    def error(self) -> Path:
        """Written when training ended with one of our errors."""
        return self.path / "error.json"

    def counted(self, rank: int | str) -> Path:
        """Written by each process when it ends: `deepspec.usage.counted_so_far`."""
        return self.path / f"counted-{rank}.json"

    @property
    def log(self) -> Path:
        """What the processes printed."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """The metric stream of all attempts."""
        return self.work_dir / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints of all attempts."""
        return self.work_dir / "checkpoints"


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file that is written atomically; None as long as there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content
