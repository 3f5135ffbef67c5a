"""Answers by OpenAI-compatible servers that serve the target: several at once, each with so many requests in flight.

    with Endpoints(urls, …) as endpoints:
        write_responses(…, generate=endpoints.generate)

Each request goes to the endpoint with the fewest in flight. What fails is asked again, elsewhere if there is an
elsewhere, after a pause that grows and is never the same for two. An endpoint that keeps failing is left out for a
while and then tried with one request at a time. Three ends are possible:

* the request is at fault (refused with 4xx; or it failed time and again, while the endpoint is alive): a
  `GenerationFailure` with the server's words, and the rest goes on;
* an endpoint is not what it should be (another model, another version, the key refused): `DataError`, at once;
* no endpoint has replied for a while: `TransientError`. With a journal, a later run goes on from there.

Answers depend on no endpoint: each request carries its own seed, and which one answers is not recorded.

Not here: what is asked, and what a reply says (endpoint_protocol.py); what has been answered (answer_log.py).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from deepspec.data.config import Responses
from deepspec.data.responses.endpoint_protocol import (
    BadReply,
    Vocabulary,
    another_model,
    completion_request,
    read_completion,
    words_of,
)
from deepspec.data.responses.requests import GenerationFailure, GenerationRequest, GenerationResult, NextRequest
from deepspec.data.sources.rows import excerpt_of
from deepspec.errors import DataError, TransientError

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

logger = logging.getLogger(__name__)

KEY_VARIABLE = "DEEPSPEC_ENDPOINT_API_KEY"

_ATTEMPTS = 6  # of one request that reached a server; with pauses this spans half a minute of trouble
_LEFT_OUT_AFTER = 3  # failures in a row
_LONGEST_PAUSE_SHARE = 0.1  # of the patience
_CONNECT_SECONDS = 10.0
_BUSY = (429, 502, 503, 504)  # says of the server, not of the request, that it cannot
_PASSING = (408, 425, 500)

_jitter = Random()  # noqa: S311 (of pauses; no answer hangs on it)


@dataclass(eq=False)
class _Endpoint:
    """One server.

    Attributes:
        url: without `/v1`.
        in_flight: requests it is working on.
        failures: in a row.
        rests_until: when it is asked again, `time.monotonic`.
        model: name of the target there; None: not looked at yet, or not since it was left out.
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
        return self.failures >= _LEFT_OUT_AFTER


class _Again(Exception):
    """An attempt that failed and is repeated.

    `is_counted`: whether the request may be at fault; a server that cannot be reached is not its fault.
    """

    def __init__(self, failure: GenerationFailure, *, is_counted: bool) -> None:
        super().__init__(failure.reason)
        self.failure = failure
        self.is_counted = is_counted


@dataclass(eq=False)
class _Attempts:
    """How often one request has failed by what may be its own fault."""

    counted: int = 0

    def are_over(self, state: "RetryCallState") -> bool:
        """As tenacity asks after each failure."""
        error = state.outcome.exception() if state.outcome is not None else None
        self.counted += isinstance(error, _Again) and error.is_counted
        return self.counted >= _ATTEMPTS


