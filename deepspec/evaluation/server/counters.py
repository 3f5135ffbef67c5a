"""Acceptance by a server's own metrics: the difference between two readings of its counters.

A server counts all clients' requests from its start on. Only the difference over a time without other clients measures
what we asked; so counters that fell, or moved while none of our requests ran, end in an error.

What the engines count, vLLM 0.32.0 as it ran on a CPU, SGLang as its source has it:

* vLLM (V1): `vllm:spec_decode_num_drafts` (rounds in which something was proposed), `…_num_draft_tokens`,
  `…_num_accepted_tokens`, `…_num_accepted_tokens_per_pos{position}`, each per engine of a server. Accepted tokens are
  counted before an answer is cut at its end: those behind an accepted stop token count, and so does the bonus token
  that `1 + accepted / drafts` adds to that round. In process neither does.
* SGLang: `sglang:spec_verify_calls` (rounds), and the tokens and number of *finished* requests
  (`sglang:generation_tokens`, `sglang:num_requests`). Nothing is said per position, nor how much was proposed.
  `sglang:spec_accept_length` and `…_rate` are averages over a recent moment: no difference of them means anything, and
  a server that has only these is not measured. It has metrics only with `--enable-metrics`.

Names end in `_total` or don't, by the age of the client library. Counters of several engines are summed.

Legend: K draft positions. Rates at k are at 1-based position k, list index k-1.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

from deepspec.data.responses.endpoint_exchange import KEY_VARIABLE
from deepspec.errors import DataError, DeepspecError, MeasurementError, TransientError
from deepspec.evaluation.server.results import ServedAcceptance
from deepspec.network import PLAIN, UnusableReply, heeds_proxies, received

if TYPE_CHECKING:
    import httpx

_PER_POSITION = "accepted_at_"
_COUNTERS: Mapping[str, str] = MappingProxyType(
    {
        "vllm:spec_decode_num_drafts": "rounds",
        "vllm:spec_decode_num_draft_tokens": "proposed",
        "vllm:spec_decode_num_accepted_tokens": "accepted",
        "vllm:spec_decode_num_accepted_tokens_per_pos": _PER_POSITION,
        "vllm:generation_tokens": "tokens",
        "vllm:request_success": "answers",
        "sglang:spec_verify_calls": "rounds",
        "sglang:generation_tokens": "tokens",
        "sglang:num_requests": "answers",
    }
)
_AVERAGES = ("sglang:spec_accept_length", "sglang:spec_accept_rate")
_PROCESS_START = "process_start_time_seconds"
_ATTEMPTS = 5
_SECONDS = 10.0
_MAX_BYTES = 16 << 20
_MAX_POSITIONS = 1024
_MAX_COUNT = 2.0**63

_NO_METRICS = "the server has no /metrics; SGLang has them with --enable-metrics"
NO_COUNTERS = (
    "the server has no counters of speculative decoding: it decodes without a draft, or its statistics are switched off"
)
_ONLY_AVERAGES = (
    "the server offers averages only (sglang:spec_accept_length), of which no difference can be taken; newer SGLang"
    " counts sglang:spec_verify_calls_total"
)
NO_ROUNDS = "the server counted no round of speculative decoding"


@dataclass(frozen=True)
class Reading:
    """A server's counters at one moment.

    Attributes:
        counts: rounds, proposed, accepted, accepted_at_0 … (0-based, as the server has it), tokens, answers; what it
            has of them, summed over its engines. A counter that nothing has moved yet may be missing.
        started: when counters and process began, by name, in seconds since 1970; what the server says of it.
        reason: why there is no acceptance in it; None if there is.
    """

    counts: Mapping[str, int]
    started: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Counted:
    """What a server did between two readings; None is not counted.

    Attributes:
        rounds: of speculative decoding.
        proposed: tokens that the draft proposed.
        accepted: of these.
        accepted_at: rounds in which positions 1 … k were accepted, for k = 1 … K; empty: not counted.
        tokens: generated; the first of each answer comes from its prefill.
        answers: finished.
    """

    rounds: int | None
    proposed: int | None
    accepted: int | None
    accepted_at: tuple[int, ...]
    tokens: int | None
    answers: int | None


def parse(text: str) -> Reading:
    """The counters in a reply to `GET /metrics`.

    Args:
        text: in Prometheus' text format.

    Raises:
        DataError: it is no such text, or a counter is no number.
    """
    from prometheus_client.parser import text_string_to_metric_families

    counts: dict[str, int] = {}
    started: dict[str, float] = {}
    averages = False
    try:
        for metric in text_string_to_metric_families(text):
            averages = averages or metric.name in _AVERAGES
            kind = _COUNTERS.get(metric.name.removesuffix("_total"))
            if kind is not None and kind != _PER_POSITION:
                counts.setdefault(kind, 0)  # declared, and not moved yet
            for sample in metric.samples:
                _add(sample.name, sample.labels, sample.value, counts, started)
    except ValueError as error:
        raise DataError(
            f"GET /metrics returned no Prometheus metrics ({str(error)[:80]}).",
            remedy="Name the base URL of the server itself.",
        ) from error
    nothing = _ONLY_AVERAGES if averages else NO_COUNTERS
    return Reading(counts, started, None if "rounds" in counts else nothing)


def difference(before: Reading, after: Reading) -> Counted:
    """What happened between two readings of one server.

    Raises:
        MeasurementError: a counter fell, vanished or was reset in between.
    """
    restarted = [name for name, since in before.started.items() if after.started.get(name, since) != since]
    fallen = [name for name, count in before.counts.items() if after.counts.get(name, -1) < count]
    if restarted or fallen:
        raise MeasurementError(
            f"The server's counters were reset during the measurement ({', '.join(fallen or restarted)}):"
            " it was restarted, or several servers answer at this address.",
            remedy="Measure one server at its own address, while it keeps running.",
        )
    moved = {name: count - before.counts.get(name, 0) for name, count in after.counts.items()}
    positions = sum(name.startswith(_PER_POSITION) for name in moved)
    return Counted(
        rounds=moved.get("rounds"),
        proposed=moved.get("proposed"),
        accepted=moved.get("accepted"),
        accepted_at=tuple(moved.get(f"{_PER_POSITION}{position}", 0) for position in range(positions)),
        tokens=moved.get("tokens"),
        answers=moved.get("answers"),
    )


def acceptance(counted: Counted) -> ServedAcceptance:
    """Acceptance, as far as the server counts it."""
    rounds, accepted, proposed = counted.rounds or 0, counted.accepted, counted.proposed
    from_tokens = None
    if counted.tokens is not None and counted.answers is not None:
        from_tokens = _ratio(counted.tokens - counted.answers, rounds)
    from_accepted = _ratio(rounds + accepted, rounds) if accepted is not None else None
    trials = (rounds, *counted.accepted_at[:-1]) if counted.accepted_at else ()
    verified = None if accepted is None or proposed is None else _ratio(rounds + accepted, rounds + proposed)
    return ServedAcceptance(
        tau_from_tokens=from_tokens,
        tau_from_tokens_ci95=None,
        tau_from_tokens_answers=None if from_tokens is None else counted.answers,
        counted_by="server" if rounds else None,
        tau=from_tokens if accepted is None else from_accepted,
        tau_ci95=None,
        conditional_acceptance=tuple(_ratio(at, of) for at, of in zip(counted.accepted_at, trials, strict=True)),
        conditional_trials=trials,
        prefix_acceptance=tuple(_ratio(at, rounds) for at in counted.accepted_at),
        prefix_trials=(rounds,) * len(counted.accepted_at),
        verify_rate=verified,
        mean_proposed=_ratio(proposed, rounds) if proposed is not None else None,
        rounds=counted.rounds,
        proposed=proposed,
        accepted=accepted,
        not_measured=None if rounds else NO_ROUNDS,
    )


def not_measured(reason: str) -> ServedAcceptance:
    """What `acceptance` returns, where there is none: everything None or empty, and why."""
    nothing = acceptance(Counted(None, None, None, (), None, None))
    return nothing.model_copy(update={"not_measured": reason})


class ServerMetrics:
    """Reads one server's counters; a context.

    Args:
        url: base URL, without credentials.
        api_key: sent as bearer token; goes into no message.
    """

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self._url = url
        self._api_key = api_key
        self._client: httpx.Client

    def __enter__(self) -> Self:
        import httpx

        headers = {"User-Agent": "deepspec", "Accept": "text/plain", **PLAIN}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        # Both engines mount their metrics as an application of its own, which lies behind a redirect to /metrics/.
        self._client = httpx.Client(
            trust_env=heeds_proxies(self._url, where=self._url),
            headers=headers,
            timeout=_SECONDS,
            follow_redirects=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def read(self) -> Reading:
        """The counters now.

        Raises:
            DataError: the server refuses the key, or says something else there.
            TransientError: it does not answer, time and again.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        again = Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.5, max=_SECONDS),
            reraise=True,
        )
        return again(self._read)

    def read_or_why_not(self) -> Reading | DeepspecError:
        """The counters now; or why there are none, which matters only if replies do not say their rounds."""
        try:
            return self.read()
        except (DataError, TransientError) as error:
            return error

    def _read(self) -> Reading:
        import httpx

        try:
            with self._client.stream("GET", f"{self._url}/metrics") as coming:
                reply = received(coming, _MAX_BYTES, _SECONDS)
        except UnusableReply as error:
            raise DataError(
                f"GET /metrics returned a reply that cannot be used: {error}.",
                where=self._url,
                remedy="Name the base URL of the server itself.",
            ) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._no_answer(type(error).__name__) from error
        if reply.status_code in (401, 403):
            raise DataError(
                f"GET /metrics failed: the server refuses the key (HTTP {reply.status_code}).",
                where=self._url,
                remedy=f"Set the environment variable {KEY_VARIABLE}.",
            )
        if reply.status_code == 404:
            return Reading({}, reason=_NO_METRICS)
        if reply.status_code != 200:
            raise self._no_answer(f"HTTP {reply.status_code}")
        try:
            return parse(reply.text)
        except DataError as error:
            error.where = self._url
            raise

    def _no_answer(self, words: str) -> TransientError:
        return TransientError(f"GET /metrics failed ({words}).", where=self._url, remedy="Check that it runs.")


