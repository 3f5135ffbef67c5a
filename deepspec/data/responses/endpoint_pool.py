"""Answers by OpenAI-compatible servers that serve the target: several at once, with a limit of requests for each.

    with Endpoints(urls, …) as endpoints:
        write_responses(…, generate=endpoints.generate)

Each request goes to the endpoint with the fewest in flight. A failed request is repeated, at another endpoint if there
is one, after a growing pause with jitter. An endpoint that keeps failing is left out for a while and then tried with
one request at a time. Three ends are possible:

* the request is at fault (refused with 4xx; or it failed time and again, while the endpoint is alive): a
  `GenerationFailure` with the server's words, and the rest goes on;
* an endpoint is not what it should be (another model, another version, the key refused): `DataError`, at once;
* no endpoint has replied for a while: `TransientError`. With a journal, a later run goes on from there.

Answers depend on no endpoint: each request carries its own seed, and which one answers is not recorded.

Not here: one request and its reply (endpoint_exchange.py); what has been answered (answer_log.py).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from deepspec.data.config import Responses
from deepspec.data.responses.endpoint_exchange import LEFT_OUT_AFTER, Again, Endpoint, Exchange, jitter
from deepspec.data.responses.endpoint_protocol import Vocabulary
from deepspec.data.responses.requests import GenerationFailure, GenerationRequest, GenerationResult, NextRequest
from deepspec.errors import DataError, TransientError
from deepspec.network import PLAIN, heeds_proxies

if TYPE_CHECKING:
    from tenacity import RetryCallState

logger = logging.getLogger(__name__)

_ATTEMPTS = 6  # of one request that reached a server; with pauses this spans half a minute of trouble
_LONGEST_PAUSE_SHARE = 0.1  # of the patience
_CONNECT_SECONDS = 10.0


@dataclass(eq=False)
class _Attempts:
    """How often one request has failed for reasons that may be its own."""

    counted: int = 0

    def are_over(self, state: "RetryCallState") -> bool:
        """The condition that tenacity checks after each failure."""
        error = state.outcome.exception() if state.outcome is not None else None
        self.counted += isinstance(error, Again) and error.is_counted
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
        asks_rounds: whether answers are to come with the rounds of speculative decoding behind them.
        quotes: whether a server's words about a request may be shown: they may repeat it.

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
        asks_rounds: bool = False,
        quotes: bool = True,
    ) -> None:
        self._endpoints = [Endpoint(url) for url in urls]
        self._exchange = Exchange(
            config,
            model=model,
            vocabulary=vocabulary,
            max_length_tokens=max_length_tokens,
            timeout_seconds=timeout_seconds,
            limit_name=limit_name,
            api_key=api_key,
            asks_rounds=asks_rounds,
            quotes=quotes,
        )
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._api_key = api_key
        self._patience_seconds = patience_seconds
        self._pause_seconds = pause_seconds
        self._longest_pause_seconds = _LONGEST_PAUSE_SHARE * patience_seconds
        self._num_lost = 0
        self._in_flight: set[Future[None]] = set()
        self._stack = ExitStack()
        self._portal: Any

    @property
    def engine(self) -> tuple[str, str]:
        """Name and version of the endpoints' engine, as they say; known once the context is entered."""
        said = self._exchange.engine
        return said[1] if said is not None else ("unknown", "unknown")

    @property
    def served_names(self) -> tuple[str, ...]:
        """What each endpoint calls the target; known once the context is entered."""
        return tuple(str(endpoint.model) for endpoint in self._endpoints)

    @property
    def num_lost(self) -> int:
        """Attempts so far that gave no answer and were repeated or given up; a server may have worked on them."""
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

        headers = {"User-Agent": "deepspec", **PLAIN}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        with ExitStack() as stack:
            # A thread of its own: while a batch is rendered or written here, answers keep coming in there.
            self._portal = stack.enter_context(start_blocking_portal())
            trust = httpx.create_ssl_context()
            for endpoint in self._endpoints:
                # One for each: a pool looks through all its connections whenever one is taken or given back.
                client = httpx.AsyncClient(
                    trust_env=heeds_proxies(endpoint.url, where="run.endpoints"),
                    headers=headers,
                    verify=trust,
                    timeout=httpx.Timeout(self._timeout_seconds, connect=_CONNECT_SECONDS, pool=None),
                    # vLLM closes idle connections after 5 s: a request that uses one just then is cut off.
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
        """Repeat a request until it is answered or given up."""
        from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

        attempts = _Attempts()
        again = AsyncRetrying(
            retry=retry_if_exception_type(Again),
            stop=attempts.are_over,
            wait=wait_random_exponential(multiplier=2 * self._pause_seconds, max=self._longest_pause_seconds),
            reraise=True,
        )
        try:
            return await again(self._attempt, request)
        except Again as error:
            if await self._lists_its_models():
                return error.failure
            raise self._no_endpoint() from error

    async def _attempt(self, request: GenerationRequest) -> GenerationResult | GenerationFailure:
        import anyio

        endpoint = await self._free_endpoint()
        try:
            with anyio.fail_after(self._timeout_seconds):  # httpx's own timeout starts again with every byte
                if endpoint.model is None:
                    await self._exchange.meet(endpoint)
                result = await self._exchange.ask(endpoint, request)
        except Again as error:
            self._failed(endpoint, error.failure)
            raise
        except TimeoutError as error:
            reason = "no answer within run.endpoint_timeout_seconds"
            failure = GenerationFailure(request.id, reason, f"{self._timeout_seconds:g} s")
            self._failed(endpoint, failure)
            raise Again(failure, is_counted=True) from error
        else:
            endpoint.failures = 0
            return result
        finally:
            await self._release(endpoint)

    async def _meet_all(self) -> None:
        """Look at every endpoint; those that cannot be reached are left out, as long as one can."""
        import anyio

        self._exchange.last_sign = time.monotonic()
        errors: list[Exception] = []

        async def meet(endpoint: Endpoint) -> None:
            try:
                await self._meet_again(endpoint)
            except TransientError as error:
                endpoint.failures = LEFT_OUT_AFTER
                logger.warning("%s", error)
            except DataError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for endpoint in self._endpoints:
                group.start_soon(meet, endpoint)
        if errors:
            raise errors[0]
        if all(endpoint.is_left_out for endpoint in self._endpoints):
            raise self._no_endpoint()

    async def _lists_its_models(self) -> bool:
        """Whether an endpoint at least lists its models: then the request is at fault."""
        for endpoint in sorted(self._endpoints, key=lambda one: one.failures):
            try:
                await self._meet_again(endpoint)
            except TransientError:
                continue
            return True
        return False

    async def _meet_again(self, endpoint: Endpoint) -> None:
        """Look at an endpoint, with a few attempts.

        Raises:
            TransientError: it cannot be reached.
            DataError: it is not what it should be.
        """
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        again = AsyncRetrying(
            retry=retry_if_exception_type(Again),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=self._pause_seconds, max=self._longest_pause_seconds),
            reraise=True,
        )
        try:
            await again(self._exchange.meet, endpoint)
        except Again as error:
            endpoint.words = f"{error.failure.reason}: {error.failure.words}"
            raise TransientError(
                f"This endpoint does not answer ({endpoint.words}).",
                where=endpoint.url,
                remedy="Check that the server runs and run.endpoints names it.",
            ) from error

    async def _free_endpoint(self) -> Endpoint:
        """The endpoint to ask next, with one more request counted on it; waits for one."""
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
                deadline = self._exchange.last_sign + self._patience_seconds
                if is_idle and now >= deadline:
                    raise self._no_endpoint()
                rests = [one.rests_until for one in self._endpoints if one.rests_until > now]
                until = min([*rests, deadline] if is_idle else rests, default=now + self._longest_pause_seconds)
                with anyio.move_on_after(max(until - now, 0.001)):
                    await self._changed.wait()

    def _room(self, endpoint: Endpoint) -> int:
        return 1 if endpoint.is_left_out else self._concurrency

    async def _release(self, endpoint: Endpoint) -> None:
        import anyio

        endpoint.in_flight -= 1
        with anyio.CancelScope(shield=True):
            async with self._changed:
                self._changed.notify_all()

    def _failed(self, endpoint: Endpoint, failure: GenerationFailure) -> None:
        self._num_lost += 1
        endpoint.failures += 1
        endpoint.words = f"{failure.reason}: {failure.words}"
        beyond = endpoint.failures - LEFT_OUT_AFTER
        if beyond < 0:
            return
        if beyond == 0:
            logger.warning("%s is left out for now: %s", endpoint.url, endpoint.words)
            endpoint.model = None  # what comes back there may be something else
        rest = min(2 * self._pause_seconds * 2.0 ** min(beyond, 10), self._longest_pause_seconds)
        until = time.monotonic() + rest * jitter.uniform(0.5, 1.0)
        endpoint.rests_until = max(endpoint.rests_until, until)

    def _no_endpoint(self) -> TransientError:
        said = "; ".join(f"{one.url} ({one.words})" for one in self._endpoints)
        return TransientError(
            f"No endpoint answers: {said}.",
            where="run.endpoints",
            remedy="Check the servers and run.endpoints, then run again: what was answered is kept.",
        )


async def _condition(anyio: Any) -> Any:
    return anyio.Condition()
