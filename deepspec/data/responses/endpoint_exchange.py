"""One request and its reply: asks an endpoint for an answer, or what it serves, and judges how that failed.

What may pass by itself is raised as `Again`; what is wrong with the endpoint (another model, another version, the key
refused) as `DataError`; what is wrong with the request is a `GenerationFailure` with the server's words.

Not here: which endpoint is asked, when, and how often (endpoint_pool.py); what is asked, and what a reply says
(endpoint_protocol.py).
"""

import time
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from random import Random
from typing import TYPE_CHECKING, Any

from deepspec.data.config import Responses
from deepspec.data.responses.endpoint_protocol import (
    BadReply,
    Vocabulary,
    another_model,
    completion_request,
    read_completion,
    words_of,
)
from deepspec.data.responses.requests import GenerationFailure, GenerationRequest, GenerationResult
from deepspec.data.sources.rows import excerpt_of
from deepspec.errors import DataError
from deepspec.foreign_json import parse
from deepspec.network import UnusableReply, received_async
from deepspec.usage import count

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "DEEPSPEC_ENDPOINT_API_KEY"
LEFT_OUT_AFTER = 3
"""Failures in a row, until an endpoint answers."""

_REPLY_BYTES = 1 << 20
_TOKEN_BYTES = 256
"""For each token of a prompt and an answer, its id twice and its text as JSON may write it: more than any has."""

_LONGEST_REST_SECONDS = 7 * 24 * 3600.0
_MAX_NAMES = 4
_WITHHELD = "its words are not shown: a source is private"
_BUSY = (429, 502, 503, 504)  # says of the server, not of the request, that it cannot
_PASSING = (408, 425, 500)

jitter = Random()  # noqa: S311 (of pauses; no answer depends on it)


@dataclass(eq=False)
class Endpoint:
    """One server.

    Attributes:
        url: without `/v1`.
        in_flight: requests it is working on.
        failures: in a row.
        rests_until: when it is asked again, `time.monotonic`.
        model: name of the target there; None: not looked at yet, or not since it was left out.
        engine: name and version, as it says.
        client: sends to it.
        words: of its last failure.
    """

    url: str
    in_flight: int = 0
    failures: int = 0
    rests_until: float = 0.0
    model: str | None = None
    engine: tuple[str, str] = ("unknown", "unknown")
    client: "httpx.AsyncClient" = field(init=False)
    words: str = "not asked yet"

    @property
    def is_left_out(self) -> bool:
        """Whether it failed so often that only one request at a time tries it."""
        return self.failures >= LEFT_OUT_AFTER


class Again(Exception):
    """An attempt that failed and is repeated.

    `is_counted`: whether the request may be at fault; a server that cannot be reached is not its fault.
    """

    def __init__(self, failure: GenerationFailure, *, is_counted: bool) -> None:
        super().__init__(failure.reason)
        self.failure = failure
        self.is_counted = is_counted


