"""What a look at served acceptance comes to, for people and scripts."""

from collections.abc import Sequence

from deepspec.evaluation.results import Interval
from deepspec.monitoring.memory import Alarm, Memory
from deepspec.monitoring.references import Level
from deepspec.monitoring.streams import AGAINST, BURN_IN, WITHIN, Against, Stream
from deepspec.monitoring.sums import Sums
from deepspec.store.records import JsonRecord


class ReferenceReport(JsonRecord):
    """A reference of a stream.

    Attributes:
        tau, tau_ci95: what it is.
        prompts: that it was measured on.
        smallest_drop: the share of τ whose loss would be found within ten windows, with 95 %; None: it is not tested.
    """

    tau: float
    tau_ci95: Interval
    prompts: int
    smallest_drop: float | None


class StreamReport(JsonRecord):
    """One stream.

    Attributes:
        name: "all traffic", or the domain.
        windows: of 1,000 rounds, that have ended.
        tau, tau_ci95: of the last ten of them, and of what came since; None: nothing was served, or too little.
        rounds: behind it.
        registered: the registered evaluation, reweighted to the mix that is served; None: it has no such domain.
        burn_in: the first windows that were served; None: they are not over.
        burn_in_windows: how many of them there are.
    """

    name: str
    windows: int
    tau: float | None
    tau_ci95: Interval | None
    rounds: int
    registered: ReferenceReport | None
    burn_in: ReferenceReport | None
    burn_in_windows: int


class Report(JsonRecord):
    """One look.

    Attributes:
        model, version, draft, evaluation: what is watched, and what it is compared with, as in `Memory`.
        rows: that were read: of a log, or of counters.
        answers: of these, that count.
        not_counted: reason -> rows that don't, or that count without their time.
        said: what is to be known of the source.
        streams: all traffic first.
        alarms: of this look.
        earlier_alarms: how many there were before.
        sentence: the whole, in words.
    """

    model: str
    version: str | None
    draft: str
    evaluation: str | None
    rows: int
    answers: int
    not_counted: dict[str, int]
    said: tuple[str, ...]
    streams: tuple[StreamReport, ...]
    alarms: tuple[Alarm, ...]
    earlier_alarms: int
    sentence: str


def report_of(
    memory: Memory,
    streams: Sequence[Stream],
    *,
    rows: int,
    answers: int,
    not_counted: dict[str, int],
    said: tuple[str, ...],
    new: tuple[Alarm, ...],
) -> Report:
    """The report of a look; arguments as the fields of `Report`."""
    found = tuple(_stream(stream) for stream in streams)
    return Report(
        model=memory.model,
        version=memory.version,
        draft=memory.draft,
        evaluation=memory.evaluation,
        rows=rows,
        answers=answers,
        not_counted=not_counted,
        said=said,
        streams=found,
        alarms=new,
        earlier_alarms=len(memory.alarms) - len(new),
        sentence=_sentence(found, new, len(memory.alarms) - len(new)),
    )


def alarm_sentence(alarm: Alarm) -> str:
    """An alarm in words."""
    finding = alarm.finding
    of = {"registered": "registered", "burn_in": "served at first"}[finding.against]
    low, high = finding.reference_ci95
    served = "" if finding.tau_ci95 is None else f" ({finding.tau_ci95[0]:.3f} to {finding.tau_ci95[1]:.3f})"
    return (
        f"Alarm {alarm.number}: τ of {finding.stream} is {finding.tau:.3f}{served} since window {finding.since}, and"
        f" {finding.reference:.3f} ({low:.3f} to {high:.3f}) was {of}: {finding.drop:.0%} less."
    )


def _stream(stream: Stream) -> StreamReport:
    sums = Sums.together([*stream.recent(WITHIN).values(), stream.open_sums()])
    measured = sums.estimate()
    levels = {against: stream.level(against) for against in AGAINST}
    found = {against: _reference(stream, against, level) for against, level in levels.items()}
    return StreamReport(
        name=stream.name,
        windows=stream.num_windows,
        tau=sums.tau,
        tau_ci95=None if measured is None else measured.interval(),
        rounds=sums.rounds,
        registered=found["registered"],
        burn_in=found["burn_in"],
        burn_in_windows=stream.burn_in_windows,
    )


def _reference(stream: Stream, against: Against, level: Level | None) -> ReferenceReport | None:
    if level is None:
        return None
    return ReferenceReport(
        tau=level.tau,
        tau_ci95=level.estimate.interval(),
        prompts=level.prompts,
        smallest_drop=stream.smallest_drop(against),
    )


def _sentence(streams: Sequence[StreamReport], new: Sequence[Alarm], earlier: int) -> str:
    if new:
        return " ".join(alarm_sentence(alarm) for alarm in new)
    whole = streams[0]
    if whole.tau is None:
        return "Nothing was counted yet."
    none = f"No new alarm ({earlier} earlier)" if earlier else "No alarm"
    if whole.burn_in_windows < BURN_IN:
        return f"{none}. The burn-in has {whole.burn_in_windows} of {BURN_IN} windows."
    return f"{none}: τ of {whole.name} is {whole.tau:.3f}."
