"""In-process generation for the responses stage."""

from pathlib import Path

import pytest
import torch
from decoding_stubs import StubDrafter, save_tiny_target, some_requests

from deepspec.data.responses.requests import GenerationRequest, GenerationResult, NextRequest
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.decoding.generate import BATCH_DEPENDENT_SHARE, generator
from deepspec.decoding.sampling import probabilities
from deepspec.targets.model import Target
from tests.fixtures.targets import tiny_qwen3


def asking(requests: list[GenerationRequest]) -> NextRequest:
    waiting = iter(requests)
    return lambda: next(waiting, None)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder: Path = tmp_path_factory.mktemp("target")
    return Target.load(save_tiny_target(folder), layer_ids=(0,))


def test_generate_answers_each_request_whatever_its_batch(target: Target) -> None:
    asked = [
        GenerationRequest(one.id, one.prompt_ids, one.max_new_tokens, one.seed) for one in some_requests(20, seed=9)
    ]
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.8)
    generate = generator(target, sampling=sampling, rows=8)
    results = {result.id: result for result in generate(asking(asked))}
    alone = {one.id: one for one in Engine(target, sampling=sampling).run(asked)}
    assert results == {name: GenerationResult(name, one.output_ids, one.finish_reason) for name, one in alone.items()}
    assert {result.id: result for result in generate(asking(asked[:3]))} == {
        one.id: results[one.id] for one in asked[:3]
    }


def test_what_a_batch_changes_in_a_token_is_as_rare_as_manifests_say(tmp_path: Path) -> None:
    target = Target.load(tiny_qwen3(tmp_path, hidden_size=128, vocab_size=1000))
    ids_BQ = torch.randint(3, 1000, (48, 24), generator=torch.Generator().manual_seed(0))

    def cumulative(rows: int) -> torch.Tensor:
        """Of the token after a prefill and a step, in batches of so many rows."""
        logits = []
        for prompt_GQ in ids_BQ.split(rows):
            cache = target.allocate_cache(len(prompt_GQ), 32)
            target.forward(prompt_GQ[:, :-1], cache=cache)
            logits.append(target.logits(target.forward(prompt_GQ[:, -1:], cache=cache).final_BQD[:, 0]))
        cumulative_BV = probabilities(torch.cat(logits), Sampling()).cumsum(-1, dtype=torch.float64)
        return cumulative_BV / cumulative_BV[:, -1:]

    whole = cumulative(48)
    for rows in (1, 5, 17):
        # A uniform number between the two sums up to a token draws another one.
        assert float((cumulative(rows) - whole).abs().sum(-1).mean()) < BATCH_DEPENDENT_SHARE


def test_generate_can_speculate(target: Target) -> None:
    asked = [GenerationRequest(one.id, one.prompt_ids, one.max_new_tokens, one.seed) for one in some_requests(6)]
    greedy = Sampling(temperature=0)
    drafted = generator(target, sampling=greedy, rows=3, drafter=StubDrafter(target, "partly"))
    plain = generator(target, sampling=greedy, rows=2)
    assert {one.id: one for one in drafted(asking(asked))} == {one.id: one for one in plain(asking(asked))}
