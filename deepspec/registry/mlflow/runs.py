"""Writing to one MLflow run: in batches, within MLflow's limits, and nothing shortened unsaid.

MLflow's record classes are imported when the first batch is made.
"""

import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepspec.registry import keys
from deepspec.registry.errors import TrackingError

logger = logging.getLogger(__name__)

Send = Callable[[Callable[[Any, str], None]], None]
"""Calls a function with an `MlflowClient` and the run's id, now or later; MLflow's errors become typed ones."""

_PARAM_CHARS = 6000
_TAG_CHARS = 8000
_BATCH_METRICS = 500
_BATCH_NAMES = 100
_BATCH_SECONDS = 2.0
_INPUT_DIGEST_CHARS = 36


class RunWriter:
    """Parameters, metrics, tags, inputs and artifacts of one run; safe to call from several threads.

    Args:
        send: see `Send`.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._metrics: list[tuple[str, float, int, int]] = []
        self._oldest = 0.0
        self._units: dict[str, str] = {}
        self._long: dict[str, str] = {}
        self._long_is_new = False

    def metric(self, step: int, name: str, value: float, unit: str) -> None:
        """Record one value at a step; a `MetricSink`.

        Values are sent in batches, at the latest with the first call two seconds after the oldest, and by `flush`.
        """
        name = keys.mlflow_name(name)
        with self._lock:
            if not self._metrics:
                self._oldest = time.monotonic()
            self._metrics.append((name, float(value), time.time_ns() // 1_000_000, step))
            full = len(self._metrics) >= _BATCH_METRICS or time.monotonic() - self._oldest > _BATCH_SECONDS
            new_unit = bool(unit) and name not in self._units
            if new_unit:
                self._units[name] = unit
        if new_unit:
            self.tags({keys.UNIT.format(metric=name): unit})
        if full:
            self.flush()

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record values that have no course over time (an evaluation's)."""
        for name, value in values.items():
            self.metric(step, name, value, "")

    def params(self, values: Mapping[str, Any]) -> None:
        """Record parameters; a value over 6,000 characters is cut and stands in full in `long-values.json`."""
        from mlflow.entities import Param

        texts = {keys.mlflow_name(name): keys.text_of(value) for name, value in values.items()}
        entities = [Param(name, self._cut(name, text, _PARAM_CHARS)) for name, text in texts.items()]
        for batch in _batches(entities, _BATCH_NAMES):
            self._log_batch(params=batch)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; a value over 8,000 characters is cut and stands in full in `long-values.json`."""
        from mlflow.entities import RunTag

        texts = {keys.mlflow_name(name): str(value) for name, value in values.items()}
        entities = [RunTag(name, self._cut(name, text, _TAG_CHARS)) for name, text in texts.items()]
        for batch in _batches(entities, _BATCH_NAMES):
            self._log_batch(tags=batch)

    def dataset(
        self, name: str, digest: str, source: str, counts: Mapping[str, Any] | None = None, *, context: str = ""
    ) -> None:
        """Record an input artifact.

        Args:
            name: what it is, e.g. "tokens/train".
            digest: its content digest; MLflow keeps 36 digits, a tag of the input all of them.
            source: where it comes from, e.g. "tokens/<key>" in the store.
            counts: rows, tokens and the like.
            context: what the run used it for, e.g. "training".
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        record = Dataset(
            name=name[:500],
            digest=digest[:_INPUT_DIGEST_CHARS],
            source_type="deepspec",
            source=json.dumps({"artifact": source}),
            profile=json.dumps(dict(counts or {}), sort_keys=True, default=str),
        )
        tags = [InputTag(keys.INPUT_DIGEST, digest)]
        if context:
            tags.append(InputTag("mlflow.data.context", context))
        self._send(lambda client, run_id: client.log_inputs(run_id, datasets=[DatasetInput(record, tags)]))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or everything in a directory, below `folder` of the run's artifacts."""
        if path.is_dir():
            self._send(lambda client, run_id: client.log_artifacts(run_id, str(path), folder))
        else:
            self._send(lambda client, run_id: client.log_artifact(run_id, str(path), folder))

    def flush(self) -> None:
        """Send what is waiting."""
        with self._lock:
            waiting, self._metrics = self._metrics, []
            long, self._long_is_new = dict(self._long) if self._long_is_new else {}, False
        if waiting:
            from mlflow.entities import Metric

            entities = [Metric(*values) for values in waiting]
            for batch in _batches(entities, _BATCH_METRICS):
                self._log_batch(metrics=batch)
        if long:
            self._write_long(long)

    def _log_batch(self, **records: Sequence[Any]) -> None:
        self._send(lambda client, run_id: client.log_batch(run_id, **records))

    def _cut(self, name: str, text: str, limit: int) -> str:
        if len(text) <= limit:
            return text
        note = f" … ({len(text)} characters, in full in {keys.LONG_VALUES})"
        with self._lock:
            self._long[name] = text
            self._long_is_new = True
        return text[: limit - len(note)] + note

    def _write_long(self, values: dict[str, str]) -> None:
        def write(client: Any, run_id: str) -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / keys.LONG_VALUES
                path.write_text(json.dumps(values, indent=1, ensure_ascii=False, sort_keys=True), encoding="utf-8")
                client.log_artifact(run_id, str(path), None)

        self._send(write)


@contextmanager
def flushed(writer: RunWriter, end: Callable[[str], None]) -> Iterator[RunWriter]:
    """Write inside the block; then send what waits and end the run by `end(status)`.

    An error in the block marks the run FAILED (an interrupt: KILLED) and is raised; a failure to report it to MLflow
    never hides it.
    """
    try:
        yield writer
        writer.flush()
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        try:
            writer.flush()
            end(status)
        except TrackingError as lost:
            level = logging.DEBUG if isinstance(error, TrackingError) else logging.WARNING
            logger.log(level, "The end of a run could not be recorded: %s", lost)
        raise
    else:
        end("FINISHED")


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
