"""register: the draft as a version of the registered model, with tags that lead back to everything it came from."""

import json
from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from deepspec.store import Artifact
from deepspec.store.gc import lineage
from tasks._run import Run
from tasks._stage import stage


@stage(version=1, reads=("name",))
def register(run: Run[Recipe], out: Path, *, draft: Path, calibration: Path, evaluation: Path) -> dict[str, Any]:
    """Register the draft's directory; the same draft is registered once."""
    from deepspec.registry.keys import version_tags
    from deepspec.registry.promotions import DraftReference

    del calibration
    if run.tracking is None or run.tracking_run is None or run.current is None:
        raise RuntimeError("no tracked stage is being made")
    inputs = run.current.inputs
    artifact = inputs["draft"]
    if not isinstance(artifact, Artifact):
        raise TypeError("the draft is an artifact")
    ancestors = [item for item in inputs.values() if isinstance(item, Artifact)]
    named = {item.kind: (item.key, item.digest) for parent in ancestors for item in lineage(run.store, parent)}
    tags = version_tags(
        recipe=run.section("name"),
        code_version=str(run.store.code.get("commit") or run.store.code.get("deepspec", "")),
        run_id=run.run_id,
        artifacts=named,
        evaluation=json.loads((evaluation / "evaluation.json").read_text()),
    )
    version = run.tracking.register(
        draft / "draft",
        run.section("name"),
        run.tracking_run,
        tags,
        draft=DraftReference(kind=artifact.kind, key=artifact.key, digest=artifact.digest),
    )
    record = {"name": version.name, "version": version.version, "uri": version.uri}
    (out / "registration.json").write_text(json.dumps(record))
    return dict(record)
