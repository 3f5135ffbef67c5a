"""Anchors, supervised positions and the block mask against brute force."""

import math

import numpy as np
import pytest
import torch

from deepspec.drafts.block.config import BlockConfig
from deepspec.drafts.block.supervision import block_supervision, draw_anchors
from deepspec.states.batch import PackedStates

LENGTHS = (12, 1, 30, 7)


def pack(lengths=LENGTHS, document_ids=(4, 9, 2, 7), seed=0, supervised=0.7):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    return PackedStates(
        input_ids_T=torch.randint(0, 50, (tokens,), generator=generator),
        loss_mask_T=torch.rand(tokens, generator=generator) < supervised,
        lengths=lengths,
        document_ids=document_ids,
        states_TLD=torch.zeros(tokens, 0, 4),
        final_TD=torch.zeros(tokens, 4),
    )


def supervise(batch, *, num_anchors=5, num_positions=4, seed=3, step=8):
    config = BlockConfig(num_draft_tokens=num_positions, num_anchors=num_anchors, loss_decay_gamma=4.0)
    return block_supervision(batch, config, loss_weights={"ce": 0.5, "tv": 0.0}, seed=seed, step=step)


def candidates_by_brute_force(batch):
    found, start = [], 0
    for length in batch.lengths:
        mask = batch.loss_mask_T[start : start + length].tolist()
        found.append([start + a for a in range(length) if a <= length - 2 and mask[a] and mask[a + 1]])
        start += length
    return found


def test_all_candidates_are_anchors_when_the_budget_allows():
    batch = pack()
    supervision = supervise(batch, num_anchors=100)
    expected = candidates_by_brute_force(batch)
    assert supervision.anchors_A.tolist() == [a for anchors in expected for a in anchors]
    assert supervision.anchors_per_document == tuple(len(a) for a in expected)
    assert supervision.anchors_per_document[1] == 0


def test_positions_labels_and_weights_by_brute_force():
    batch = pack()
    supervision = supervise(batch)
    starts = np.cumsum([0, *LENGTHS])
    rows, labels, weights, positions = [], [], [], []
    for index, anchor in enumerate(supervision.anchors_A.tolist()):
        document = int(np.searchsorted(starts, anchor, side="right")) - 1
        end = starts[document + 1]
        assert supervision.positions_A[index] == anchor - starts[document]
        alive = True
        positions.append([min(anchor + k, int(end) - 1) for k in range(4)])
        for k in range(4):
            alive = alive and anchor + k + 1 < end and bool(batch.loss_mask_T[anchor + k + 1])
            if alive:
                rows.append(4 * index + k)
                labels.append(int(batch.input_ids_T[anchor + k + 1]))
                weights.append(math.exp(-k / 4.0))
    assert supervision.rows_N.tolist() == rows
    assert supervision.labels_N.tolist() == labels
    assert supervision.weights_N.tolist() == pytest.approx(weights)
    assert supervision.draft_positions_AK.tolist() == positions
    assert supervision.totals == pytest.approx({"ce": sum(weights), "tv": sum(weights)})


def test_the_budget_is_per_document():
    batch = pack(supervised=1.1)
    assert supervise(batch, num_anchors=5).anchors_per_document == (5, 0, 5, 5)


def test_draws_hang_on_seed_step_and_document_alone():
    batch = pack()
    whole = supervise(batch).anchors_A.tolist()
    # The third document in a pack of its own.
    alone = PackedStates(
        batch.input_ids_T[13:43],
        batch.loss_mask_T[13:43],
        (30,),
        (2,),
        batch.states_TLD[13:43],
        batch.final_TD[13:43],
    )
    assert [a + 13 for a in supervise(alone).anchors_A.tolist()] == [a for a in whole if 13 <= a < 43]
    assert supervise(batch, step=9).anchors_A.tolist() != whole
    assert supervise(batch, seed=4).anchors_A.tolist() != whole
    other_ids = pack(document_ids=(4, 9, 3, 7))
    assert supervise(other_ids).anchors_A.tolist() != whole


def test_draws_are_uniform_without_replacement():
    mask = np.ones(11, dtype=bool)
    counts = np.zeros(11)
    for step in range(2000):
        anchors, number = draw_anchors(mask, (11,), (0,), num_anchors=3, seed=0, step=step)
        assert number == [3]
        assert len(set(anchors.tolist())) == 3
        counts[anchors] += 1
    # 10 candidates, 600 draws each; five standard deviations of a binomial are 102.
    assert counts[10] == 0
    assert np.abs(counts[:10] - 600).max() < 102


def test_a_pack_that_does_not_add_up_is_refused():
    batch = pack()
    with pytest.raises(ValueError, match="49 tokens"):
        PackedStates(
            batch.input_ids_T, batch.loss_mask_T, (12, 1, 30, 6), (1, 2, 3, 4), batch.states_TLD, batch.final_TD
        )
    with pytest.raises(ValueError, match=r"4 documents.*\b2\b"):
        PackedStates(batch.input_ids_T, batch.loss_mask_T, LENGTHS, (1, 2), batch.states_TLD, batch.final_TD)
