"""Checkpoints that a killed training resumes from: complete, checked, or not there at all.

A checkpoint is a directory in `torch.distributed.checkpoint`'s format (readable at another number of processes) plus
`state.json` (where training stood) and `manifest.json` (size and SHA-256 of every other file). It is written under a
temporary name, synced, and renamed. Nothing of it is read before its hashes have been checked: the format holds a
pickle, and this is the one place where we read one. A damaged checkpoint is passed over for the one before.

Training waits for a copy of its tensors only: writing, hashing and publishing happen in threads of their own.
"""

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deepspec.atomic_write import sync_folder, write_durably
from deepspec.errors import ArtifactError, StoreFull
from deepspec.file_system import is_out_of_room
from deepspec.store.reading.pieces import sha256_of
from deepspec.store.records import refuse_newer
from deepspec.training import parallel

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Raised when a checkpoint is written that an older deepspec could not resume from; in its manifest and its state."""


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands between two optimizer steps: besides the tensors, all there is to resume from.

    Args:
        step: optimizer steps done.
        best_step, best_score: the validation with the best score so far, and that score.
        worse_validations: validations since then.
        metrics_mark: length of the metric stream.
    """

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    worse_validations: int = 0
    metrics_mark: int = 0


class Checkpoints:
    """The checkpoints of one training.

    Args:
        directory: where they are; created. Belongs to one training at a time (the work directory's lock).
        keep: how many of the newest to keep, besides the best.
        identity: what is trained; checkpoints that say otherwise are refused.
    """

    def __init__(self, directory: Path, *, keep: int, identity: str) -> None:
        self._directory = directory
        self._keep = keep
        self._identity = identity
        self._group = parallel.side_group()
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._best_steps: dict[int, int | None] = {}
        directory.mkdir(parents=True, exist_ok=True)
        if parallel.rank() == 0:
            for leftover in directory.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def save(self, state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` and start to publish them; returns before that is done, but after what was started before.

        Args:
            state: where training is.
            tensors: by name; what every process passes must have the same names.

        Raises:
            StoreFull: there is no room, for this one or for the one that was started before.
        """
        self.wait()
        temporary = self._path(state.step).with_name(f".step-{state.step:09d}")
        with self._naming_full_disks():
            if parallel.rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
            parallel.wait_for_all()
            written = _start_writing(temporary, tensors, self._group)
        self._pending = self._publisher.submit(self._publish, temporary, state, written)

    def look(self) -> None:
        """Raise what has gone wrong with the one that was started, if that is known already."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return once everything that was started is published.

        Raises:
            StoreFull: there was no room for it.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _publish(self, temporary: Path, state: TrainingState, written: "Future[Any]") -> None:
        """In a thread of its own: turn what is being written into a checkpoint."""
        with self._naming_full_disks():
            _finish_writing(written, temporary)
            parallel.wait_for_all(self._group)
            if parallel.rank() != 0:
                return
            content = {"format": _FORMAT, "identity": self._identity, "standing": asdict(state)}
            write_durably(temporary / "state.json", json.dumps(content, indent=1).encode())
            described = {"format": _FORMAT, "files": _describe(temporary)}
            write_durably(temporary / "manifest.json", json.dumps(described, indent=1).encode())
            sync_folder(temporary)
            final = self._path(state.step)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            sync_folder(self._directory)
        self._drop_old(state)

    @contextlib.contextmanager
    def _naming_full_disks(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if is_out_of_room(error):
                raise _no_room(self._directory) from error
            raise

    def resume(self, tensors: Mapping[str, Tensor]) -> TrainingState | None:
        """Fill `tensors` in place from the newest usable checkpoint.

        Usable: its hashes are right, and those of the best one so far, which it refers to, are too.

        Returns:
            where that checkpoint stood; None if there is none (the tensors are untouched).

        Raises:
            ArtifactError: the newest usable checkpoint is one of another training, or a newer deepspec wrote one.
        """
        self.wait()
        state = parallel.from_first(self._newest() if parallel.rank() == 0 else None)
        if not isinstance(state, TrainingState):
            return None
        logger.info("Checkpoint of step %d is read.", state.step)
        _read_tensors(self._path(state.step), tensors)
        return state

    def load(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Fill `tensors` in place from the checkpoint of `step`.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        self.wait()
        fault = parallel.from_first(_fault(self._path(step)) if parallel.rank() == 0 else None)
        if fault is not None:
            raise ArtifactError(
                f"the best checkpoint cannot be used: {fault}.",
                where=self._path(step).name,
                remedy="Run again: training goes back to before it.",
            )
        _read_tensors(self._path(step), tensors)

    def _newest(self) -> TrainingState | None:
        """Where the newest usable checkpoint stood; those that had to be passed over are removed."""
        for path in sorted(self._directory.glob("step-*"), reverse=True):
            fault = _fault(path)
            if fault is not None:
                _pass_over(path, fault)
                continue
            content = json.loads((path / "state.json").read_text(encoding="utf-8"))
            _refuse_newer(content, path)
            if content["identity"] != self._identity:
                raise ArtifactError(
                    "the work directory holds checkpoints of another training.",
                    where=path.name,
                    remedy="Remove the work directory, or train in another one.",
                )
            state = TrainingState(**content["standing"])
            best = state.best_step
            self._best_steps[state.step] = best
            fault = None if best in {None, state.step} else _fault(self._path(int(best or 0)))
            if fault is not None:
                _pass_over(path, f"the best one so far is lost: {fault}")
                continue
            return state
        return None

    def _drop_old(self, state: TrainingState) -> None:
        paths = sorted(self._directory.glob("step-*"))
        self._best_steps[state.step] = state.best_step
        keep = {path.name for path in paths[-self._keep :]}
        # Without its own best, an older checkpoint would be of no use.
        needed = [best for step, best in self._best_steps.items() if self._path(step).name in keep]
        keep |= {self._path(best).name for best in needed if best is not None}
        for path in paths:
            if path.name not in keep:
                _remove(path)

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:09d}"


def unsaved(state: TrainingState, saved: TrainingState | None) -> bool:
    """Whether `state` has work that the checkpoint of `saved` has not."""
    empty = replace(TrainingState(), metrics_mark=state.metrics_mark)
    return replace(saved or empty, metrics_mark=state.metrics_mark) != state


def _pass_over(path: Path, fault: str) -> None:
    logger.warning("Checkpoint %s is passed over: %s.", path.name, fault)
    # Training goes back to before it, and what it then saves must not look older than this.
    _remove(path)


def _remove(path: Path) -> None:
    # Renamed first: a crash in the middle must not leave half a checkpoint under a valid name.
    shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")), ignore_errors=True)


def _start_writing(directory: Path, tensors: Mapping[str, Tensor], group: Any) -> "Future[Any]":
    """Copy the tensors, and write the copies in a thread (in a process of its own, torch's writer hangs)."""
    # Imported at the first checkpoint: it costs about a second, and a short run needs none.
    from torch.distributed import checkpoint

    writer = checkpoint.FileSystemWriter(directory, single_file_per_rank=True, sync_files=True)
    _ignore_remarks()
    started = checkpoint.async_save(
        dict(tensors), storage_writer=writer, process_group=group, no_dist=parallel.is_alone()
    )
    if isinstance(started, Future):
        return started
    started.staging_completion.result()
    written: Future[Any] = started.upload_completion
    return written


def _finish_writing(written: "Future[Any]", directory: Path) -> None:
    from torch.distributed import checkpoint

    try:
        written.result()
    except checkpoint.CheckpointException as error:
        for failure in error.failures.values():
            # torch's writer says "unexpected position" over the system's own words.
            cause = failure[0]
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            if cause is not None:
                raise cause from error
        raise ArtifactError(
            f"the checkpoint could not be written: {error}",
            where=directory.name,
            remedy="Check the work folder's permissions and disk, and run again.",
        ) from error


def _read_tensors(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    from torch.distributed import checkpoint

    _ignore_remarks()
    try:
        reader = checkpoint.FileSystemReader(directory)
        checkpoint.load(dict(tensors), storage_reader=reader, no_dist=parallel.is_alone())
    except checkpoint.CheckpointException as error:
        raise ArtifactError(
            f"the checkpoint does not fit what is trained: {error}",
            where=directory.name,
            remedy="Remove the work directory, or train in another one.",
        ) from error


def _ignore_remarks() -> None:
    """Not torch's that a single process is a single process; for good, because a thread makes it."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _describe(directory: Path) -> dict[str, dict[str, object]]:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return {path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in files}


def _fault(directory: Path) -> str | None:
    """What is wrong with the checkpoint in `directory`, or None; ArtifactError if a newer deepspec wrote it."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        # Before anything that could be taken for damage: what is damaged is passed over, and removed.
        _refuse_newer(manifest, directory)
        files = manifest["files"]
        for name, expected in files.items():
            path = directory / name
            size = path.stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} bytes instead of {expected['size']}"
            if sha256_of(path) != expected["sha256"]:
                return f"the bytes of {name} changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({type(error).__name__})"
    if not {"state.json", ".metadata"} <= files.keys():
        return "its manifest is incomplete"
    return None


def _refuse_newer(content: Mapping[str, Any], directory: Path) -> None:
    refuse_newer(
        content,
        _FORMAT,
        what="This checkpoint",
        where=str(directory),
        otherwise="remove the work directory, and train from the start",
    )


def _no_room(directory: Path) -> StoreFull:
    return StoreFull(
        "there is no room left for a checkpoint.",
        where=str(directory),
        remedy="Free some space and run again: training resumes from the last checkpoint.",
    )
