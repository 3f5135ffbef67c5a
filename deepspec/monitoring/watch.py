"""One look at what a draft has served: answers in, windows tested, alarms with their causes, a report.

    watch = Watch(memory)
    watch.read_log(file)          or   watch.look_at(url)
    write(backend, watch.memory())

A source that is down, empty, broken off or another target's says so in the report, and nothing of it is tested.
"""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from deepspec.errors import TransientError
from deepspec.monitoring.causes import ADVICE, Change, causes
from deepspec.monitoring.counted import Stretch, look, server_says
from deepspec.monitoring.log import LogReader
from deepspec.monitoring.memory import Alarm, Memory
from deepspec.monitoring.report import Report, report_of
from deepspec.monitoring.served import Says, ServedAnswer
from deepspec.monitoring.streams import Finding
from deepspec.monitoring.traffic import Streams

ANOTHER_TARGET = "another target's"
CLOCK = "of a clock that jumped; counted, without its time"
_BACK_SECONDS = 3600.0
_AHEAD_SECONDS = 86400.0
_MOST_SEEN = 32


class Watch:
    """The monitor of one draft, for one or many looks.

    Args:
        memory: what is remembered of it.
        served_model: what clients call its target; None: what was read first.
        now: seconds since 1970; None: this machine's clock.
    """

    def __init__(self, memory: Memory, *, served_model: str | None = None, now: float | None = None) -> None:
        self._memory = memory
        self._streams = Streams(memory.registered, memory.streams)
        self._now = now
        self._served_model = served_model
        self._rows = self._counted = 0
        self._not_counted: Counter[str] = Counter()
        self._said: list[str] = []
        self._new: list[Alarm] = []
        if served_model is not None:
            self._note("target", memory.says.target, served_model)
            self._remember(says=memory.says.model_copy(update={"target": served_model}))

    def memory(self) -> Memory:
        """What is to be remembered."""
        return self._memory.model_copy(update={"streams": self._streams.states(), "looked": self._when()})

    def report(self) -> Report:
        """What was found, since the last report."""
        found = report_of(
            self.memory(),
            list(self._streams),
            rows=self._rows,
            answers=self._counted,
            not_counted=dict(self._not_counted.most_common()),
            said=tuple(self._said),
            new=tuple(self._new),
        )
        self._rows = self._counted = 0
        self._not_counted, self._said, self._new = Counter(), [], []
        return found

    def read_log(self, file: Path) -> None:
        """Take in the new rows of a log.

        Raises:
            BadArgument: it cannot be read.
        """
        reader = LogReader(file, self._memory.position)
        for answer in reader.answers():
            self.take(answer)
        self._remember(position=reader.position)
        self._rows += reader.rows
        self._not_counted.update(reader.refused)
        self._said += reader.said
        others = self._not_counted[ANOTHER_TARGET]
        if others and not self._counted:
            self._said.append(self._of_another_target())

    def look_at(self, url: str, api_key: str | None = None) -> None:
        """Take in what a server has counted since the last look; a server that is down is said, and no error.

        Raises:
            DataError: it refuses the key, or is no such server.
        """
        try:
            says = server_says(url, api_key)
            if self._is_other(says):
                self._not_counted[ANOTHER_TARGET] += 1
                self._said.append(self._of_another_target())
                return
            found = look(url, self._memory.counters, api_key)
        except TransientError as error:
            self._said.append(f"The server cannot be reached: {error.what}")
            return
        self.take_stretch(found, says)

    def take_stretch(self, found: Stretch, says: Says) -> None:
        """Take in what counters say."""
        self._remember(counters=found.counters)
        self._said += found.said
        if found.rounds is not None and found.tokens is not None:
            self._rows += 1
            self.take(ServedAnswer(found.tokens, found.rounds, None, self._clock(), says))

    def take(self, answer: ServedAnswer) -> None:
        """Take in one answer."""
        if self._is_other(answer.says):
            self._not_counted[ANOTHER_TARGET] += 1
            return
        self._hear(answer.says)
        self._counted += 1
        for finding in self._streams.take(answer.tokens, answer.rounds, answer.label, self._time_of(answer)):
            self._alarm(finding)

    def _is_other(self, says: Says) -> bool:
        ours = self._memory.says.target
        return ours is not None and says.target is not None and says.target != ours

    def _of_another_target(self) -> str:
        return (
            f"What answers is not {self._memory.says.target}: nothing of it was counted. If the target has another name"
            " now, give it with --served-model."
        )

    def _hear(self, says: Says) -> None:
        """Note what the server says otherwise than before."""
        before = self._memory.says
        if says == before or (says.revision is None and says.engine is None and says.target in (None, before.target)):
            return
        self._note("target", before.revision, says.revision)
        self._note("engine", before.engine, says.engine)
        known = {name: value for name in Says.model_fields if (value := getattr(says, name)) is not None}
        self._remember(says=before.model_copy(update=known))

    def _note(self, what: str, before: str | None, after: str | None) -> None:
        """A change, the first time that something is said; replicas of two versions would tell it all the time."""
        if after is None or after == before:
            return
        seen = self._memory.seen.get(what, ())
        if before is not None and after not in seen:
            change = Change(
                what="target" if what == "target" else "engine",
                before=before,
                after=after,
                windows={stream.name: stream.num_windows for stream in self._streams},
            )
            self._remember(changes=(*self._memory.changes, change)[-_MOST_SEEN:])
        values = tuple(value for value in (before, after) if value is not None and value not in seen)
        self._remember(seen={**self._memory.seen, what: (*seen, *values)[-_MOST_SEEN:]})

    def _time_of(self, answer: ServedAnswer) -> float | None:
        """The time of an answer, unless a clock has jumped."""
        if answer.time is None:
            return None
        last = self._memory.clock
        if answer.time > self._clock() + _AHEAD_SECONDS or (last is not None and answer.time < last - _BACK_SECONDS):
            self._not_counted[CLOCK] += 1
            return None
        if last is None or answer.time > last:
            self._remember(clock=answer.time)
        return answer.time

    def _alarm(self, finding: Finding) -> None:
        found = causes(finding, self._memory.changes)
        alarm = Alarm(
            number=len(self._memory.alarms) + 1,
            when=self._when(),
            finding=finding,
            causes=found,
            advice=ADVICE[found[0].name],
        )
        self._new.append(alarm)
        self._remember(alarms=(*self._memory.alarms, alarm))

    def _remember(self, **fields: object) -> None:
        self._memory = self._memory.model_copy(update=fields)

    def _clock(self) -> float:
        return datetime.now(UTC).timestamp() if self._now is None else self._now

    def _when(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds")
