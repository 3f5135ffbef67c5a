"""The data order: each document once per epoch, the same forever, one integer to resume from."""

import itertools

import numpy as np
import pytest

from deepspec.states.order import DataOrder, pack

ROW_GROUPS = np.repeat(np.arange(10), 7)


def test_each_epoch_has_each_document_once_and_its_own_order() -> None:
    order = DataOrder(ROW_GROUPS, seed=3, window_row_groups=4)
    epochs = [order.epoch(number).tolist() for number in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(70))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert DataOrder(ROW_GROUPS, seed=3, window_row_groups=4).epoch(1).tolist() == epochs[1]
    assert DataOrder(ROW_GROUPS, seed=4, window_row_groups=4).epoch(1).tolist() != epochs[1]


def test_the_order_is_the_same_on_every_machine() -> None:
    order = DataOrder(np.array([0, 0, 1, 1, 2, 2]), seed=1, window_row_groups=2)
    assert order.documents(0, 12).tolist() == [3, 5, 4, 2, 1, 0, 5, 0, 4, 1, 3, 2]


def test_a_window_holds_few_row_groups() -> None:
    epoch = DataOrder(ROW_GROUPS, seed=0, window_row_groups=4).epoch(0)
    assert [len(set(ROW_GROUPS[epoch[start : start + 28]])) for start in (0, 28, 56)] == [4, 4, 2]
    assert epoch[:28].tolist() != sorted(epoch[:28].tolist())


def test_any_cut_of_the_sequence_is_the_sequence() -> None:
    order = DataOrder(ROW_GROUPS, seed=5)
    whole = order.documents(0, 300).tolist()
    cuts = [0, 1, 69, 70, 71, 200, 211, 300]
    pieces = [order.documents(a, b).tolist() for a, b in itertools.pairwise(cuts)]
    assert sum(pieces, []) == whole  # noqa: RUF017  a dozen lists
    assert whole[70:140] == order.epoch(1).tolist()
    assert order.documents(5, 5).tolist() == []


def test_a_full_shuffle_is_uniform_enough() -> None:
    places = np.array([np.argsort(DataOrder(np.zeros(16, int), seed=seed).epoch(0)) for seed in range(400)])
    assert np.abs(places.mean(0) - 7.5).max() < 1.0  # standard error of a uniform place: 4.6 / sqrt(400) = 0.23


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([3, 3, 3], 6, [[0, 1], [2]]),
        ([3, 9, 3], 6, [[0], [1], [2]]),
        ([], 6, []),
        ([2, 2, 2], 100, [[0, 1, 2]]),
    ],
)
def test_packing_keeps_to_the_budget(lengths: list[int], budget: int, expected: list[list[int]]) -> None:
    assert [list(batch) for batch in pack(lengths, budget)] == expected
