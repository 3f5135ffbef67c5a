"""What a run itself used for each of its artifacts: of those it made, and of those it did not finish.

What a run took over from one that died is that one's, wherever it stands now: in an account, or in a manifest.
"""

from collections.abc import Callable, Mapping, Sequence

from deepspec.cost.accounts import Accounts
from deepspec.cost.attempts import attempts_at, once
from deepspec.cost.prices import Prices, prices_in
from deepspec.evaluation.results import Number
from deepspec.recipe import Recipe
from deepspec.record import Cost, RunRecord, StageEntry
from deepspec.store import Artifact, Store
from deepspec.usage import COUNTED, USED, added_up

_MADE_OR_TRIED = ("ran", "rebuilt", "failed")
"""Status of a stage that a run may have paid for."""

_ENDED = "the run ended while this was made"

Name = tuple[str, str]
"""Kind and key of an artifact."""


def with_costs(
    stages: Sequence[StageEntry],
    making: Name | None,
    *,
    run_id: str,
    find: Callable[[str, str], Artifact | None],
    accounts: Accounts,
) -> tuple[StageEntry, ...]:
    """Stages with what the run itself used for each; last, the one that it was making when it ended, if it paid for it.

    Args:
        stages: as the run has recorded them.
        making: kind and key of the artifact that it was making; None: none.
        run_id: of the run.
        find: (kind, key) -> the artifact; None: it is not there.
        accounts: in the store.

    Raises:
        DeepspecError: the store does not answer.
    """
    names = [(stage.kind, stage.key) if stage.status in _MADE_OR_TRIED and stage.key else None for stage in stages]
    last = None if making in names else making
    wanted = {name for name in (*names, last) if name is not None}
    left = [account.attempt for account in accounts.of_run(run_id)] if wanted else []
    costs: dict[Name, dict[str, Number]] = {}
    for kind, key in wanted:
        artifact = find(kind, key)
        recorded = [] if artifact is None else attempts_at(artifact)
        own = [one for one in once([*recorded, *left]) if one.key == key and one.payer and one.payer.run == run_id]
        costs[kind, key] = added_up(one.used for one in own)
    found = [
        stage.model_copy(update={"cost": costs[name]}) if name is not None and costs[name] else stage
        for stage, name in zip(stages, names, strict=True)
    ]
    return (*found, *([_unfinished(last, costs[last])] if last is not None and costs[last] else []))


def with_cost_of_dead(record: RunRecord, making: Sequence[str] | None, store: Store) -> RunRecord:
    """The record of a dead run with what it has paid: for what it made, and for what it did not finish.

    Args:
        record: as the run left it, with what its process had used when its last stage began or ended.
        making: kind and key of the artifact that it was making then.
        store: that it may have been made in.

    Raises:
        DeepspecError: the store does not answer.
    """
    if record.store != store.backend.location:
        return record
    name = None if making is None else (str(making[0]), str(making[1]))
    accounts = Accounts(store.backend)
    stages = with_costs(record.stages, name, run_id=record.run_id, find=store.find, accounts=accounts)
    known = {stage.key for stage in stages if stage.cost}
    elsewhere = [one.attempt.used for one in accounts.of_run(record.run_id) if one.attempt.key not in known]
    since = [stage.cost or {} for stage in stages[len(record.stages) :]]
    noted = {name: value for name, value in record.cost.to_json().items() if name in ("cpu_seconds", *COUNTED)}
    process = added_up([noted, *since, *elsewhere])
    paid = added_up([*(stage.cost for stage in stages if stage.cost), *elsewhere])
    used = {name: max(process.get(name, 0.0), paid.get(name, 0.0)) for name in USED}
    cost = cost_of(used, prices_in(record.resolved_recipe))
    return record.model_copy(update={"cost": cost, "stages": stages})


def _unfinished(name: Name, used: dict[str, Number]) -> StageEntry:
    kind, key = name
    seconds = used.get("seconds", 0.0)
    return StageEntry(name=kind, status="failed", seconds=seconds, kind=kind, key=key, why=_ENDED, cost=used)


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
