"""The engine on a tiny target with stub drafts: lossless, independent of batch and order, exact in its bookkeeping."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from decoding_stubs import (
    VOCAB_SIZE,
    Ask,
    StubDrafter,
    next_logits,
    save_tiny_target,
    save_windowed_target,
    some_requests,
)

from deepspec.decoding import contexts
from deepspec.decoding.completion import Completion
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.decoding.random import Purpose, uniforms
from deepspec.decoding.sampling import draw, probabilities
from deepspec.decoding.scheduler import FixedLength, PrefixScheduler, Scheduler, StaticThreshold
from deepspec.decoding.step_costs import Curve, StepCosts
from deepspec.errors import DataError, IncompatibleDraft, NoConfidence, UnsupportedTarget
from deepspec.targets.model import Target
from tests.fixtures.refused import refused

GREEDY = Sampling(temperature=0.0)
SAMPLINGS = [Sampling(), Sampling(temperature=0.7, top_k=20, top_p=0.8)]
KINDS = ["never", "partly", "always"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A target whose layers differ, some with a window: Hugging Face's module on the row cache."""
    return Target.load(save_windowed_target(tmp_path_factory.mktemp("windowed")), layer_ids=(-1, 0))


@pytest.fixture(scope="module")
def target(folder: Path) -> Target:
    return Target.load(folder, layer_ids=(-1, 0))


def decode(engine: Engine, requests: Sequence[Ask]) -> dict[str, Completion]:
    return {completion.id: completion for completion in engine.run(requests)}


def step_by_step(target: Target, request: Ask, sampling: Sampling) -> tuple[list[int], str]:
    """Plain decoding without engine or cache: one full forward per token."""
    text = list(request.prompt_ids)
    numbers = torch.from_numpy(uniforms(request.seed, request.max_new_tokens))
    for position in range(request.max_new_tokens):
        logits_1V = next_logits(target, [text])
        if sampling.greedy:
            text.append(int(logits_1V.argmax()))
        else:
            weights_1V = probabilities(logits_1V, sampling)
            text.append(int(draw(weights_1V, numbers[position : position + 1, Purpose.BONUS])))
        if text[-1] in target.eos_token_ids:
            return text[len(request.prompt_ids) :], "stop"
    return text[len(request.prompt_ids) :], "length"


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("sampling", [GREEDY, *SAMPLINGS])
def test_plain_decoding_equals_one_forward_per_token(target: Target, sampling: Sampling, rows: int) -> None:
    requests = some_requests(10)
    found = decode(Engine(target, rows=rows, sampling=sampling), requests)
    for request in requests:
        ids, reason = step_by_step(target, request, sampling)
        assert list(found[request.id].output_ids) == ids
        assert found[request.id].finish_reason == reason
        assert [one.committed for one in found[request.id].rounds] == [1] * (len(ids) - 1)
    assert {completion.finish_reason for completion in found.values()} == {"stop", "length"}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_speculation_equals_plain_greedy(target: Target, kind: str, rows: int) -> None:
    requests = some_requests(12, seed=1)
    plain = decode(Engine(target, rows=rows, sampling=GREEDY), requests)
    found = decode(Engine(target, StubDrafter(target, kind), rows=rows, sampling=GREEDY), requests)
    assert {name: one.output_ids for name, one in found.items()} == {
        name: one.output_ids for name, one in plain.items()
    }
    assert {name: one.finish_reason for name, one in found.items()} == {
        name: one.finish_reason for name, one in plain.items()
    }
    accepted = [one.accepted for completion in found.values() for one in completion.rounds]
    proposed = [one.proposed for completion in found.values() for one in completion.rounds]
    assert len(accepted) > 20
    if kind == "never":
        assert not any(accepted)
    if kind == "always":
        assert accepted == proposed
    if kind == "partly":
        assert 0 < sum(accepted) < sum(proposed)


