"""One stream of served answers, all traffic's or a domain's: its windows, its references, and when it alarms.

A window ends with the answer that brings its rounds to `WINDOW_ROUNDS`. The first `PILOT` windows are not tested: the
spread of answers is taken from them. The first `BURN_IN` are the second reference. After an alarm against the burn-in a
new burn-in begins. After an alarm against the registered evaluation that reference is not tested any more. So a change
raises at most one alarm against each.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from math import sqrt
from typing import Literal, TypeAlias, get_args

import numpy as np
from pydantic import Field

from deepspec.evaluation.results import Interval
from deepspec.monitoring.detector import CAUTION, Scale, advanced, begun, evidence, is_alarm, smallest_drop
from deepspec.monitoring.references import Level, Registered, reweighted
from deepspec.monitoring.sums import Parts, Sums, merged
from deepspec.store.records import JsonRecord

WINDOW_ROUNDS = 1000
PILOT = 3
"""Windows that are not tested."""
BURN_IN = 20
"""Windows that are the second reference: a fifth of its error comes on top of that of ten windows' τ."""
KEPT = 60
"""Windows that are kept whole."""
ALL_TRAFFIC = "all traffic"
WITHIN = 10
"""Windows within which `smallest_drop` is said."""

Against: TypeAlias = Literal["registered", "burn_in"]
AGAINST: tuple[Against, ...] = get_args(Against)
Answer: TypeAlias = tuple[int, int, str]
"""Tokens from rounds, rounds, and the domain ("" without one)."""


class Window(JsonRecord):
    """Answers with a thousand rounds.

    Attributes:
        number: in its stream, from 1.
        until: seconds since 1970 of its last answer; None: not known.
        parts: sums by domain.
    """

    number: int
    until: float | None
    parts: Parts

    @property
    def sums(self) -> Sums:
        """Of all its answers."""
        return Sums.together(self.parts.values())


class Finding(JsonRecord):
    """What an alarm is about.

    Attributes:
        stream: which.
        against: which reference.
        window: its last window's number.
        since: the window from which acceptance seems to be lower.
        tau, tau_ci95: served since then.
        reference, reference_ci95: what it is compared with.
        parts, reference_parts: sums by domain since then, and of the burn-in; empty: not known.
    """

    stream: str
    against: Against
    window: int
    since: int
    tau: float
    tau_ci95: Interval | None
    reference: float
    reference_ci95: Interval
    parts: Parts
    reference_parts: Parts

    @property
    def drop(self) -> float:
        """The share of the reference that is missing."""
        return 1.0 - self.tau / self.reference


class StreamState(JsonRecord):
    """A stream's memory.

    Attributes:
        name: "all traffic", or the domain.
        num_windows: that have ended.
        open: answers of the window that has not.
        windows: the last ones.
        burn_in: sums by domain of the first windows; complete where `burn_in_windows` is `BURN_IN`.
        burn_in_windows: how many they are.
        log_m: of the bets against each reference that is tested; -1e308 stands for nothing.
        alarmed: whether what was registered has alarmed, and is tested no more.
    """

    name: str
    num_windows: int = 0
    open: tuple[Answer, ...] = ()
    windows: tuple[Window, ...] = ()
    burn_in: Parts = Field({})
    burn_in_windows: int = 0
    log_m: dict[Against, tuple[float, ...]] = Field({})
    alarmed: bool = False


