"""Counter-based uniform numbers: what they depend on, and that they are uniform."""

import numpy as np
import pytest

from deepspec.decoding.random import Purpose, derive_seed, proposal_uniforms, uniforms


def philox(counter: int, seed: int, stream: int = 0) -> list[int]:
    """One block of Philox4x64-10 as its paper describes it, in Python integers."""
    words, keys, low = [counter, 0, 0, 0], [seed, stream], 2**64 - 1
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [(right >> 64) ^ words[1] ^ keys[0], right & low, (left >> 64) ^ words[3] ^ keys[1], left & low]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & low, (keys[1] + 0xBB67AE8584CAA73B) & low]
    return words


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_numbers_are_those_of_the_paper(seed: int) -> None:
    # A change here changes every sampled answer of every run.
    table = uniforms(seed, 3)
    for position, row in enumerate(table.tolist()):
        block = philox(position + 1, seed)
        assert row == [(block[1 + purpose] >> 12) / 2**52 for purpose in Purpose]
    for position, row in enumerate(proposal_uniforms(seed, 3, 6).tolist()):
        words = [word for block in (1, 2) for word in philox(2 * position + block, seed, 1)]
        assert row == [(word >> 12) / 2**52 for word in words[:6]]


def test_longer_table_starts_with_the_shorter() -> None:
    assert np.array_equal(uniforms(3, 100)[:17], uniforms(3, 17))
    assert np.array_equal(proposal_uniforms(3, 100, 7)[:17], proposal_uniforms(3, 17, 7))


def test_every_key_part_matters() -> None:
    """No number decides two things: not a proposal in two rounds, nor a proposal and its acceptance."""
    table = np.concatenate([uniforms(5, 50).ravel(), proposal_uniforms(5, 50, 7).ravel()])
    assert len(np.unique(table)) == table.size
    assert not np.isin(uniforms(6, 50), table).any()
    assert not np.isin(proposal_uniforms(6, 50, 7), table).any()


def test_uniform_in_the_unit_interval() -> None:
    numbers = np.concatenate([uniforms(seed, 200).ravel() for seed in range(100)])
    numbers = np.concatenate([numbers, *(proposal_uniforms(seed, 100, 2).ravel() for seed in range(100))])
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    # 60,000 numbers: the standard deviation of a decile's count is 73, of the mean 0.0012.
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert np.abs(counts - 6000).max() < 5 * 73
    assert abs(numbers.mean() - 0.5) < 5 * 0.0012


def test_derived_seeds_tell_their_parts_apart() -> None:
    seeds = {derive_seed(1, "a"), derive_seed("1", "a"), derive_seed("a", 1), derive_seed(1, "b"), derive_seed(2, "a")}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "a") == derive_seed(1, "a")
