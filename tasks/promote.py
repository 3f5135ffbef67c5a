"""promote: the accepted challenger becomes champion, if nobody else became it meanwhile."""

import json
from pathlib import Path
from typing import Any

from deepspec.account import who
from deepspec.recipe import Recipe
from deepspec.store import Artifact
from tasks.runtime.run import Run
from tasks.runtime.stage import stage


@stage(version=1, reads=("name",))
def promote(run: Run[Recipe], out: Path, *, registration: Path, verdict: Path, draft: Path) -> dict[str, Any]:
    """Append to the promotion log, then let the registry's alias follow it."""
    from deepspec.gates.verdict import Verdict
    from deepspec.registry.promotions import DraftReference, PromotionLog

    del draft
    artifact = run.current.inputs["draft"] if run.current else None
    if run.tracking is None or not isinstance(artifact, Artifact):
        raise RuntimeError("no tracked stage is being made")
    version = json.loads((registration / "registration.json").read_text())
    challenger = DraftReference(
        kind=artifact.kind,
        key=artifact.key,
        digest=artifact.digest,
        version=version["version"],
        uri=version["uri"],
    )
    log = PromotionLog(run.store.backend)
    entry = log.promote(
        version["name"],
        challenger,
        Verdict.from_json(json.loads((verdict / "verdict.json").read_text())),
        who=who(),
        reason=f"run {run.run_id}",
    )
    run.tracking.reconcile(version["name"], log)
    (out / "promotion.json").write_text(entry.model_dump_json(indent=1))
    return {"number": entry.number}
