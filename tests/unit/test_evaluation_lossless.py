"""Whether the same is said with and without the draft: equal, a tie, or another answer."""

from dataclasses import replace

import pytest
import torch
from decoding_stubs import StubDrafter, save_tiny_target

from deepspec.decoding.completion import Completion
from deepspec.decoding.engine import Engine
from deepspec.evaluation.answering import requests_for
from deepspec.evaluation.config import Config
from deepspec.evaluation.lossless import GREEDY, compared, lossless_probe, tie_gap
from deepspec.evaluation.prompts.selection import EncodedPrompt
from deepspec.targets.model import Target

CONFIG = Config(max_new_tokens=12)
PROMPTS = [EncodedPrompt(f"p{number}", (3, 1, number), "file") for number in range(5)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.load(save_tiny_target(tmp_path_factory.mktemp("target")), layer_ids=(0,))


def plain_answer(target: Target) -> Completion:
    [completion] = Engine(target, sampling=GREEDY).run(requests_for(CONFIG, PROMPTS[:1]))
    return completion


def test_a_sound_engine_says_the_same_whatever_the_recipe_samples_by(target: Target) -> None:
    for ask in ("partly", "never"):
        found = lossless_probe(CONFIG, target=target, drafter=StubDrafter(target, ask), prompts=PROMPTS, rows=3)
        assert found is not None
        assert (found.answers, found.ties, found.differing) == (5, 0, ())
    assert lossless_probe(CONFIG, target=target, drafter=StubDrafter(target, "partly"), prompts=[], rows=3) is None


def test_a_prompt_of_two_benchmarks_is_asked_once(target: Target) -> None:
    twice = [*PROMPTS, PROMPTS[0]]
    found = lossless_probe(CONFIG, target=target, drafter=StubDrafter(target, "partly"), prompts=twice, rows=3)
    assert found is not None
    assert found.answers == 5


def test_where_answers_part_both_tokens_logits_decide(target: Target) -> None:
    plain = plain_answer(target)
    other = (plain.output_ids[2] + 1) % 5
    drafted = replace(plain, output_ids=(*plain.output_ids[:2], other, *plain.output_ids[3:]))
    found = compared(target, PROMPTS[0], plain, drafted)
    assert found is not None
    assert (found.prompt, found.token, found.is_tie) == ("p0", 2, False)
    ids = torch.tensor([[*PROMPTS[0].prompt_ids, *plain.output_ids[:2]]])
    logits_V = target.logits(target.forward(ids).final_BQD[0, -1:])[0]
    assert found.gap == pytest.approx(float(logits_V[plain.output_ids[2]] - logits_V[other]), abs=1e-6)
    assert compared(target, PROMPTS[0], plain, plain) is None


def test_tokens_of_almost_the_same_logit_are_a_tie(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = plain_answer(target)
    drafted = replace(plain, output_ids=((plain.output_ids[0] + 1) % 5, *plain.output_ids[1:]))
    for gap, tie in ((0.0009, True), (0.0011, False)):
        logits_V = torch.zeros(64)
        logits_V[plain.output_ids[0]] = gap
        monkeypatch.setattr("deepspec.evaluation.lossless._logits", lambda *_, made=logits_V: made)
        found = compared(target, PROMPTS[0], plain, drafted)
        assert found is not None
        assert found.is_tie is tie


def test_an_answer_that_goes_on_is_another_answer(target: Target) -> None:
    plain = plain_answer(target)
    found = compared(target, PROMPTS[0], plain, replace(plain, output_ids=plain.output_ids[:-1]))
    assert found is not None
    assert (found.token, found.gap, found.is_tie) == (len(plain.output_ids) - 1, None, False)


def test_a_tie_is_as_wide_as_two_roundings() -> None:
    assert tie_gap(torch.float32, 16.0) == 1e-3
    assert tie_gap(torch.bfloat16, 16.0) == 0.25
    assert tie_gap(torch.float16, 16.0) == pytest.approx(0.03125)
