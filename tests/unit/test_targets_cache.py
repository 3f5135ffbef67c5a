"""The row cache by itself: what is kept, what is refused."""

import pytest
import torch

from deepspec.targets.cache import RowCache


def make(rows=3, capacity=6, layers=2):
    def storage():
        return [torch.zeros(rows, 2, capacity, 4) for _ in range(layers)]

    return RowCache(storage(), storage(), [0] * rows)


def write(cache, value, width, rows=3):
    new = torch.full((rows, 2, width, 4), float(value))
    return [cache.update(new, -new, layer) for layer in range(2)][-1]


def test_rows_of_one_length_grow_together():
    cache = make()
    write(cache, 1, 2)
    keys, values = write(cache, 2, 3)
    assert cache.lengths_B == [5, 5, 5]
    assert keys.shape == values.shape == (3, 2, 5, 4)
    assert keys[1, 0, :, 0].tolist() == [1, 1, 2, 2, 2]
    assert torch.equal(values, -keys)


def test_rows_of_several_lengths_write_at_their_own_end():
    cache = make()
    write(cache, 1, 3)
    cache.crop([3, 0, 2])
    keys, _ = write(cache, 2, 2)
    assert cache.lengths_B == [5, 2, 4]
    assert keys[0, 1, :, 0].tolist() == [1, 1, 1, 2, 2]
    assert keys[1, 1, :2, 0].tolist() == [2, 2]
    assert keys[2, 1, :4, 0].tolist() == [1, 1, 2, 2]


def test_views_share_memory_and_lengths():
    cache = make()
    row = cache.row(1)
    write(row, 4, 2, rows=1)
    assert cache.lengths_B == [0, 2, 0]
    assert row.lengths_B == [2]
    cache.move_row(1, 2)
    assert cache.lengths_B == [0, 2, 2]
    pair = cache.view(1, 2)
    keys, _ = write(pair, 5, 1, rows=2)
    assert keys[1, 0, :, 0].tolist() == [4, 4, 5]
    pair.crop([1, 3])
    assert cache.lengths_B == [0, 1, 3]
    cache.reset_row(2)
    assert pair.lengths_B == [1, 0]


def test_masks_are_causal_behind_each_rows_end():
    cache = make()
    assert cache.mask(1) is None
    assert cache.mask(4) is None
    write(cache, 1, 3)
    assert cache.mask(1) is None
    assert cache.mask(2).tolist() == [[[[True, True, True, True, False], [True] * 5]]]
    cache.crop([3, 1, 0])
    mask = cache.mask(2)
    assert mask.shape == (3, 1, 2, 5)
    assert mask[1, 0].tolist() == [[True, True, False, False, False], [True, True, True, False, False]]
    assert mask[2, 0].tolist() == [[True, False, False, False, False], [True, True, False, False, False]]
    assert cache.mask(1).shape == (3, 1, 1, 4)


def test_what_cannot_be_is_refused():
    cache = make()
    with pytest.raises(ValueError, match=r"\b7\b.*\b6\b"):
        write(cache, 1, 7)
    write(cache, 1, 4)
    with pytest.raises(ValueError, match=r"2 lengths.*3 rows"):
        cache.crop([1, 1])
    with pytest.raises(ValueError, match=r"row 2 .*\b4\b.*\b5\b"):
        cache.crop([1, 1, 5])