def idle_reading(read: Callable[[], Reading], *, idle_seconds: float, limit_seconds: float) -> Reading:
    """The counters, once they stand still: engines write them down a little after they have answered.

    Args:
        read: e.g. `ServerMetrics.read`.
        idle_seconds: how long they must not have moved.
        limit_seconds: how long to wait for that.

    Raises:
        MeasurementError: they go on moving, while nothing of ours runs: others use the server.
    """
    deadline = time.monotonic() + limit_seconds
    last = read()
    while True:
        time.sleep(idle_seconds)
        now = read()
        if now.counts == last.counts and now.started == last.started:
            return now
        if time.monotonic() > deadline:
            moved = [name for name in now.counts if now.counts[name] != last.counts.get(name)]
            raise MeasurementError(
                f"The server's counters ({', '.join(moved)}) change although we send no"
                " requests: other clients use the server.",
                remedy="Measure while no one else uses the server.",
            )
        last = now


def _add(name: str, labels: Mapping[str, str], value: float, counts: dict[str, int], started: dict[str, float]) -> None:
    """Take in one sample, if it is one of those that count."""
    kind = _COUNTERS.get(name.removesuffix("_total"))
    if kind is not None:
        if kind == _PER_POSITION:
            position = int(labels.get("position", "")[:20])
            if not 0 <= position < _MAX_POSITIONS:
                raise ValueError(f"position {position}")
            kind += str(position)
        if not 0 <= value <= _MAX_COUNT:
            raise ValueError(f"{name} is {value}")
        counts[kind] = counts.get(kind, 0) + round(value)
    elif name == _PROCESS_START or _COUNTERS.get(name.removesuffix("_created").removesuffix("_total")) is not None:
        # Each counter says when it began; of several processes, all do.
        key = "/".join([name, *(f"{label}={text}" for label, text in sorted(labels.items()))])
        started[key] = value


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
