"""How stages reach the experiment tracker: one parent run per pipeline run, a child run for train and for evaluate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from deepspec.recipe import flat
from deepspec.store import Artifact
from deepspec.store.fingerprint import External
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from deepspec.registry.mlflow.runs import RunWriter


@contextmanager
def tracked(run: Run[Any], name: str) -> Iterator["RunWriter"]:
    """A child run for the stage being made: its sections as parameters, its inputs as data sets."""
    if run.tracking is None or run.tracking_run is None or run.current is None:
        raise RuntimeError("no tracked stage is being made")
    with run.tracking.child_run(run.tracking_run, name) as writer:
        writer.params(flat({path: to_jsonable_python(run.section(path)) for path in run.current.reads}))
        for parent, item in run.current.inputs.items():
            if isinstance(item, Artifact):
                writer.dataset(parent, item.digest, f"{item.kind}/{item.key}", item.manifest.counts, context=name)
            elif isinstance(item, External):
                writer.dataset(parent, item.fingerprint, "external", context=name)
        yield writer