@pytest.mark.parametrize("rows", [1, 4])
def test_plain_decoding_of_windowed_layers_equals_one_forward_per_token(windowed: Target, rows: int) -> None:
    requests = some_requests(4, seed=5, longest=10, most_new=12)
    found = decode(Engine(windowed, rows=rows, sampling=GREEDY), requests)
    for request in requests:
        ids, reason = step_by_step(windowed, request, GREEDY)
        assert list(found[request.id].output_ids) == ids
        assert found[request.id].finish_reason == reason
    lengths = [len(request.prompt_ids) + len(found[request.id].output_ids) for request in requests]
    assert max(lengths) > 10, "twice the window"


@pytest.mark.parametrize("kind", KINDS)
def test_speculation_across_the_edge_of_a_window_equals_plain_greedy(windowed: Target, kind: str) -> None:
    requests = some_requests(4, seed=1, longest=8, most_new=10)
    plain = decode(Engine(windowed, rows=3, sampling=GREEDY, stop_ids=()), requests)
    drafter = StubDrafter(windowed, kind)
    found = decode(Engine(windowed, drafter, rows=3, sampling=GREEDY, stop_ids=()), requests)
    assert {name: one.output_ids for name, one in found.items()} == {
        name: one.output_ids for name, one in plain.items()
    }
    accepted = sum(one.accepted for completion in found.values() for one in completion.rounds)
    proposed = sum(one.proposed for completion in found.values() for one in completion.rounds)
    assert {"never": accepted == 0, "partly": 0 < accepted < proposed, "always": accepted == proposed}[kind]


@pytest.mark.parametrize("sampling", [GREEDY, *SAMPLINGS])
def test_tokens_depend_on_the_request_alone(target: Target, sampling: Sampling) -> None:
    requests = some_requests(24, seed=2)
    found = []
    for rows in (1, 3, 16):
        shuffled = random.Random(rows).sample(requests, len(requests))
        drafter = StubDrafter(target, "partly", with_confidence=True)
        completions = decode(Engine(target, drafter, rows=rows, sampling=sampling), shuffled)
        found.append({name: (one.output_ids, one.finish_reason, one.rounds) for name, one in completions.items()})
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 24