class Endpoints:
    """Servers that answer; a context, within which `generate` may be called again and again.

    Args:
        urls: base URLs, without credentials.
        config: sampling.
        model: the target's name. With `config.served_model` the endpoints must serve exactly that; without it, what
            they serve must be called so, or lie in a folder that is.
        vocabulary: the target's.
        max_length_tokens: of prompt and answer; endpoints must have room for them.
        concurrency: requests in flight at each.
        timeout_seconds: of one attempt.
        limit_name: what `max_length_tokens` is, for messages.
        api_key: sent as bearer token; goes into no message.
        patience_seconds: how long no endpoint may have replied before it is given up.
        pause_seconds: mean of the first pause after a failure.

    Raises:
        DataError: on entering: an endpoint serves another model, an engine of another version than the others', or
            shorter texts; it refuses the key; or it is no such server.
        TransientError: on entering: none of them can be reached.
    """

    def __init__(
        self,
        urls: Sequence[str],
        config: Responses,
        *,
        model: str,
        vocabulary: Vocabulary,
        max_length_tokens: int,
        concurrency: int,
        timeout_seconds: float,
        limit_name: str = "data.max_length_tokens",
        api_key: str | None = None,
        patience_seconds: float = 300.0,
        pause_seconds: float = 0.5,
    ) -> None:
        self._endpoints = [_Endpoint(url) for url in urls]
        self._config = config
        self._model = model
        self._vocabulary = vocabulary
        self._max_length_tokens = max_length_tokens
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._limit_name = limit_name
        self._api_key = api_key
        self._patience_seconds = patience_seconds
        self._pause_seconds = pause_seconds
        self._longest_pause_seconds = _LONGEST_PAUSE_SHARE * patience_seconds
        self._last_sign = 0.0
        self._num_lost = 0
        self._engine: tuple[_Endpoint, tuple[str, str]] | None = None
        self._in_flight: set[Future[None]] = set()
        self._stack = ExitStack()
        self._portal: Any

    @property
    def engine(self) -> tuple[str, str]:
        """Name and version of the endpoints' engine, as they say; known once the context is entered."""
        return self._engine[1] if self._engine is not None else ("unknown", "unknown")

    @property
    def num_lost(self) -> int:
        """Attempts so far that brought nothing and were made again or given up; a server may have worked on them."""
        return self._num_lost

    def generate(self, next_request: NextRequest) -> Iterator[GenerationResult | GenerationFailure]:
        """Answer requests in any order of completion; see `deepspec.data.responses.requests.Generate`.

        Raises:
            DataError: an endpoint turns out to be the wrong one.
            TransientError: none answers any more.
        """
        done: SimpleQueue[GenerationResult | GenerationFailure | BaseException] = SimpleQueue()
        most = self._concurrency * len(self._endpoints)
        num_open = 0
        while True:
            while num_open < most and (request := next_request()) is not None:
                future = self._portal.start_task_soon(self._answer_into, request, done)
                self._in_flight.add(future)
                future.add_done_callback(self._in_flight.discard)
                num_open += 1
            if not num_open:
                return
            result = done.get()
            num_open -= 1
            if isinstance(result, BaseException):
                raise result
            yield result

    def __enter__(self) -> Self:
        import anyio
        import httpx
        from anyio.from_thread import start_blocking_portal

        headers = {"User-Agent": "deepspec"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        with ExitStack() as stack:
            # A thread of its own: while a batch is rendered or written here, answers keep coming in there.
            self._portal = stack.enter_context(start_blocking_portal())
            trust = httpx.create_ssl_context()
            for endpoint in self._endpoints:
                # One for each: a pool looks through all its connections whenever one is taken or given back.
                client = httpx.AsyncClient(
                    headers=headers,
                    verify=trust,
                    timeout=httpx.Timeout(self._timeout_seconds, connect=_CONNECT_SECONDS, pool=None),
                    # vLLM closes idle connections after 5 s: whoever uses one just then is cut off.
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=3.0),
                )
                endpoint.client = stack.enter_context(self._portal.wrap_async_context_manager(client))
            self._changed = self._portal.call(_condition, anyio)
            self._portal.call(self._meet_all)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in list(self._in_flight):
            future.cancel()
        self._stack.close()

    async def _answer_into(
        self, request: GenerationRequest, done: SimpleQueue[GenerationResult | GenerationFailure | BaseException]
    ) -> None:
        try:
            done.put(await self._answer(request))
        except Exception as error:  # noqa: BLE001 (raised again where the answers are awaited)
            done.put(error)

    async def _answer(self, request: GenerationRequest) -> GenerationResult | GenerationFailure:
        """The answer to a request, asked for until there is one or it is given up."""
        from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

        attempts = _Attempts()
        again = AsyncRetrying(
            retry=retry_if_exception_type(_Again),
            stop=attempts.are_over,
            wait=wait_random_exponential(multiplier=2 * self._pause_seconds, max=self._longest_pause_seconds),
            reraise=True,
        )
        try:
            return await again(self._attempt, request)
        except _Again as error:
            if await self._is_anybody_there():
                return error.failure
            raise self._nobody() from error

    async def _attempt(self, request: GenerationRequest) -> GenerationResult | GenerationFailure:
        import anyio

        endpoint = await self._slot()
        try:
            with anyio.fail_after(self._timeout_seconds):  # httpx's own timeout begins anew with every byte
                if endpoint.model is None:
                    await self._meet(endpoint)
                result = await self._ask(endpoint, request)
        except _Again as error:
            self._failed(endpoint, error.failure)
            raise
        except TimeoutError as error:
            reason = "no answer within run.endpoint_timeout_seconds"
            failure = GenerationFailure(request.id, reason, f"{self._timeout_seconds:g} s")
            self._failed(endpoint, failure)
            raise _Again(failure, is_counted=True) from error
        else:
            endpoint.failures = 0
            return result
        finally:
            await self._release(endpoint)

    async def _ask(self, endpoint: _Endpoint, request: GenerationRequest) -> GenerationResult | GenerationFailure:
        model = str(endpoint.model)
        body = completion_request(request, self._config, model, self._vocabulary)
        reply = await self._send(endpoint, request.id, "POST", "/v1/completions", body)
        if reply.status_code != 200:
            words = self._words(reply)
            return GenerationFailure(request.id, f"the endpoint refuses the request (HTTP {reply.status_code})", words)
        engine, version = endpoint.engine
        try:
            return read_completion(reply.content, request, model, self._vocabulary, engine=engine, version=version)
        except BadReply as error:
            failure = GenerationFailure(request.id, error.reason, self._safe(error.words))
            raise _Again(failure, is_counted=True) from error
        except DataError as error:
            error.where = endpoint.url
            raise

    async def _send(
        self, endpoint: _Endpoint, name: str, method: str, path: str, body: dict[str, Any] | None = None
    ) -> "httpx.Response":
        """One request; what may pass by itself is raised as `_Again`, what is wrong with the endpoint as DataError."""
        import httpx

        try:
            reply = await endpoint.client.request(
                method, f"{endpoint.url}{path}", json=body, headers={"X-Request-Id": name}
            )
        except httpx.TimeoutException as error:
            is_counted = not isinstance(error, httpx.ConnectTimeout)
            reason = "no answer within run.endpoint_timeout_seconds" if is_counted else "no connection to the endpoint"
            failure = GenerationFailure(name, reason, f"{self._timeout_seconds:g} s" if is_counted else "timed out")
            raise _Again(failure, is_counted=is_counted) from error
        except httpx.RequestError as error:
            is_counted = not isinstance(error, httpx.ConnectError)
            reason = "the connection to the endpoint broke" if is_counted else "no connection to the endpoint"
            words = self._safe(str(error) or type(error).__name__)
            raise _Again(GenerationFailure(name, reason, words), is_counted=is_counted) from error
        status = reply.status_code
        if status not in _BUSY:
            self._last_sign = time.monotonic()  # of life: also a failure is one, and then the request's affair
        if status in _BUSY or status in _PASSING:
            endpoint.rests_until = max(endpoint.rests_until, time.monotonic() + _retry_after(reply))
            failure = GenerationFailure(name, f"the endpoint failed (HTTP {status})", self._words(reply))
            raise _Again(failure, is_counted=status in _PASSING)
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

    async def _meet_all(self) -> None:
        """Look at every endpoint; those that cannot be reached are left out, as long as one can."""
        import anyio

        self._last_sign = time.monotonic()
        errors: list[Exception] = []

        async def meet(endpoint: _Endpoint) -> None:
            try:
                await self._meet_again(endpoint)
            except TransientError as error:
                endpoint.failures = _LEFT_OUT_AFTER
                logger.warning("%s", error)
            except DataError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for endpoint in self._endpoints:
                group.start_soon(meet, endpoint)
        if errors:
            raise errors[0]
        if all(endpoint.is_left_out for endpoint in self._endpoints):
            raise self._nobody()

    async def _is_anybody_there(self) -> bool:
        """Whether an endpoint at least says what it serves: then it is the request that cannot be answered."""
        for endpoint in sorted(self._endpoints, key=lambda one: one.failures):
            try:
                await self._meet_again(endpoint)
            except TransientError:
                continue
            return True
        return False

    async def _meet_again(self, endpoint: _Endpoint) -> None:
        """Look at an endpoint, some times if it must be.

        Raises:
            TransientError: it cannot be reached.
            DataError: it is not what it should be.
        """
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        again = AsyncRetrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=self._pause_seconds, max=self._longest_pause_seconds),
            reraise=True,
        )
        try:
            await again(self._meet, endpoint)
        except _Again as error:
            endpoint.words = f"{error.failure.reason}: {error.failure.words}"
            raise TransientError(
                f"This endpoint does not answer ({endpoint.words}).",
                where=endpoint.url,
                remedy="Check that the server runs and run.endpoints names it.",
            ) from error

    async def _meet(self, endpoint: _Endpoint) -> None:
        """Find out what an endpoint serves, and with which engine."""
        reply = await self._send(endpoint, "models", "GET", "/v1/models")
        cards = _cards(reply)
        if cards is None:
            failure = GenerationFailure("models", "the list of models is none", self._words(reply))
            raise _Again(failure, is_counted=True)
        card = next((card for card in cards if self._is_target(card)), None)
        if card is None:
            error = another_model(self._config.served_model or self._model, [str(card["id"]) for card in cards])
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
        if self._engine is None:
            self._engine = (endpoint, endpoint.engine)
        other, engine = self._engine
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

    async def _engine_of(self, endpoint: _Endpoint, card: dict[str, Any], reply: "httpx.Response") -> tuple[str, str]:
        """Name and version of the engine, as it says; "unknown" where it does not."""
        name = str(card.get("owned_by") or "").lower() or "unknown"
        for path in ("/version", "/server_info", "/get_server_info"):  # vLLM's; SGLang's, and its older one
            found = await self._send(endpoint, "version", "GET", path)
            said = _json_of(found) if found.status_code == 200 else None
            if isinstance(said, dict) and isinstance(said.get("version"), str):
                return name, excerpt_of(self._safe(said["version"]))
        return name, excerpt_of(self._safe(reply.headers.get("Server") or "unknown"))

    async def _slot(self) -> _Endpoint:
        """The endpoint to ask next, one more request counted on it; waits for one."""
        import anyio

        async with self._changed:
            while True:
                now = time.monotonic()
                free = [one for one in self._endpoints if one.rests_until <= now and one.in_flight < self._room(one)]
                if free:
                    chosen = min(free, key=lambda one: one.in_flight)
                    chosen.in_flight += 1
                    return chosen
                is_idle = not any(one.in_flight for one in self._endpoints)
                deadline = self._last_sign + self._patience_seconds
                if is_idle and now >= deadline:
                    raise self._nobody()
                rests = [one.rests_until for one in self._endpoints if one.rests_until > now]
                until = min([*rests, deadline] if is_idle else rests, default=now + self._longest_pause_seconds)
                with anyio.move_on_after(max(until - now, 0.001)):
                    await self._changed.wait()

    def _room(self, endpoint: _Endpoint) -> int:
        return 1 if endpoint.is_left_out else self._concurrency

    async def _release(self, endpoint: _Endpoint) -> None:
        import anyio

        endpoint.in_flight -= 1
        with anyio.CancelScope(shield=True):
            async with self._changed:
                self._changed.notify_all()

    def _failed(self, endpoint: _Endpoint, failure: GenerationFailure) -> None:
        self._num_lost += 1
        endpoint.failures += 1
        endpoint.words = f"{failure.reason}: {failure.words}"
        beyond = endpoint.failures - _LEFT_OUT_AFTER
        if beyond < 0:
            return
        if beyond == 0:
            logger.warning("%s is left out for now: %s", endpoint.url, endpoint.words)
            endpoint.model = None  # what comes back there may be something else
        rest = min(2 * self._pause_seconds * 2.0 ** min(beyond, 10), self._longest_pause_seconds)
        until = time.monotonic() + rest * _jitter.uniform(0.5, 1.0)
        endpoint.rests_until = max(endpoint.rests_until, until)

    def _nobody(self) -> TransientError:
        said = "; ".join(f"{one.url} ({one.words})" for one in self._endpoints)
        return TransientError(
            f"No endpoint answers: {said}.",
            where="run.endpoints",
            remedy="Check the servers and run.endpoints, then run again: what was answered is kept.",
        )

    def _words(self, reply: "httpx.Response") -> str:
        return self._safe(words_of(reply.content))

    def _safe(self, words: str) -> str:
        """A server's words, shortened and without the key: some repeat what they were sent."""
        return excerpt_of(words.replace(self._api_key, "***") if self._api_key else words)


async def _condition(anyio: Any) -> Any:
    return anyio.Condition()


def _json_of(reply: "httpx.Response") -> Any:
    try:
        return reply.json()
    except ValueError:
        return None


def _cards(reply: "httpx.Response") -> list[dict[str, Any]] | None:
    """What a server says it serves; None: nothing that can be read."""
    said = _json_of(reply) if reply.status_code == 200 else None
    cards = said.get("data") if isinstance(said, dict) else None
    if not isinstance(cards, list):
        return None
    return [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]


def _retry_after(reply: "httpx.Response") -> float:
    """How many seconds a busy server wants to be left alone; a second or so where it does not say."""
    said = reply.headers.get("Retry-After", "")
    try:
        return max(float(said), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return _jitter.uniform(0.2, 1.0) if reply.status_code in _BUSY else 0.0
