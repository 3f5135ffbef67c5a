"""What codecs of target states cost in acceptance: drafts of the recipe `tiny`, paired by seed and by prompt."""

import math
import os
import statistics

import pytest

from tests.e2e.conftest import Home

SEEDS = range(5)
T_95 = 2.776
"""Student's t for 95 % and four degrees of freedom."""
CODECS = os.environ.get("DEEPSPEC_QUALITY_CODECS", "int4").split(",")
"""The coarsest loses most; `int8,int4` is for a machine that has the time for five more trainings."""
SETTINGS = ("train.num_epochs=6", "evaluate.num_gate_prompts=4", "evaluate.max_new_tokens=32")


def tau(home: Home, codec: str, seed: int) -> float:
    settings = [*SETTINGS, f"states.codec={codec}", f"train.seed={seed}"]
    home.run("run", "tiny", *(word for setting in settings for word in ("--set", setting)), code=None)
    return float(home.record()["evaluation"]["macro"]["tau"])


@pytest.mark.full
@pytest.mark.timeout(2400)  # ten trainings
def test_codecs_cost_no_acceptance_beyond_noise(warm: Home) -> None:
    exact = [tau(warm, "bf16", seed) for seed in SEEDS]
    for codec in CODECS:
        logs = [math.log(tau(warm, codec, seed) / exact[seed]) for seed in SEEDS]
        mean, half = statistics.mean(logs), T_95 * statistics.stdev(logs) / math.sqrt(len(logs))
        low, high = math.exp(mean - half), math.exp(mean + half)
        print(f"{codec}: τ / τ of bf16 = {math.exp(mean):.4f} [{low:.4f}, {high:.4f}]; exact {exact}, logs {logs}")
        # The interval of five pairs misses the true ratio once in twenty times; 1 % more is no loss that matters.
        assert high > 0.99
        # And it must be narrow enough to have seen a loss of a tenth.
        assert low > 0.9
