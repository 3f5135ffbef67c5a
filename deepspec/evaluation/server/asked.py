"""Which server is asked, and how."""

from dataclasses import dataclass

from deepspec.data.config import Responses
from deepspec.data.responses.endpoint_pool import Endpoints
from deepspec.data.responses.endpoint_protocol import Vocabulary
from deepspec.decoding.config import Sampling


@dataclass(frozen=True)
class Server:
    """Which server, and how it is asked.

    Attributes:
        url: base URL, without `/v1` and without credentials.
        model: the target's name; the server must serve it.
        served_model: the name under which it does so; None: `model`.
        concurrency: requests in flight.
        timeout_seconds: of one answer.
        patience_seconds: how long the server may be silent before it is given up.
        api_key: sent as bearer token.
    """

    url: str
    model: str
    served_model: str | None = None
    concurrency: int = 1
    timeout_seconds: float = 600.0
    patience_seconds: float = 300.0
    api_key: str | None = None


@dataclass(frozen=True)
class Pace:
    """How long counters must have stood still to be read, and how long that is waited for, in seconds."""

    idle_seconds: float = 1.0
    limit_seconds: float = 30.0


def endpoints_of(server: Server, vocabulary: Vocabulary, sampling: Sampling, longest: int) -> Endpoints:
    """The server as the one endpoint of a pool, asked for rounds, too.

    Args:
        server: which.
        vocabulary: the target's.
        sampling: of the answers.
        longest: tokens of the longest prompt with its answer.
    """
    return Endpoints(
        [server.url],
        Responses(
            engine="endpoint",
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            served_model=server.served_model,
        ),
        model=server.model,
        vocabulary=vocabulary,
        max_length_tokens=longest,
        limit_name="the longest prompt with evaluate.max_new_tokens",
        concurrency=server.concurrency,
        timeout_seconds=server.timeout_seconds,
        patience_seconds=server.patience_seconds,
        api_key=server.api_key,
        asks_rounds=True,
    )
