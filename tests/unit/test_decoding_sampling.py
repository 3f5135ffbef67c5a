"""Temperature, top-k, top-p, and drawing by inversion, against plain Python."""

import math

import pytest
import torch
from pydantic import ValidationError

from deepspec.decoding.config import Sampling
from deepspec.decoding.sampling import draw, likeliest, probabilities


def naive(logits: list[float], sampling: Sampling) -> list[float]:
    """Truncation token by token, the textbook's way."""
    scaled = [value / sampling.temperature for value in logits]
    kept = set(range(len(scaled)))
    if sampling.top_k:
        lowest = sorted(scaled, reverse=True)[min(sampling.top_k, len(scaled)) - 1]
        kept = {token for token in kept if scaled[token] >= lowest}
    weights = {token: math.exp(scaled[token] - max(scaled)) for token in kept}
    if sampling.top_p < 1:
        total, mass, nucleus = sum(weights.values()), 0.0, set()
        for token in sorted(weights, key=lambda token: -weights[token]):
            if mass < sampling.top_p * total:
                nucleus.add(token)
            mass += weights[token]
        weights = {token: weights[token] for token in nucleus}
    total = sum(weights.values())
    return [weights.get(token, 0.0) / total for token in range(len(scaled))]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(temperature=1.7, top_k=5),
        Sampling(top_k=1),
        Sampling(top_k=1000),
        Sampling(top_p=0.5),
        Sampling(top_p=1e-9),
        Sampling(temperature=0.7, top_k=6, top_p=0.8),
    ],
)
def test_probabilities_equal_the_textbook(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(1)
    logits_BQV = 3 * torch.randn((4, 3, 17), generator=generator)
    found_BQV = probabilities(logits_BQV, sampling)
    assert found_BQV.dtype == torch.float32
    for found_V, logits_V in zip(found_BQV.reshape(-1, 17), logits_BQV.reshape(-1, 17), strict=True):
        expected_V = torch.tensor(naive(logits_V.tolist(), sampling))
        torch.testing.assert_close(found_V, expected_V, atol=1e-6, rtol=1e-5)  # fp32 softmax against fp64
        assert ((found_V > 0) == (expected_V > 0)).all()


def test_ties_with_the_last_kept_token_are_kept() -> None:
    found_V = probabilities(torch.tensor([2.0, 1.0, 1.0, 0.0]), Sampling(top_k=2))
    assert (found_V > 0).tolist() == [True, True, True, False]


def test_bf16_logits_give_fp32_probabilities() -> None:
    logits_V = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
    assert torch.equal(probabilities(logits_V, Sampling()), torch.softmax(logits_V.float(), -1))


def test_draw_inverts_the_cumulative_sum() -> None:
    weights_NV = torch.tensor([[0.0, 2.0, 0.0, 1.0, 1.0, 0.0]]).expand(5, -1)
    uniforms_N = torch.tensor([0.0, 0.4999999, 0.5, 0.75, 1 - 2**-52], dtype=torch.float64)
    assert draw(weights_NV, uniforms_N).tolist() == [1, 1, 3, 4, 4]


def test_draw_never_takes_a_token_without_weight() -> None:
    generator = torch.Generator().manual_seed(2)
    weights_NV = torch.rand((2000, 300), generator=generator)
    weights_NV = weights_NV.where(torch.rand(weights_NV.shape, generator=generator) < 0.05, torch.zeros(()))
    weights_NV[:, 7] += 1e-30
    extremes_N = torch.tensor([0.0, 1 - 2**-52], dtype=torch.float64).repeat(1000)
    token_N1 = draw(weights_NV, extremes_N).unsqueeze(1)
    assert (weights_NV.gather(1, token_N1) > 0).all()


def test_nan_is_no_token() -> None:
    logits_NV = torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])
    assert likeliest(logits_NV).tolist() == [1, 2]
    assert draw(torch.softmax(logits_NV, -1), torch.tensor([0.9, 0.9], dtype=torch.float64)).tolist() == [1, 2]


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": 0}])
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate(wrong)


def test_almost_zero_temperature_is_greedy() -> None:
    assert Sampling(temperature=0).greedy
    assert Sampling(temperature=9e-6).greedy
    assert not Sampling(temperature=1e-4).greedy
