"""What a run itself used for each of its artifacts: of those it made, and of those it did not finish.

What a run took over from one that died is that one's, wherever it stands now: in an account, or in a manifest.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from deepspec.cost.accounts import Accounts
from deepspec.cost.attempts import attempts_at, once
from deepspec.cost.prices import Prices, prices_in
from deepspec.recipe import Recipe
from deepspec.record import Cost, RunRecord, StageEntry
from deepspec.store import Artifact, Store
from deepspec.usage import COUNTED, USED, added_up

MADE_OR_TRIED = ("ran", "rebuilt", "failed")
"""Status of a stage that a run may have paid for."""

_DIED = "the run died while this was made"

Name = tuple[str, str]
"""Kind and key of an artifact."""


def spent(
    run_id: str, names: Iterable[Name], find: Callable[[str, str], Artifact | None], accounts: Accounts
) -> Mapping[Name, dict[str, float]]:
    """What a run used for each artifact, by the names in `deepspec.usage.USED`; what it paid nothing for is left out.

    Args:
        run_id: of the run.
        names: what it tried to make.
        find: (kind, key) -> the artifact; None: it is not there.
        accounts: in the store.

    Raises:
        DeepspecError: the store does not answer.
    """
    names = list(dict.fromkeys(names))
    if not names:
        return {}
    left = [account.attempt for account in accounts.of_run(run_id)]
    found = {}
    for kind, key in names:
        artifact = find(kind, key)
        recorded = [] if artifact is None else attempts_at(artifact)
        own = [one for one in once([*recorded, *left]) if one.key == key and one.payer and one.payer.run == run_id]
        found[kind, key] = added_up(one.used for one in own)
    return {name: used for name, used in found.items() if used}


def with_cost_of_dead(record: RunRecord, making: Sequence[str] | None, store: Store) -> RunRecord:
    """The record of a dead run with what it has paid: for what it made, and for what it did not finish.

    Args:
        record: as the run left it, with what its process had used when its last stage began or ended.
        making: stage and key of what it was making then.
        store: that it may have been made in.

    Raises:
        DeepspecError: the store does not answer.
    """
    if record.store != store.backend.location:
        return record
    names = [(stage.kind, stage.key) for stage in record.stages if stage.status in MADE_OR_TRIED and stage.key]
    last = None if making is None or tuple(making) in names else (str(making[0]), str(making[1]))
    accounts = Accounts(store.backend)
    by_stage = dict(spent(record.run_id, [*names, *([last] if last else [])], store.find, accounts))
    stages = [_with_cost(stage, by_stage.get((stage.kind, stage.key))) for stage in record.stages]
    if last in by_stage:
        stages.append(_unfinished(*last, by_stage[last]))
    known = {key for _, key in by_stage}
    elsewhere = [one.attempt.used for one in accounts.of_run(record.run_id) if one.attempt.key not in known]
    noted = {name: value for name, value in record.cost.to_json().items() if name in ("cpu_seconds", *COUNTED)}
    process = added_up([noted, *([by_stage[last]] if last in by_stage else []), *elsewhere])
    paid = added_up([*by_stage.values(), *elsewhere])
    used = {name: max(process.get(name, 0.0), paid.get(name, 0.0)) for name in USED}
    cost = cost_of(used, prices_in(record.resolved_recipe))
    return record.model_copy(update={"cost": cost, "stages": tuple(stages)})


def _with_cost(stage: StageEntry, used: dict[str, float] | None) -> StageEntry:
    return stage if used is None else stage.model_copy(update={"cost": used})


def _unfinished(kind: str, key: str, used: dict[str, float]) -> StageEntry:
    seconds = used.get("seconds", 0.0)
    return StageEntry(name=kind, status="failed", seconds=seconds, kind=kind, key=key, why=_DIED, cost=dict(used))


def prices_of(recipe: object) -> Prices:
    """The prices that a recipe has; none for one of inputs alone."""
    if not isinstance(recipe, Recipe):
        return Prices()
    how = recipe.run
    return Prices(how.price_per_gpu_hour, how.price_per_cpu_hour, how.currency)


def cost_of(used: Mapping[str, float], prices: Prices) -> Cost:
    """What was used in the fields of a record, with money where there are prices."""
    cost = Cost(
        cpu_seconds=round(used.get("cpu_seconds", 0.0), 1),
        gpu_seconds=round(used.get("gpu_seconds", 0.0), 1),
        bytes_written=int(used.get("bytes_written", 0.0)),
        **{name: int(used[name]) for name in COUNTED if used.get(name)},
    )
    amount = prices.amount(used)
    if amount is None:
        return cost
    return cost.model_copy(update={"amount": round(amount, 4), "currency": prices.currency})
