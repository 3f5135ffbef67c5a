"""The dashboard's feed, `dashboard.json`: what the page shows, as values for other pages and scripts.

    Feed ─┬─ models ─┬─ champion ── measured, gates, lineage, cost
          │          ├─ log          promotions and roll backs
          │          └─ nights       one for each run of the model
          ├─ costs                   by month and model
          ├─ followers               which host holds which draft
          └─ running                 runs that are alive

Times are ISO 8601 in UTC. A field that is not there was not measured, or does not apply. No person is named: who
promoted a draft stands in the promotion log (`deepspec models history`). Not here: collecting it
(deepspec/dashboard/), and the page (page.py).
"""

from typing import Any, Literal, TypeAlias

from pydantic import Field

from deepspec.evaluation.results import Interval, Number
from deepspec.record import RunStatus
from deepspec.store.records import JsonRecord

FORMAT = 1
"""Raised when a feed is written that an older reader would not read rightly."""

FollowerState: TypeAlias = Literal["healthy", "unhealthy", "lost", "stopped"]


class Measured(JsonRecord):
    """Acceptance and speed in one place.

    Attributes:
        tau, tau_ci95: tokens per round, bonus included, and its 95 % interval over prompts.
        speedup, speedup_ci95: tokens per second against plain decoding.
        prompts: how many.
    """

    tau: Number | None = None
    tau_ci95: Interval | None = None
    speedup: Number | None = None
    speedup_ci95: Interval | None = None
    prompts: int | None = None


class Spent(JsonRecord):
    """What something used.

    Attributes:
        gpu_seconds, cpu_seconds: of all GPUs, of all processes.
        bytes_written: to the store.
        requests: to object storage.
        amounts: of money, by currency; empty without prices.
    """

    gpu_seconds: Number = 0.0
    cpu_seconds: Number = 0.0
    bytes_written: int = 0
    requests: int = 0
    amounts: dict[str, Number] = Field({})


class Night(JsonRecord):
    """One run of one model.

    Attributes:
        run_id, recipe: the run and its recipe.
        night: the deployment that started it; None: a person did.
        began, ended: when.
        status: how it ended.
        stage: that failed.
        version: that its draft is registered as.
        sentence: the verdict in words; of a run without one what ended it, or what there is to know of it.
        measured: of the draft that it made: `mean` (over benchmarks), `gate` (the gate split), `domain/<name>`,
            `benchmark/<name>`.
        spent: by the run.
        making: by all that its draft was made from, whichever runs paid for it.
        registration: key of the artifact `register`, where the draft's lineage begins.
    """

    run_id: str
    recipe: str
    night: str | None = None
    began: str
    ended: str
    status: RunStatus
    stage: str | None = None
    version: str | None = None
    sentence: str | None = None
    measured: dict[str, Measured] = Field({})
    spent: Spent
    making: Spent | None = None
    registration: str | None = None


class LogEntry(JsonRecord):
    """One entry of the promotion log.

    Attributes:
        number: its place.
        kind: what was done.
        version, digest: who is champion from here on.
        from_version: who was before.
        when: it was written.
        run_id: of the run that promoted; None: a person asked for it.
        reason: in the asker's words; empty where a run promoted.
        sentence: the verdict in words.
    """

    number: int
    kind: Literal["promote", "rollback", "unblock"]
    version: str | None = None
    digest: str
    from_version: str | None = None
    when: str
    run_id: str | None = None
    reason: str = ""
    sentence: str | None = None


class GateAnswer(JsonRecord):
    """What one gate said.

    Attributes:
        gate: its name.
        answer: in a word.
        sentence: with both numbers.
    """

    gate: str
    answer: Literal["passed", "failed", "not known"]
    sentence: str


class Gain(JsonRecord):
    """A champion against the one before it, on the same prompts.

    Attributes:
        tau: of the champion before.
        difference, ci95: in τ, and its 95 % interval, paired by prompt.
    """

    tau: Number | None = None
    difference: Number | None = None
    ci95: Interval | None = None


