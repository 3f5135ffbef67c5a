"""All streams of one served draft: every answer counts in all traffic, and in its domain where it is labelled."""

from collections.abc import Iterator, Mapping

from deepspec.monitoring.references import OTHER, Registered
from deepspec.monitoring.streams import ALL_TRAFFIC, Finding, Stream, StreamState

MOST_DOMAINS = 16
"""Streams of domains; answers of further ones are counted to `OTHER`."""
_LONGEST_NAME = 40


class Streams:
    """The streams.

    Args:
        known: what was registered.
        states: of the streams that there are, by name.
    """

    def __init__(self, known: Registered, states: Mapping[str, StreamState] | None = None) -> None:
        self._known = known
        states = states or {}
        self._streams = {name: Stream(state, known) for name, state in states.items()}
        self._stream(ALL_TRAFFIC)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())

    def states(self) -> dict[str, StreamState]:
        """Their memory."""
        return {name: stream.state() for name, stream in self._streams.items()}

    def take(self, tokens: int, rounds: int, label: str | None, until: float | None = None) -> list[Finding]:
        """Take in an answer.

        Args:
            tokens: that came from rounds.
            rounds: at least one.
            label: its domain, or a benchmark's name; None: it has none.
            until: seconds since 1970.

        Returns:
            What alarms.
        """
        domain = self._domain(label)
        found = [self._stream(ALL_TRAFFIC).take((tokens, rounds, domain), until)]
        if domain:
            found.append(self._stream(domain).take((tokens, rounds, domain), until))
        return [one for one in found if one is not None]

    def _domain(self, label: str | None) -> str:
        if not label:
            return ""
        domain = self._known.aliases.get(label, label)
        if domain in self._streams and domain != ALL_TRAFFIC:
            return domain
        plain = len(domain) <= _LONGEST_NAME and domain.isprintable() and domain != ALL_TRAFFIC
        return domain if plain and len(self._streams) <= MOST_DOMAINS else OTHER

    def _stream(self, name: str) -> Stream:
        if name not in self._streams:
            self._streams[name] = Stream(StreamState(name=name), self._known)
        return self._streams[name]
