"""A server's counters as a stream: the difference between two looks is one answer to the tests.

Counters know no answers and no domains, so a stretch of at least `LEAST_ROUNDS` rounds is the unit, and its stream is
all traffic. They are read often for the same reason: of one long stretch nothing is known in between.
Tokens are those of τ from tokens, (tokens - answers) / rounds, where both are counted: answers that begin in one
stretch and end in the next cancel over several. A server that restarted makes no stretch.
"""

from collections.abc import Mapping

from pydantic import Field

from deepspec.data.sources.rows import excerpt_of
from deepspec.errors import DeepspecError, MeasurementError, TransientError
from deepspec.evaluation.server.counters import Reading, ServerMetrics, difference
from deepspec.foreign_json import parse
from deepspec.monitoring.served import Says
from deepspec.network import PLAIN, UnusableReply, heeds_proxies, received
from deepspec.store.records import JsonRecord

LEAST_ROUNDS = 100
RESTARTED = "The server's counters restarted; what they counted before is left out."
_SECONDS = 10.0
_MAX_BYTES = 1 << 20


class Counters(JsonRecord):
    """Counters at one moment, as they are remembered.

    Attributes:
        url: of the server.
        counts, started: as in `deepspec.evaluation.server.counters.Reading`.
    """

    url: str
    counts: dict[str, int] = Field({})
    started: dict[str, float] = Field({})


class Stretch(JsonRecord):
    """What one look at the counters came to.

    Attributes:
        tokens, rounds: since the last look that counted; None: nothing can be said, or too little happened.
        counters: to be remembered.
        said: what is to be known of the server, in sentences.
    """

    tokens: int | None = None
    rounds: int | None = None
    counters: Counters | None = None
    said: tuple[str, ...] = ()


def stretch(url: str, before: Counters | None, now: Reading) -> Stretch:
    """What happened since the last look.

    Args:
        url: of the server.
        before: what is remembered; None: nothing.
        now: its counters.
    """
    after = Counters(url=url, counts=dict(now.counts), started=dict(now.started))
    if now.reason is not None:
        return Stretch(counters=before, said=(f"{now.reason[:1].upper()}{now.reason[1:]}.",))
    if before is None or before.url != url:
        return Stretch(counters=after, said=("The counters were read for the first time; the next look counts.",))
    try:
        counted = difference(Reading(before.counts, before.started), now)
    except MeasurementError:
        return Stretch(counters=after, said=(RESTARTED,))
    if counted.rounds is None or counted.rounds < LEAST_ROUNDS:
        few = f"Only {counted.rounds or 0} rounds since the last look; {LEAST_ROUNDS} are waited for."
        return Stretch(counters=before, said=(few,))
    if counted.tokens is not None and counted.answers is not None:
        tokens = counted.tokens - counted.answers
    elif counted.accepted is not None:
        tokens = counted.rounds + counted.accepted
    else:
        return Stretch(counters=after, said=("The server counts rounds, but no tokens.",))
    return Stretch(tokens=max(tokens, 0), rounds=counted.rounds, counters=after)


def look(url: str, before: Counters | None, api_key: str | None = None) -> Stretch:
    """Read a server's counters.

    Raises:
        DataError: it refuses the key, or says something else there.
        TransientError: it does not answer.
    """
    with ServerMetrics(url, api_key=api_key) as metrics:
        return stretch(url, before, metrics.read())


def server_says(url: str, api_key: str | None = None) -> Says:
    """What a server says that it serves, and with which engine; nothing where it does not say.

    Raises:
        TransientError: it does not answer.
    """
    card = _first(_asked(url, "/v1/models", api_key))
    version = next(
        (
            str(said["version"])
            for path in ("/version", "/server_info", "/get_server_info")  # vLLM's; SGLang's, and its older one
            if isinstance((said := _asked(url, path, api_key)).get("version"), str)
        ),
        None,
    )
    engine = card.get("owned_by")
    named = [excerpt_of(name) for name in (engine, version) if isinstance(name, str) and name]
    target, root = card.get("id"), card.get("root")
    return Says(
        target=excerpt_of(target) if isinstance(target, str) else None,
        revision=excerpt_of(root) if isinstance(root, str) else None,
        engine=" ".join(named) or None,
    )


def _first(reply: Mapping[str, object]) -> Mapping[str, object]:
    cards = reply.get("data")
    return cards[0] if isinstance(cards, list) and cards and isinstance(cards[0], dict) else {}


def _asked(url: str, path: str, api_key: str | None) -> Mapping[str, object]:
    """The JSON object there; empty where there is none."""
    import httpx

    headers = {"User-Agent": "deepspec", **PLAIN, **({"Authorization": f"Bearer {api_key}"} if api_key else {})}
    try:
        with (
            httpx.Client(trust_env=heeds_proxies(url, where=url), headers=headers, timeout=_SECONDS) as client,
            client.stream("GET", f"{url}{path}") as coming,
        ):
            reply = received(coming, _MAX_BYTES, _SECONDS)
        said = parse(reply.content, _MAX_BYTES) if reply.status_code == 200 else None
    except (httpx.HTTPError, TimeoutError) as error:
        raise TransientError(
            f"GET {path} failed ({type(error).__name__}).", where=url, remedy="Check that it runs."
        ) from error
    except (UnusableReply, ValueError, DeepspecError):
        said = None
    return said if isinstance(said, dict) else {}