class Exchange:
    """Requests to the endpoints of one pool.

    Args:
        config, model, vocabulary, max_length_tokens, timeout_seconds, limit_name, api_key, asks_rounds,
            quotes: as in `Endpoints`.

    Attributes:
        last_sign: when an endpoint last showed a sign of life, `time.monotonic`.
        engine: name and version of the engine, with the endpoint that said it first; None: none has yet.
    """

    def __init__(
        self,
        config: Responses,
        *,
        model: str,
        vocabulary: Vocabulary,
        max_length_tokens: int,
        timeout_seconds: float,
        limit_name: str,
        api_key: str | None,
        asks_rounds: bool = False,
        quotes: bool = True,
    ) -> None:
        self._asks_rounds = asks_rounds
        self._quotes = quotes
        self._config = config
        self._model = model
        self._vocabulary = vocabulary
        self._max_length_tokens = max_length_tokens
        self._timeout_seconds = timeout_seconds
        self._limit_name = limit_name
        self._max_reply_bytes = _REPLY_BYTES + _TOKEN_BYTES * max_length_tokens
        self._api_key = api_key
        self.last_sign = 0.0
        self.engine: tuple[Endpoint, tuple[str, str]] | None = None

    async def ask(self, endpoint: Endpoint, request: GenerationRequest) -> GenerationResult | GenerationFailure:
        """The answer to a request, or why the endpoint refuses it.

        Raises:
            Again: it failed in a way that may pass.
            DataError: the endpoint is not what it should be.
        """
        model = str(endpoint.model)
        body = completion_request(request, self._config, model, self._vocabulary, asks_rounds=self._asks_rounds)
        reply = await self._send(endpoint, request.id, "POST", "/v1/completions", body)
        if reply.status_code != 200:
            words = self._words(reply)
            return GenerationFailure(request.id, f"the endpoint refuses the request (HTTP {reply.status_code})", words)
        engine, version = endpoint.engine
        try:
            found = read_completion(reply.content, request, model, self._vocabulary, engine=engine, version=version)
        except BadReply as error:
            failure = GenerationFailure(request.id, error.reason, self._said(error.words))
            raise Again(failure, is_counted=True) from error
        except DataError as error:
            error.where = endpoint.url
            raise
        return replace(found, words=self._said(found.words)) if isinstance(found, GenerationFailure) else found

    async def _send(
        self, endpoint: Endpoint, name: str, method: str, path: str, body: dict[str, Any] | None = None
    ) -> "httpx.Response":
        """One request; what may pass by itself is raised as `Again`, what is wrong with the endpoint as DataError."""
        import httpx

        count("endpoint_requests")
        asked = endpoint.client.stream(method, f"{endpoint.url}{path}", json=body, headers={"X-Request-Id": name})
        try:
            async with asked as coming:
                reply = await received_async(coming, self._max_reply_bytes, self._timeout_seconds)
        except UnusableReply as error:
            failure = GenerationFailure(name, "the endpoint's reply cannot be used", str(error))
            raise Again(failure, is_counted=True) from error
        except (httpx.TimeoutException, TimeoutError) as error:
            is_counted = not isinstance(error, httpx.ConnectTimeout)
            reason = "no answer within run.endpoint_timeout_seconds" if is_counted else "no connection to the endpoint"
            failure = GenerationFailure(name, reason, f"{self._timeout_seconds:g} s" if is_counted else "timed out")
            raise Again(failure, is_counted=is_counted) from error
        except httpx.RequestError as error:
            is_counted = not isinstance(error, httpx.ConnectError)
            reason = "the connection to the endpoint broke" if is_counted else "no connection to the endpoint"
            words = self._safe(str(error) or type(error).__name__)
            raise Again(GenerationFailure(name, reason, words), is_counted=is_counted) from error
        status = reply.status_code
        if status not in _BUSY:
            self.last_sign = time.monotonic()  # of life: also a failure is one, and then the request's affair
        if status in _BUSY or status in _PASSING:
            endpoint.rests_until = max(endpoint.rests_until, time.monotonic() + _retry_after(reply))
            failure = GenerationFailure(name, f"the endpoint failed (HTTP {status})", self._words(reply))
            raise Again(failure, is_counted=status in _PASSING)
        if status in (401, 403):
            raise DataError(
                f"The endpoint refuses the key (HTTP {status}: {self._words(reply)}).",
                where=endpoint.url,
                remedy=f"Set the environment variable {KEY_VARIABLE}.",
            )
        if status == 404 and path.startswith("/v1/"):
            raise DataError(
                f"The endpoint has no {path} for the target (HTTP 404: {self._words(reply)}).",
                where=endpoint.url,
                remedy="Check run.endpoints: base URLs of OpenAI-compatible servers that serve the target.",
            )
        return reply

    async def meet(self, endpoint: Endpoint) -> None:
        """Find out what an endpoint serves, and with which engine; raises as `ask` does."""
        reply = await self._send(endpoint, "models", "GET", "/v1/models")
        cards = self._cards(reply)
        if cards is None:
            failure = GenerationFailure("models", "the list of models is none", self._words(reply))
            raise Again(failure, is_counted=True)
        card = next((card for card in cards if self._is_target(card)), None)
        if card is None:
            error = another_model(
                self._config.served_model or self._model, [excerpt_of(card["id"]) for card in cards[:_MAX_NAMES]]
            )
            error.where = endpoint.url
            raise error
        room = card.get("max_model_len")
        if isinstance(room, int) and room < self._max_length_tokens:
            raise DataError(
                f"The endpoint has room for {room} tokens, but {self._limit_name} is {self._max_length_tokens}.",
                where=endpoint.url,
                remedy="Serve the target with a longer context (vLLM: --max-model-len), or shorten the rows.",
            )
        endpoint.engine = await self._engine_of(endpoint, card, reply)
        if self.engine is None:
            self.engine = (endpoint, endpoint.engine)
        other, engine = self.engine
        if engine != endpoint.engine:
            raise DataError(
                f"This endpoint runs {' '.join(endpoint.engine)}, but {other.url} runs {' '.join(engine)}.",
                where=endpoint.url,
                remedy="Run one engine in one version: answers would depend on which endpoint gave them.",
            )
        endpoint.model = str(card["id"])

    def _is_target(self, card: dict[str, Any]) -> bool:
        if self._config.served_model is not None:
            return bool(card["id"] == self._config.served_model)
        names = [str(card.get(name) or "").rstrip("/").rpartition("/")[2] for name in ("id", "root")]
        return self._model in names

    async def _engine_of(self, endpoint: Endpoint, card: dict[str, Any], reply: "httpx.Response") -> tuple[str, str]:
        """Name and version of the engine, as it says; "unknown" where it does not."""
        said_by = card.get("owned_by")
        name = self._safe(said_by.lower()) if isinstance(said_by, str) and said_by else "unknown"
        for path in ("/version", "/server_info", "/get_server_info"):  # vLLM's; SGLang's, and its older one
            found = await self._send(endpoint, "version", "GET", path)
            said = self._json_of(found) if found.status_code == 200 else None
            if isinstance(said, dict) and isinstance(said.get("version"), str):
                return name, excerpt_of(self._safe(said["version"]))
        return name, excerpt_of(self._safe(reply.headers.get("Server") or "unknown"))

    def _json_of(self, reply: "httpx.Response") -> Any:
        try:
            return parse(reply.content, self._max_reply_bytes)
        except ValueError:
            return None

    def _cards(self, reply: "httpx.Response") -> list[dict[str, Any]] | None:
        """What a server says it serves; None: nothing that can be read."""
        said = self._json_of(reply) if reply.status_code == 200 else None
        cards = said.get("data") if isinstance(said, dict) else None
        if not isinstance(cards, list):
            return None
        return [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]

    def _words(self, reply: "httpx.Response") -> str:
        return self._said(words_of(reply.content))

    def _said(self, words: str) -> str:
        """What a server said of a request, which it may repeat; nothing of one that is private."""
        return self._safe(words) if self._quotes else _WITHHELD

    def _safe(self, words: str) -> str:
        """A server's words, shortened and without the key: some repeat what they were sent."""
        return excerpt_of(words.replace(self._api_key, "***") if self._api_key else words)


def _retry_after(reply: "httpx.Response") -> float:
    """How many seconds a busy server wants to be left alone; a second or so where it does not say."""
    said = reply.headers.get("Retry-After", "")
    try:
        return _rest(float(said))
    except ValueError:
        pass
    try:
        return _rest(parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return jitter.uniform(0.2, 1.0) if reply.status_code in _BUSY else 0.0


def _rest(seconds: float) -> float:
    """`seconds`, where a server may say anything: none for less than none (and for NaN), a week at most."""
    return min(seconds, _LONGEST_REST_SECONDS) if seconds > 0 else 0.0
