"""Answers in process: the generator that `deepspec.data.responses` receives, so that data stays below decoding."""

from collections.abc import Callable, Iterator

from deepspec.data.responses.requests import GenerationResult, NextRequest
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.drafts.algorithm import Drafter
from deepspec.targets.model import Target

BATCH_DEPENDENT_SHARE = 5e-5
"""The chance, at temperature 1 on a CPU, that a token differs because its row was decoded in another batch.

How a matrix product rounds depends on its shape. Measured as the distance of the cumulative distributions between a
step of 48 rows and steps of 1, 5 and 17 (targets of 4 and 8 layers, 128 wide, vocabularies of 1000 and 8000, entropies
of 6.5 to 8.8 nats): 1.8e-5, 1e-6 and 0 at most; rounded up. Steps of a fixed number of rows would make it 0, and cost
more than a tenth of the throughput: the demo's answers take twice as long in steps of 48 rows as in steps of 192.
"""


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
        `generate(next_request)`: yields results in the order of completion; may be called repeatedly, keeping its
        caches. It decodes all requests that are ready together, then those that their answers made ready. Raises what
        `Engine.run` raises.
    """
    engine = Engine(target, drafter, rows=rows, sampling=sampling)

    def generate(next_request: NextRequest) -> Iterator[GenerationResult]:
        while requests := list(iter(next_request, None)):
            for completion in engine.run(requests):
                yield GenerationResult(completion.id, completion.output_ids, completion.finish_reason)

    return generate
