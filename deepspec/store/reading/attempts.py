"""Reading again what a server did not give, and what the last failure means."""

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from deepspec.errors import DeepspecError

T = TypeVar("T")


def tried(ask: Callable[[], T], attempts: int, named: Callable[[Exception], DeepspecError]) -> T:
    """Ask, again if that fails; in the end the last failure, named."""
    try:
        if attempts == 1:
            return ask()
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        again = Retrying(
            retry=retry_if_exception_type((OSError, pa.ArrowException)),
            wait=wait_random_exponential(multiplier=0.2, max=10),
            stop=stop_after_attempt(attempts),
            reraise=True,
        )
        return again(ask)
    except (OSError, pa.ArrowException) as error:
        raise named(error) from error
