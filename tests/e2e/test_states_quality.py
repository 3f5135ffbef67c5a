"""What the coarsest codec of target states costs in acceptance: one pair; five and all codecs are a campaign's part."""

import pytest

from tests.e2e.conftest import Home

SETTINGS = ("train.num_epochs=6", "evaluate.num_gate_prompts=4", "evaluate.max_new_tokens=32")


def tau(home: Home, codec: str, seed: int) -> float:
    """Mean acceptance length of a draft that was trained on states in a codec."""
    settings = [*SETTINGS, f"states.codec={codec}", f"train.seed={seed}"]
    home.run("run", "tiny", *(word for setting in settings for word in ("--set", setting)), code=None)
    return float(home.record()["evaluation"]["macro"]["tau"])


@pytest.mark.full  # two trainings
def test_the_coarsest_codec_trains_a_draft_as_good(warm: Home) -> None:
    exact, coarse = tau(warm, "bf16", 0), tau(warm, "int4", 0)
    # A draft that learns nothing has 1. Pairs of five seeds were within 3 % of each other; a tenth is no noise.
    assert exact > 1.3
    assert coarse > 0.9 * exact