class Ancestor(JsonRecord):
    """An artifact in a draft's lineage.

    Attributes:
        kind, key: its name in the store; of what came from outside the kind is `target`, `source` …
        made: when; None: not known here.
        counts: rows, conversations, tokens, bytes, as far as they were counted.
        parents: places of those it was made from, in the same list.
        in_store: whether this store has it.
    """

    kind: str
    key: str
    made: str | None = None
    counts: dict[str, int] = Field({})
    parents: tuple[int, ...] = ()
    in_store: bool = True


class Champion(JsonRecord):
    """The draft that serves.

    Attributes:
        entry: number of the log's entry that made it champion.
        by: how it became champion.
        version, digest, artifact: in the registry, and in the store (`<kind>/<key>`).
        since: when it became champion.
        run_id: of the run that promoted it; None: a person did.
        reason: in that person's words.
        sentence: the verdict that it was first promoted under.
        gates: each answer in it.
        measured: by the same names as of a night.
        gains: by the same names, against the champion before.
        spent: on all that it was made from, killed attempts included.
        lineage: the version first, then what it was made from and measured by.
    """

    entry: int
    by: Literal["promote", "rollback"]
    version: str | None = None
    digest: str
    artifact: str
    since: str
    run_id: str | None = None
    reason: str = ""
    sentence: str | None = None
    gates: tuple[GateAnswer, ...] = ()
    measured: dict[str, Measured] = Field({})
    gains: dict[str, Gain] = Field({})
    spent: Spent | None = None
    lineage: tuple[Ancestor, ...] = ()


class Model(JsonRecord):
    """A registered model.

    Attributes:
        name: registered.
        target: the last part of the target's path; None: not known.
        algorithm: of its newest draft.
        champion: None: there is none yet.
        log: oldest first; the entries of the span, and that of the champion.
        log_flaw: why the promotion log cannot be read; then log and champion are not known.
        nights: oldest first.
    """

    name: str
    target: str | None = None
    algorithm: str | None = None
    champion: Champion | None = None
    log: tuple[LogEntry, ...] = ()
    log_flaw: str | None = None
    nights: tuple[Night, ...] = ()


class MonthCost(JsonRecord):
    """What the runs of a model used in a month.

    Attributes:
        month: as in 2026-12.
        model: registered name.
        runs: how many.
        spent: by all of them.
    """

    month: str
    model: str
    runs: int
    spent: Spent


class FollowerEntry(JsonRecord):
    """A host that follows a champion.

    Attributes:
        host, place: the machine, and the last part of its directory there.
        model, version, digest: what it holds; empty before its first pull.
        since: when the draft was put in place.
        seen: when it was heard of last.
        state: how it is.
        is_champion: whether that is the champion; None: not known.
        behind: how many promotions and roll backs it has missed; None: not known.
        trouble: what is wrong, in words.
    """

    host: str
    place: str
    model: str
    version: str
    digest: str
    since: str
    seen: str
    state: FollowerState
    is_champion: bool | None = None
    behind: int | None = None
    trouble: str = ""


class RunningRun(JsonRecord):
    """A run that is alive.

    Attributes:
        run_id: its id.
        models: that it is about.
        began: when.
        stages: that it makes just now.
    """

    run_id: str
    models: tuple[str, ...] = ()
    began: str | None = None
    stages: tuple[str, ...] = ()


class Feed(JsonRecord):
    """All of it.

    Attributes:
        format: of this document.
        deepspec: version that wrote it.
        written: when.
        since: nights before this are left out.
        models: by name.
        costs: newest month first.
        followers: by model and host; None: they could not be read.
        running: oldest first; None: it could not be found out.
        runs: ids of all runs that were read, those about no model too.
    """

    format: int = FORMAT
    deepspec: str
    written: str
    since: str
    models: tuple[Model, ...] = ()
    costs: tuple[MonthCost, ...] = ()
    followers: tuple[FollowerEntry, ...] | None = ()
    running: tuple[RunningRun, ...] | None = ()
    runs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The feed as plain JSON values; what is not known is left out."""
        return self.model_dump(mode="json", exclude_none=True)
