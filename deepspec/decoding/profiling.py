"""Measures what decoding steps cost on this machine, in the engine itself: nothing is added up from parts.

Each load (R rows, about n drafts verified per row) decodes for a while, and all loads take turns a few times. A step's
cost is the median of its fastest ones: other work on this machine can only add to it. Rows verify different numbers of
drafts, as they do when a scheduler decides. Legend: R rows, K draft positions.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.decoding.completion import Request
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine, StepTimes
from deepspec.decoding.scheduler import DraftsAlways
from deepspec.decoding.step_costs import Curve, StepCosts
from deepspec.drafts.algorithm import Drafter, Proposal
from deepspec.targets.model import Target

_SKIPPED_STEPS = 1  # a first step pays for masks, tables and memory
_FASTEST = 3  # of this many steps the fastest one counts


@dataclass(frozen=True)
class StepLoad:
    """One measured load.

    Attributes:
        rows: decoded at once.
        length: drafts verified per row, on average; None: a plain step.
    """

    rows: int
    length: int | None


@dataclass(frozen=True)
class Repeated:
    """A request as one of many: its own name and length limit."""

    id: str
    prompt_ids: Sequence[int]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class _Uneven(DraftsAlways):
    """Verifies `length` drafts per row on average: of every two rows one more and one fewer."""

    length: int

    def lengths(self, proposal: Proposal) -> Tensor:
        rows, positions = proposal.tokens_RK.shape
        spread = min(self.length, positions - self.length)
        sign_R = torch.arange(rows, device=proposal.tokens_RK.device).remainder(2).mul(2).sub(1)
        return self.length + sign_R * spread if rows > 1 else torch.full_like(sign_R, self.length)


def loads_up_to(most_rows: int, num_draft_tokens: int) -> list[StepLoad]:
    """What is measured: rows in powers of two, and for each a plain step and four lengths from 0 to K."""
    rows = [1]
    while rows[-1] < most_rows:
        rows.append(min(rows[-1] * 2, most_rows))
    lengths = sorted({0, round(num_draft_tokens / 4), round(num_draft_tokens / 2), num_draft_tokens})
    return [StepLoad(count, length) for count in rows for length in (None, *lengths)]


def measured_costs(
    target: Target,
    drafter: Drafter | None,
    prompts: Sequence[Request],
    loads: Sequence[StepLoad],
    *,
    sampling: Sampling,
    num_steps: int = 4,
    num_turns: int = 3,
    on_load: Callable[[], None] = lambda: None,
) -> StepCosts:
    """Decode at each load, and fit the costs.

    Args:
        target, drafter: what decodes; without a drafter only plain steps can be measured.
        prompts: typical requests, used again and again; their prompts' length is what the costs hold for.
        loads: as from `loads_up_to`: at least one plain and one that drafts.
        sampling: as it will be used.
        num_steps: of each load and turn, behind the first.
        num_turns: how often the loads take turns.
        on_load: called after each load of each turn.
    """
    found: dict[StepLoad, list[StepTimes]] = {load: [] for load in loads}
    for _ in range(num_turns):
        for load in loads:
            found[load] += _steps(target, drafter, prompts, load, sampling, num_steps)
            on_load()
    plain: list[tuple[float, float]] = []
    drafting: dict[int, list[tuple[float, float]]] = {}
    for load, steps in found.items():
        tokens = statistics.median(step.tokens for step in steps)
        seconds = statistics.median(sorted(step.seconds for step in steps)[: max(1, len(steps) // _FASTEST)])
        if load.length is None:
            plain.append((load.rows, seconds))
        else:
            drafting.setdefault(load.rows, []).append((tokens, seconds))
    return StepCosts({rows: Curve.fitted(measured) for rows, measured in drafting.items()}, Curve.fitted(plain))


def _steps(
    target: Target,
    drafter: Drafter | None,
    prompts: Sequence[Request],
    load: StepLoad,
    sampling: Sampling,
    num_steps: int,
) -> Iterator[StepTimes]:
    """Steps over exactly `load.rows` rows."""
    found: list[StepTimes] = []
    scheduler = None if load.length is None else _Uneven(load.length)
    engine = Engine(
        target,
        None if load.length is None else drafter,
        scheduler=scheduler,
        rows=load.rows,
        sampling=sampling,
        stop_ids=(),
        exact_times=True,
        on_step=found.append,
    )
    wanted = _SKIPPED_STEPS + num_steps
    most = wanted * (1 if load.length is None or drafter is None else drafter.num_draft_tokens + 1) + 1
    requests = []
    for index in range(load.rows):
        prompt = prompts[index % len(prompts)]
        room = target.spec.max_position_embeddings - len(prompt.prompt_ids)
        requests.append(Repeated(str(index), prompt.prompt_ids, max(1, min(most, room)), prompt.seed + index))
    running = engine.run(requests)
    for _ in running:
        if sum(step.rows == load.rows for step in found) >= wanted:
            running.close()
            break
    full = [step for step in found if step.rows == load.rows] or found
    yield from full[_SKIPPED_STEPS:wanted] or full
