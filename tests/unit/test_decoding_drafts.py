"""The engine with the real drafts of the table, at random weights: lossless and independent of batch and order."""

import random

import pytest
import torch
from decoding_stubs import Ask, save_tiny_target, save_windowed_target, some_requests

from deepspec.decoding.completion import Completion
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.decoding.scheduler import FixedLength, PrefixScheduler, Scheduler, StaticThreshold
from deepspec.decoding.step_costs import Curve, StepCosts
from deepspec.drafts import ALGORITHMS
from deepspec.drafts.algorithm import Drafter
from deepspec.targets.model import Target
from tests.fixtures.algorithms import small_config

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.load(save_tiny_target(tmp_path_factory.mktemp("target")), layer_ids=(-1, 0))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.load(save_windowed_target(tmp_path_factory.mktemp("windowed")), layer_ids=(-1, 0))


def random_draft(name: str, target: Target) -> Drafter:
    algorithm = ALGORITHMS[name]
    config = small_config(algorithm, target_layer_ids=(-1, 0))
    draft = algorithm.build(config, target.spec)
    algorithm.initialize(draft, target.embedding_weight, target.head_weight, 0)
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.mul_(6.0)
    return algorithm.drafter(draft.eval(), config)


def decode(
    target: Target, drafter: Drafter | None, rows: int, sampling: Sampling, asked: list[Ask]
) -> dict[str, Completion]:
    engine = Engine(target, drafter, rows=rows, sampling=sampling)
    return {completion.id: completion for completion in engine.run(asked)}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("family", ["target", "windowed"])
def test_greedy_equals_plain_greedy(name: str, family: str, request: pytest.FixtureRequest) -> None:
    target: Target = request.getfixturevalue(family)
    requests = some_requests(8, seed=11)
    plain = decode(target, None, 4, GREEDY, requests)
    found = decode(target, random_draft(name, target), 4, GREEDY, requests)
    assert {one.id: one.output_ids for one in found.values()} == {one.id: one.output_ids for one in plain.values()}
    rounds = [one for completion in found.values() for one in completion.rounds]
    assert 0 < sum(one.accepted for one in rounds) < sum(one.proposed for one in rounds)


COSTS = StepCosts(
    drafting={1: Curve((1, 4), (1.3, 1.4)), 8: Curve((8, 16, 32), (1.8, 2.6, 4.7))}, plain=Curve((1, 16), (1.0, 2.0))
)
SCHEDULERS = {
    "threshold": StaticThreshold(0.5),
    "scheduled": PrefixScheduler(COSTS, (0.5, 1.0, 2.0, 1.0)),
    "stops drafting": PrefixScheduler(COSTS, (0.5, 1.0, 2.0, 1.0), {2: "all", 3: "none"}),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("family", ["target", "windowed"])
def test_scheduled_greedy_equals_plain_greedy(
    family: str, scheduler: Scheduler, request: pytest.FixtureRequest
) -> None:
    target: Target = request.getfixturevalue(family)
    requests = some_requests(12, seed=13)
    plain = decode(target, None, 4, GREEDY, requests)
    engine = Engine(target, random_draft("dspark", target), scheduler=scheduler, rows=4, sampling=GREEDY)
    found = {completion.id: completion for completion in engine.run(requests)}
    assert {one.id: one.output_ids for one in found.values()} == {one.id: one.output_ids for one in plain.values()}
    assert {one.proposed for completion in found.values() for one in completion.rounds} > {0}


@pytest.mark.parametrize("name", ["dflash", "eagle3"])
def test_drafts_without_confidences_stop_at_a_load_like_others(name: str, target: Target) -> None:
    """The second rule needs no confidence: it is asked of the load alone."""

    class AllOrNothing(FixedLength):
        def drafts(self, num_rows: int) -> bool:
            return num_rows <= 2

    requests = some_requests(12, seed=14)
    plain = decode(target, None, 4, GREEDY, requests)
    engine = Engine(target, random_draft(name, target), scheduler=AllOrNothing(3), rows=4, sampling=GREEDY)
    found = {completion.id: completion for completion in engine.run(requests)}
    assert {one.id: one.output_ids for one in found.values()} == {one.id: one.output_ids for one in plain.values()}
    assert {one.proposed for completion in found.values() for one in completion.rounds} >= {0, 3}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(temperature=0.8, top_k=12, top_p=0.9)])
def test_tokens_and_rounds_depend_on_the_request_alone(name: str, target: Target, sampling: Sampling) -> None:
    requests = some_requests(64, seed=12)
    found = []
    for rows in (1, 3, 16):
        shuffled = random.Random(rows).sample(requests, len(requests))
        completions = decode(target, random_draft(name, target), rows, sampling, shuffled)
        found.append(
            {
                one.id: (one.output_ids, [(r.position, r.proposed, r.accepted, r.committed) for r in one.rounds])
                for one in completions.values()
            }
        )
    assert len(found[0]) == 64
    assert found[0] == found[1] == found[2]
