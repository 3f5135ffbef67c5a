"""Which draft is watched, and what it is compared with: found in the store alone, without MLflow.

A model means its champion by the promotion log; `models:/<name>/<version>` means one that is or was. The registered
reference is the newest evaluation of that draft in the store; a draft without one has its burn-in alone.
"""

from deepspec.errors import BadArgument
from deepspec.evaluation.compare.drafts import counts_by_prompt
from deepspec.evaluation.results import Evaluation
from deepspec.foreign_json import parse
from deepspec.monitoring import memory as memories
from deepspec.monitoring.memory import Memory
from deepspec.monitoring.references import Registered, registered
from deepspec.registry.entries import DraftReference
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Artifact, Store

MODELS = "models:/"
_CHAMPION = "@champion"
_MOST_BYTES = 64 << 20


def memory_of(name: str, store: Store) -> Memory:
    """What is remembered of a served draft; a new memory where nothing is.

    Args:
        name: a model, `models:/<name>@champion` or `models:/<name>/<version>`.
        store: with its promotion log and evaluations.

    Raises:
        BadArgument: there is no such champion.
        ArtifactError: what is remembered is damaged, or a newer deepspec wrote it.
    """
    model, draft = _draft(name, PromotionLog(store.backend))
    known = memories.read(store.backend, model, draft.digest)
    if known is not None:
        return known
    made = [one for one in store.newest_first("evaluate") if one.manifest.parents["draft"].digest == draft.digest]
    return Memory(
        model=model,
        draft=draft.digest,
        version=draft.version,
        evaluation=made[0].key if made else None,
        registered=_registered(made[0]) if made else Registered(),
    )


def _draft(name: str, log: PromotionLog) -> tuple[str, DraftReference]:
    model, _, version = name.removeprefix(MODELS).removesuffix(_CHAMPION).partition("/")
    entries = log.history(model) if model in log.models() else ()
    for entry in reversed(entries):
        if not version or entry.champion.version == version:
            return model, entry.champion
    known = ", ".join(log.models())
    raise BadArgument(
        f"{name} is, and was, no champion of this store.",
        where="MODEL",
        remedy=f"Known models: {known}." if known else "Promote a draft first: `deepspec run` does.",
    )


def _registered(made: Artifact) -> Registered:
    import pyarrow.parquet as pq

    folder = made.directory()
    rounds = pq.read_table(folder / "rounds.parquet", columns=["benchmark", "prompt", "committed"])
    content = parse((folder / "evaluation.json").read_bytes(), _MOST_BYTES)
    found = Evaluation.from_json(content, where=f"{made.kind}/{made.key}")
    return registered(counts_by_prompt(rounds), {name: one.domain for name, one in found.benchmarks.items()})