COSTS = StepCosts(
    drafting={1: Curve((1, 4), (1.3, 1.4)), 8: Curve((8, 16, 32), (1.8, 2.6, 4.7))}, plain=Curve((1, 16), (1.0, 2.0))
)
SCHEDULERS = {
    "threshold": StaticThreshold(0.4),
    "fixed": FixedLength(2),
    "scheduled": PrefixScheduler(COSTS, (0.8, 1.0, 1.3)),
    "stops drafting": PrefixScheduler(COSTS, (0.8, 1.0, 1.3), {1: "all", 3: "scheduled", 4: "none"}),
    "never drafts": PrefixScheduler(COSTS, (1.0, 1.0, 1.0), {1: "none"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("rows", [1, 8])
def test_scheduled_greedy_speculation_equals_plain_greedy(
    target: Target, kind: str, scheduler: Scheduler, rows: int
) -> None:
    requests = some_requests(16, seed=5)
    plain = decode(Engine(target, rows=rows, sampling=GREEDY), requests)
    drafter = StubDrafter(target, kind, with_confidence=True)
    found = decode(Engine(target, drafter, scheduler=scheduler, rows=rows, sampling=GREEDY), requests)
    assert {name: one.output_ids for name, one in found.items()} == {
        name: one.output_ids for name, one in plain.items()
    }


def test_thresholded_answers_depend_on_the_request_alone(target: Target) -> None:
    requests = some_requests(64, seed=6)
    found = []
    for rows in (1, 3, 16):
        shuffled = random.Random(rows).sample(requests, len(requests))
        drafter = StubDrafter(target, "partly", with_confidence=True)
        engine = Engine(target, drafter, scheduler=StaticThreshold(0.4), rows=rows, sampling=Sampling())
        found.append({name: (one.output_ids, one.rounds) for name, one in decode(engine, shuffled).items()})
    assert found[0] == found[1] == found[2]
    proposed = {one.proposed for _, rounds in found[0].values() for one in rounds}
    assert proposed == {0, 1, 2, 3}


def test_what_is_not_scheduled_is_not_counted_as_proposed(target: Target) -> None:
    drafter = StubDrafter(target, "always", with_confidence=True)
    engine = Engine(target, drafter, scheduler=FixedLength(1), rows=4, sampling=GREEDY, stop_ids=())
    rounds = [one for completion in decode(engine, some_requests(8)).values() for one in completion.rounds]
    assert {(one.proposed, one.accepted, one.committed) for one in rounds} == {(1, 1, 2)}
    assert all(len(one.confidence) == 1 for one in rounds)


def test_a_scheduler_that_needs_confidences_says_so(target: Target) -> None:
    engine = Engine(target, StubDrafter(target, "always"), scheduler=StaticThreshold(0.5), stop_ids=())
    with refused(NoConfidence, "confidence head"):
        decode(engine, some_requests(2))


def test_contexts_that_waited_are_handed_over_without_a_gap(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stop drafting at a load of four and more and go on when others have ended; little may wait."""
    monkeypatch.setattr(contexts, "MOST_WAITING", 30)
    scheduler = PrefixScheduler(COSTS, (1.0, 1.0, 1.0), {3: "scheduled", 4: "none"})
    drafter = StubDrafter(target, "always", with_confidence=True)
    requests = some_requests(24, seed=8, most_new=30)
    found = decode(Engine(target, drafter, scheduler=scheduler, rows=8, sampling=GREEDY), requests)
    rounds = [one for completion in found.values() for one in completion.rounds]
    assert any(one.proposed == 0 for one in rounds)
    assert all(one.accepted == one.proposed for one in rounds)
    assert sum(one.accepted for one in rounds) > 0


def test_a_draft_that_is_the_target_is_never_rejected(target: Target) -> None:
    found = decode(Engine(target, StubDrafter(target, "always"), rows=2, sampling=Sampling()), some_requests(8))
    rounds = [one for completion in found.values() for one in completion.rounds]
    # p and q come from differently shaped matrix products: equal to rounding, which rejects with probability 1e-6.
    assert all(one.accepted == one.proposed for one in rounds)


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_account_for_every_token(target: Target, kind: str) -> None:
    requests = some_requests(16, seed=3, most_new=30)
    found = decode(Engine(target, StubDrafter(target, kind), rows=4, sampling=Sampling()), requests)
    for request in requests:
        completion = found[request.id]
        assert 1 <= len(completion.output_ids) <= request.max_new_tokens
        stopped = completion.output_ids[-1] in target.eos_token_ids
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert not set(completion.output_ids[:-1]) & set(target.eos_token_ids)
        position = len(request.prompt_ids)
        for one in completion.rounds:
            assert one.position == position
            assert one.accepted <= one.proposed <= 3
            assert one.committed - one.accepted in {0, 1}
            if one.committed == one.accepted:  # cut at a stop token: no bonus
                assert one is completion.rounds[-1]
                assert one.proposed == one.accepted
            position += one.committed
        overrun = position - len(request.prompt_ids) + 1 - len(completion.output_ids)
        assert 0 <= overrun <= 3  # the last round is not shortened


def test_the_drafter_gets_the_states_of_a_plain_forward(target: Target) -> None:
    drafter = StubDrafter(target, "partly")
    requests = some_requests(3, seed=4, most_new=20)
    found = decode(Engine(target, drafter, rows=3, sampling=Sampling(), stop_ids=()), requests)
    for row, request in enumerate(requests):
        text = [*request.prompt_ids, *found[request.id].output_ids]
        states_TLD = drafter.states_of(row)
        assert len(states_TLD) >= len(request.prompt_ids)
        with torch.inference_mode():
            expected_TLD = target.forward(torch.tensor([text])).states_BQLD[0, : len(states_TLD)]
        # fp32, differently shaped matrix products
        torch.testing.assert_close(states_TLD, expected_TLD, atol=2e-4, rtol=1e-4)


def test_confidences_belong_to_effective_proposals(target: Target) -> None:
    drafter = StubDrafter(target, "always", with_confidence=True)
    requests = some_requests(12)
    found = decode(Engine(target, drafter, rows=2, sampling=GREEDY), requests)
    for request in requests:
        # The last round may overrun the answer: what it committed beyond is not to be seen.
        text = [*request.prompt_ids, *found[request.id].output_ids]
        for one in found[request.id].rounds[:-1]:
            said = [random.Random((at + 1) * 100 + text[at]).random() for at in range(one.position, len(text))]
            assert one.confidence == pytest.approx(said[: one.proposed])
    assert any(one.proposed < 3 for completion in found.values() for one in completion.rounds)


def test_stop_ids_can_be_switched_off(target: Target) -> None:
    found = decode(Engine(target, rows=4, sampling=GREEDY, stop_ids=()), some_requests(8, most_new=30))
    assert {one.finish_reason for one in found.values()} == {"length"}


def test_answers_end_with_the_context(target: Target) -> None:
    context = target.spec.max_position_embeddings
    request = Ask("long", tuple(range(2, 32)) * 3, 50, 0)
    for drafter in (None, StubDrafter(target, "always")):
        found = decode(Engine(target, drafter, sampling=GREEDY, stop_ids=()), [request])["long"]
        assert len(found.output_ids) == context - len(request.prompt_ids)
        assert found.finish_reason == "length"


def test_an_engine_can_run_again_with_longer_and_more_requests(target: Target) -> None:
    engine = Engine(target, StubDrafter(target, "partly"), rows=4, sampling=Sampling())
    first, second = some_requests(2, seed=5, longest=5, most_new=5), some_requests(9, seed=6)
    decode(engine, first)
    fresh = decode(Engine(target, StubDrafter(target, "partly"), rows=4, sampling=Sampling()), second)
    again = decode(engine, second)
    assert {name: one.output_ids for name, one in again.items()} == {
        name: one.output_ids for name, one in fresh.items()
    }
    assert decode(engine, []) == {}


def test_engines_may_take_turns_with_one_drafter(target: Target) -> None:
    drafter = StubDrafter(target, "partly")
    one, other = (Engine(target, drafter, rows=rows, sampling=Sampling()) for rows in (4, 2))
    requests = some_requests(6, seed=9)
    first = decode(one, requests)
    decode(other, some_requests(5, seed=10, longest=5))
    again = decode(one, requests)
    assert {n: c.rounds for n, c in again.items()} == {n: c.rounds for n, c in first.items()}


def test_seconds_add_up_to_less_than_what_passed(target: Target) -> None:
    engine = Engine(target, StubDrafter(target, "partly"), rows=3, sampling=Sampling())
    found = decode(engine, some_requests(7))
    assert all(one.seconds.prefill > 0 for one in found.values())
    for one in found.values():
        assert (one.seconds.draft > 0) == (one.seconds.verify > 0) == (len(one.rounds) > 0)
        assert one.seconds.total == pytest.approx(
            one.seconds.prefill + one.seconds.draft + one.seconds.verify + one.seconds.other
        )


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (Ask("a", (), 5, 0), ["empty"]),
        (Ask("a", (5,) * 96, 5, 0), ["96 tokens", "context"]),
        (Ask("a", (5, VOCAB_SIZE), 5, 0), ["vocabulary", str(VOCAB_SIZE)]),
        (Ask("a", (5, -1), 5, 0), ["vocabulary", str(VOCAB_SIZE)]),
        (Ask("a", (5,), 0, 0), ["max_new_tokens", "0"]),
    ],
)
def test_impossible_requests_are_refused_before_anything_runs(target: Target, request_: Ask, named: list[str]) -> None:
    engine = Engine(target, rows=2)
    with refused(DataError, *named, where="request a"):
        list(engine.run([Ask("good", (5,), 5, 0), request_]))
    assert len(decode(engine, [Ask("good", (5,), 5, 0)])) == 1  # and the engine is free again


def test_two_runs_at_once_are_refused(target: Target) -> None:
    engine = Engine(target, rows=1)
    running = engine.run(some_requests(2))
    next(running)
    with pytest.raises(RuntimeError, match="already decoding"):
        next(engine.run(some_requests(1)))
    running.close()
    assert len(decode(engine, some_requests(1))) == 1


@pytest.mark.parametrize("sampling", [GREEDY, Sampling()])
def test_nan_of_the_target_is_reported(folder: Path, sampling: Sampling) -> None:
    broken = Target.load(folder)
    with torch.no_grad():
        broken.head_weight[3] = float("nan")
    engine = Engine(broken, sampling=sampling)
    with refused(UnsupportedTarget, "NaN", where="request a, position 2"):
        list(engine.run([Ask("a", (5, 6), 5, 0)]))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling()])
def test_nan_of_the_draft_is_reported(target: Target, sampling: Sampling) -> None:
    class Unloaded(StubDrafter):
        def _opinions(self, texts: list[list[int]]) -> torch.Tensor:
            return torch.full((len(texts), VOCAB_SIZE), float("nan"))

    engine = Engine(target, Unloaded(target, "always"), sampling=sampling, stop_ids=())
    with refused(IncompatibleDraft, "NaN", where="request a, position"):
        list(engine.run([Ask("a", (5, 6), 5, 0)]))


def test_a_draft_that_returns_another_distribution_is_reported(target: Target) -> None:
    class Lying(StubDrafter):
        def propose(self, *arguments):
            proposal = super().propose(*arguments)
            zeros_RKV = proposal.probs_RKV.scatter(-1, proposal.tokens_RK.unsqueeze(-1), 0.0)
            return type(proposal)(proposal.tokens_RK, zeros_RKV, None)

    engine = Engine(target, Lying(target, "always"), stop_ids=())
    with refused(IncompatibleDraft, "drafted token", where="request a, position"):
        list(engine.run([Ask("a", (5, 6), 5, 0)]))


def test_a_draft_of_another_target_is_refused(folder: Path, target: Target) -> None:
    drafter = StubDrafter(target, "always")
    without_states = Target.load(folder)
    with refused(IncompatibleDraft, "[-1, 0]", "[]", where="target_layer_ids"):
        Engine(without_states, drafter)
    drafter.vocab_size = 41
    with refused(IncompatibleDraft, "41", "40", where="vocab_size"):
        Engine(target, drafter)


@pytest.mark.full
@pytest.mark.parametrize("scheduler", [None, StaticThreshold(0.4), SCHEDULERS["stops drafting"]])
@pytest.mark.parametrize("kind", ["never", "partly"])
def test_sampled_speculation_is_distributed_as_the_target(
    target: Target, kind: str, scheduler: Scheduler | None
) -> None:
    """Second and third tokens of 3,000 answers to one prompt, against the exact joint distribution."""
    num_answers, prompt = 3000, (7, 8, 9)
    sampling = Sampling(temperature=0.7, top_k=3)
    requests = [Ask(str(seed), prompt, 3, seed) for seed in range(num_answers)]
    drafter = StubDrafter(target, kind, num_draft_tokens=2, with_confidence=True)
    engine = Engine(target, drafter, scheduler=scheduler, rows=64, sampling=sampling, stop_ids=())
    found = decode(engine, requests)
    observed: dict[tuple[int, ...], int] = {}
    for completion in found.values():
        observed[completion.output_ids] = observed.get(completion.output_ids, 0) + 1
    expected: dict[tuple[int, ...], float] = {(): float(num_answers)}
    for _ in range(3):
        longer = {}
        for ids, count in expected.items():
            p_V = probabilities(next_logits(target, [[*prompt, *ids]])[0], sampling)
            longer |= {(*ids, token): count * float(p_V[token]) for token in p_V.nonzero().flatten().tolist()}
        expected = longer
    assert observed.keys() <= expected.keys()
    cells = [(observed.get(ids, 0), count) for ids, count in expected.items() if count >= 5]
    rest = num_answers - sum(count for _, count in cells), num_answers - sum(seen for seen, _ in cells)
    cells += [(rest[1], rest[0])] if rest[0] > 1 else []
    statistic = sum((seen - count) ** 2 / count for seen, count in cells)
    degrees = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    assert float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64))) > 0.01