class Stream:
    """Takes answers in, and tests each window that ends.

    Args:
        state: its memory.
        known: what was registered.

    Attributes:
        name, num_windows, burn_in_windows: as in its memory.
    """

    def __init__(self, state: StreamState, known: Registered) -> None:
        self.name = state.name
        self._known = known
        self.num_windows = state.num_windows
        self._open = list(state.open)
        self._rounds = sum(rounds for _, rounds, _ in state.open)
        self._windows = list(state.windows)
        self._burn_in, self.burn_in_windows = dict(state.burn_in), state.burn_in_windows
        self._log_m = {against: np.asarray(values) for against, values in state.log_m.items()}
        self._alarmed = state.alarmed

    def state(self) -> StreamState:
        """Its memory now."""
        return StreamState(
            name=self.name,
            num_windows=self.num_windows,
            open=tuple(self._open),
            windows=tuple(self._windows),
            burn_in=self._burn_in,
            burn_in_windows=self.burn_in_windows,
            log_m={against: tuple(np.maximum(values, -1e308).tolist()) for against, values in self._log_m.items()},
            alarmed=self._alarmed,
        )

    def take(self, answer: Answer, until: float | None = None) -> Finding | None:
        """Take in an answer; what is found, if it ends a window that alarms."""
        self._open.append(answer)
        self._rounds += answer[1]
        if self._rounds < WINDOW_ROUNDS:
            return None
        answers, self._open, self._rounds = self._open, [], 0
        return self._end(answers, until)

    def level(self, against: Against, parts: Mapping[str, Sums] | None = None) -> Level | None:
        """A reference; None where there is none (yet).

        Args:
            against: which.
            parts: whose mix of domains it is said for; None: that of the last windows.
        """
        if against == "burn_in":
            found = Sums.together(self._burn_in.values())
            measured = found.estimate() if self.burn_in_windows >= BURN_IN else None
            return None if measured is None else Level.of(measured, found.answers)
        if self.name != ALL_TRAFFIC:
            return self._known.domains.get(self.name)
        parts = self.recent(BURN_IN) if parts is None else parts
        return reweighted(self._known.domains, parts) if self._by_domain(parts) else self._known.whole

    def recent(self, count: int) -> Parts:
        """Sums by domain of the last windows."""
        return merged(window.parts for window in self._windows[-count:])

    def open_sums(self) -> Sums:
        """Of the answers whose window has not ended."""
        return Sums.of((tokens, rounds) for tokens, rounds, _ in self._open)

    def smallest_drop(self, against: Against) -> float | None:
        """The share of τ whose loss would be found within `WITHIN` windows; None where nothing is tested."""
        level, sums = self.level(against), Sums.together(self.recent(BURN_IN).values())
        if level is None or not sums.rounds or (against == "registered" and self._alarmed):
            return None
        scale = self._scale(self._bounds(level, against))
        return smallest_drop(
            margin=level.margin / level.tau,
            error=level.error / level.tau,
            spread=sqrt(scale.variance) / scale.tokens,
            answers=WITHIN * sums.answers / min(BURN_IN, len(self._windows)),
        )

    def _end(self, answers: Sequence[Answer], until: float | None) -> Finding | None:
        self.num_windows += 1
        window = Window(number=self.num_windows, until=until, parts=_parts(answers))
        tested = AGAINST if len(self._windows) >= PILOT else ()
        found = [self._finding(against, window) for against in tested if self._test(against, answers)]
        self._windows = [*self._windows, window][-KEPT:]
        if self.burn_in_windows < BURN_IN:
            self._burn_in, self.burn_in_windows = merged([self._burn_in, window.parts]), self.burn_in_windows + 1
        for one in found:
            self._log_m.pop(one.against, None)
            if one.against == "registered":
                self._alarmed = True
            else:
                self._burn_in, self.burn_in_windows = {}, 0
        return found[0] if found else None

    def _test(self, against: Against, answers: Sequence[Answer]) -> bool:
        level = None if against == "registered" and self._alarmed else self.level(against)
        if level is None:
            return False
        bounds = self._bounds(level, against, {domain for _, _, domain in answers})
        compared = [answer for answer in answers if answer[2] in bounds]
        if not compared:
            return False
        losses = np.asarray([bounds[domain] * rounds - tokens for tokens, rounds, domain in compared], dtype=np.float64)
        before = self._log_m.get(against, begun())
        self._log_m[against] = advanced(before, evidence(losses, self._scale(bounds)))
        return is_alarm(self._log_m[against])

    def _bounds(self, level: Level, against: Against, served: AbstractSet[str] = frozenset()) -> dict[str, float]:
        """The lower bound that answers of each domain are compared with; those of others are not compared."""
        parts = self.recent(BURN_IN)
        if against == "registered" and self._by_domain(parts):
            return {domain: one.tau - level.margin for domain, one in self._known.domains.items()}
        return dict.fromkeys(parts.keys() | served, level.tau - level.margin)

    def _by_domain(self, parts: Mapping[str, Sums]) -> bool:
        """Whether what was registered is reweighted: answers of measured domains are among these."""
        return self.name == ALL_TRAFFIC and bool(parts.keys() & self._known.domains.keys())

    def _scale(self, bounds: Mapping[str, float]) -> Scale:
        """What losses of the next window are measured by: the last ones' spread, and some more."""
        parts = {domain: sums for domain, sums in self.recent(BURN_IN).items() if domain in bounds}
        answers = sum(sums.answers for sums in parts.values())
        squares = sum(sums.squared_losses(bounds[domain]) for domain, sums in parts.items())
        tokens = sum(bounds[domain] * sums.rounds for domain, sums in parts.items())
        # A draft that accepts nothing has no spread; a hundredth of the tokens is less than any other has.
        least = (0.01 * tokens / answers) ** 2
        variance = max(squares / answers, least) * (1.0 + CAUTION / sqrt(answers))
        return Scale(tokens / answers, variance)

    def _finding(self, against: Against, window: Window) -> Finding:
        windows = [*self._windows, window]
        reference = self.level(against)
        since = _since(windows, reference.tau if reference is not None else 1.0)
        parts = merged(one.parts for one in windows if one.number >= since)
        level = self.level(against, parts) or reference
        if level is None:
            raise ValueError("an alarm without a reference")
        if against == "registered" and self._by_domain(parts):
            parts = {domain: sums for domain, sums in parts.items() if domain in self._known.domains}
        sums = Sums.together(parts.values())
        measured = sums.estimate()
        return Finding(
            stream=self.name,
            against=against,
            window=window.number,
            since=since,
            tau=sums.tokens / sums.rounds,
            tau_ci95=None if measured is None else measured.interval(),
            reference=level.tau,
            reference_ci95=level.estimate.interval(),
            parts=parts,
            reference_parts=self._burn_in if against == "burn_in" else {},
        )


def _parts(answers: Iterable[Answer]) -> Parts:
    found: dict[str, list[tuple[int, int]]] = {}
    for tokens, rounds, domain in answers:
        found.setdefault(domain, []).append((tokens, rounds))
    return {domain: Sums.of(of_domain) for domain, of_domain in found.items()}


def _since(windows: Sequence[Window], reference: float) -> int:
    """The window from which τ seems to be lower: where the sum of what is missing, less 5 %, was lowest."""
    best, since, total = -np.inf, windows[-1].number, 0.0
    for window in reversed(windows):
        sums = window.sums
        total += 0.95 * reference * sums.rounds - sums.tokens
        if total > best:
            best, since = total, window.number
    return since
