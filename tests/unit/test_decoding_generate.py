"""In-process generation for the responses stage."""

from pathlib import Path

import pytest
from decoding_stubs import StubDrafter, save_tiny_target, some_requests

from deepspec.data.responses.requests import GenerationRequest, GenerationResult, NextRequest
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.decoding.generate import generator
from deepspec.targets.model import Target


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


def test_generate_can_speculate(target: Target) -> None:
    asked = [GenerationRequest(one.id, one.prompt_ids, one.max_new_tokens, one.seed) for one in some_requests(6)]
    greedy = Sampling(temperature=0)
    drafted = generator(target, sampling=greedy, rows=3, drafter=StubDrafter(target, "partly"))
    plain = generator(target, sampling=greedy, rows=2)
    assert {one.id: one for one in drafted(asking(asked))} == {one.id: one for one in plain(asking(asked))}
