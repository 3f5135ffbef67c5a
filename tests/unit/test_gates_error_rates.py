"""A fixed sample of what `make campaign PART=verdict` counts: coverage, false promotions, power; seconds in all."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.gates.config import Config
from deepspec.gates.detectable import POWER, detectable
from tests.fixtures.recorded_rounds import FILE, recorded
from tests.fixtures.simulated_drafts import (
    SPREAD,
    drawn_prompts,
    gain_of,
    measured,
    passes,
    reign_ends_falsely,
    tau_of,
    tilt_for,
    true_tau,
)

CONFIG = Config()


def test_rounds_are_recorded_as_the_record_has_them(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds.parquet"
    pq.write_table(pa.table({"prompt": ["b", "b", "a", "b"], "committed": [1, 8, 3, 1]}), rounds)
    assert recorded(rounds) == "[\n[2,0,0,0,0,0,0,1],\n[0,0,1,0,0,0,0,0]\n]\n"
    assert len(recorded(rounds).splitlines()[1]) == len(FILE.read_text().splitlines()[1])
    pq.write_table(pa.table({"prompt": ["a"], "committed": [9]}), rounds)
    with pytest.raises(ValueError, match="committed 9"):
        recorded(rounds)


def test_an_interval_of_few_prompts_holds_the_truth_as_often_as_it_says() -> None:
    """Of 600; a percentile bootstrap holds it in 86 %, and so would a normal quantile in 90 %."""
    draws, truth = np.random.default_rng(1), true_tau(0.0)
    found = [tau_of(measured(draws, drawn_prompts(draws, 8))).interval() for _ in range(600)]
    assert sum(low <= truth <= high for low, high in found) / 600 > 0.927  # 95 %, less 2.6 standard deviations


def test_equal_drafts_are_promoted_in_few_reigns_however_many_nights_there_are() -> None:
    """Were each look to spend the whole 5 %, about half of all reigns would end falsely."""
    draws = np.random.default_rng(2)
    ended = sum(reign_ends_falsely(draws, 12, CONFIG, same_prompts=number % 2 == 0) for number in range(120))
    assert ended / 120 < 0.11  # 5 %, and 3 standard deviations


@pytest.mark.parametrize("count", [12, 64])
def test_a_better_draft_is_found_as_often_as_the_stated_effect_says(count: int) -> None:
    """With twelve prompts 75 % would be, if the threshold were taken for a constant."""
    draws, tries = np.random.default_rng(count), 2500
    equal = [
        gain_of(*(measured(draws, prompts) for _ in range(2)))
        for prompts in (drawn_prompts(draws, count) for _ in range(400))
    ]
    stated = np.median([said.gain for one in equal if (said := detectable(count, one, CONFIG.confidence)).gain])
    tilt = tilt_for(float(stated))
    found = 0
    for _ in range(tries):
        prompts = drawn_prompts(draws, count)
        found += passes(measured(draws, prompts, tilt), measured(draws, prompts), 1, CONFIG)
    assert abs(found / tries - POWER) < 0.024  # 3 standard deviations


def test_a_simulated_drafts_gain_is_the_one_it_is_given() -> None:
    draws = np.random.default_rng(4)
    prompts = drawn_prompts(draws, 40_000)
    ours, theirs = measured(draws, prompts, tilt_for(0.3)).sum(0), measured(draws, prompts).sum(0)
    assert abs(ours[0] / ours[1] - theirs[0] / theirs[1] - 0.3) < 0.02
    assert SPREAD > 0
