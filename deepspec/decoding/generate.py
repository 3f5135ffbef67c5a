"""Answers in process: what `deepspec.data.responses` is handed to generate with, so that data stays below decoding."""

from collections.abc import Callable, Iterator

from deepspec.data.responses.requests import GenerationResult, NextRequest
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.drafts.algorithm import Drafter
from deepspec.targets.model import Target


def generator(
    target: Target, *, sampling: Sampling, rows: int, drafter: Drafter | None = None
) -> Callable[[NextRequest], Iterator[GenerationResult]]:
    """A function that answers requests with the target's own tokens.

    Args:
        target: the target; with a drafter it has to capture the drafter's layers.
        sampling: temperature, top-p and top-k; randomness comes from each request's own seed.
        rows: requests decoded at once.
        drafter: decode speculatively: the answers' distribution stays the same, the drawn tokens don't.

    Returns:
        `generate(next_request)`: yields results in the order of completion; may be called again and again, keeping its
        caches. Everything that can be asked is decoded together, and then what that has brought. Raises what
        `Engine.run` raises.
    """
    engine = Engine(target, drafter, rows=rows, sampling=sampling)

    def generate(next_request: NextRequest) -> Iterator[GenerationResult]:
        while requests := list(iter(next_request, None)):
            for completion in engine.run(requests):
                yield GenerationResult(completion.id, completion.output_ids, completion.finish_reason)

    return generate
