"""One training block equals the decode pass: the drafter, fed with the true tokens, gives the training logits.

Rows at different lengths, contexts that arrive in several pieces, rows that are reused, in any order.
"""

import pytest
import torch
import torch.nn.functional as F

import deepspec.targets
from tests.fixtures.drafts import (
    ALGORITHM,
    FAMILIES,
    GEMMA,
    GEMMA_OWN_VALUES,
    NUM_DRAFT_TOKENS,
    QWEN,
    TOY,
    batch_of,
    config_of,
    draft_of,
)

SPECS = {"qwen3": QWEN, "gemma4": GEMMA, "gemma4-own-values": GEMMA_OWN_VALUES, "toy": TOY}
TOLERANCE = {"rtol": 1e-5, "atol": 5e-5}  # fp32 logits of order 1; the order of summation hangs on the processor, too.


@pytest.fixture(autouse=True)
def _toy_family(monkeypatch):
    monkeypatch.setattr(deepspec.targets, "FAMILIES", FAMILIES)


class Forced:
    """A `sample` that says what was going to be drawn instead of drawing, and keeps the logits it was shown."""

    def __init__(self, tokens_RK):
        self.tokens_RK = tokens_RK
        self.logits = []

    def __call__(self, logits_RV, position):
        self.logits.append(logits_RV)
        return self.tokens_RK[:, position], torch.softmax(logits_RV, dim=-1)


def training_blocks(draft, config, batch):
    """Per anchor (packed index): training's logits [K', V] and confidences [K'] of its supervised positions."""
    supervision = ALGORITHM.supervise(batch, config, seed=0, step=0)
    with torch.no_grad():
        output = draft(batch, supervision)
        logits = F.linear(output.hidden_ND, output.head_VD)
        if output.softcap:
            logits = output.softcap * torch.tanh(logits / output.softcap)
        logits = logits + F.linear(output.factors_Nr, output.factor_head_Vr)
    blocks = {}
    for place, row in enumerate(supervision.rows_N.tolist()):
        anchor = int(supervision.anchors_A[row // NUM_DRAFT_TOKENS])
        blocks.setdefault(anchor, []).append((logits[place], torch.sigmoid(output.confidence_N[place])))
    return blocks


def check(proposal, forced, rows):
    """Compare every supervised position of the training blocks `rows` with what the drafter computed."""
    for index, positions in enumerate(rows):
        for position, (logits, confidence) in enumerate(positions):
            torch.testing.assert_close(forced.logits[position][index], logits, **TOLERANCE)
            torch.testing.assert_close(proposal.confidence_RK[index, position], confidence, **TOLERANCE)
    assert torch.equal(proposal.tokens_RK, forced.tokens_RK)
    assert proposal.probs_RKV.shape == (len(rows), NUM_DRAFT_TOKENS, 37)


def truth(batch, anchors):
    end = len(batch.input_ids_T) - 1
    return torch.stack([batch.input_ids_T[[min(a + k + 1, end) for k in range(NUM_DRAFT_TOKENS)]] for a in anchors])


@pytest.mark.parametrize("head", ["vanilla", "gated", "rnn"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_one_row_from_prefill_to_the_last_anchor(spec, head):
    config = config_of(markov_head=head, num_anchors=99)
    draft = draft_of(config, spec)
    batch = batch_of((24,))
    blocks = training_blocks(draft, config, batch)
    assert len(blocks) > 8
    drafter = ALGORITHM.drafter(draft, config)
    drafter.allocate(1, 24)
    known = 0
    for anchor, positions in blocks.items():
        drafter.advance(
            [0], batch.states_TLD[None, known:anchor], batch.input_ids_T[None, known:anchor], [known], [anchor - known]
        )
        known = anchor
        forced = Forced(truth(batch, [anchor]))
        proposal = drafter.propose([0], batch.input_ids_T[anchor][None], [anchor], forced)
        check(proposal, forced, [positions])


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2]], ids=str)
@pytest.mark.parametrize("spec", [QWEN, GEMMA], ids=["qwen3", "gemma4"])
def test_rows_at_different_lengths_in_any_order(spec, order):
    config = config_of(num_anchors=99)
    draft = draft_of(config, spec)
    lengths = (22, 17, 26)
    batch = batch_of(lengths)
    blocks = training_blocks(draft, config, batch)
    starts = [0, 22, 39]
    drafter = ALGORITHM.drafter(draft, config)
    drafter.allocate(3, 32)
    # A former request's context lies in the memory.
    drafter.advance([0, 1, 2], torch.full((3, 30, 3, 24), 5.0), torch.zeros(3, 30, dtype=torch.long), [0] * 3, [30] * 3)
    for row in range(3):
        drafter.reset(row)
    known = [0, 0, 0]
    for turn in range(4):
        anchors = []
        for row in order:
            mine = [a - starts[row] for a in blocks if starts[row] <= a < starts[row] + lengths[row]]
            anchors.append(mine[2 * turn + row % 2])
        counts = [anchor - known[row] for anchor, row in zip(anchors, order, strict=True)]
        states = torch.full((len(order), max(counts) + 1, 3, 24), torch.nan)
        for index, row in enumerate(order):
            first = starts[row] + known[row]
            states[index, : counts[index]] = batch.states_TLD[first : first + counts[index]]
        ids = torch.zeros(states.shape[:2], dtype=torch.long)
        # Lists and tensors are both taken.
        rows = torch.tensor(order) if turn % 2 else order
        drafter.advance(rows, states, ids, [known[row] for row in order], torch.tensor(counts))
        packed = [anchor + starts[row] for anchor, row in zip(anchors, order, strict=True)]
        forced = Forced(truth(batch, packed))
        proposal = drafter.propose(rows, batch.input_ids_T[packed], anchors, forced)
        check(proposal, forced, [blocks[a] for a in packed])
        for anchor, row in zip(anchors, order, strict=True):
            known[row] = anchor


def test_equal_lengths_need_no_mask_and_agree():
    config = config_of(num_anchors=99)
    draft = draft_of(config, QWEN)
    batch = batch_of((20, 20))
    blocks = training_blocks(draft, config, batch)
    anchor = next(a for a in blocks if a + 20 in blocks)
    drafter = ALGORITHM.drafter(draft, config)
    drafter.allocate(2, 20)
    states = batch.states_TLD.view(2, 20, 3, 24)[:, :anchor]
    drafter.advance([0, 1], states, batch.input_ids_T.view(2, 20)[:, :anchor], [0, 0], [anchor] * 2)
    forced = Forced(truth(batch, [anchor, anchor + 20]))
    proposal = drafter.propose([0, 1], batch.input_ids_T[[anchor, anchor + 20]], [anchor] * 2, forced)
    check(proposal, forced, [blocks[anchor], blocks[anchor + 20]])


def test_positions_that_do_not_follow_are_refused():
    config = config_of()
    drafter = ALGORITHM.drafter(draft_of(config, QWEN), config)
    drafter.allocate(1, 8)
    states, ids = torch.zeros(1, 9, 3, 24), torch.zeros(1, 9, dtype=torch.long)
    drafter.advance([0], states, ids, [0], [4])
    with pytest.raises(ValueError, match=r"\b4\b.*\b5\b"):
        drafter.advance([0], states, ids, [5], [1])
    with pytest.raises(ValueError, match=r"\b4\b.*anchor at 3"):
        drafter.propose([0], ids[:, 0], [3], Forced(ids[:, :NUM_DRAFT_TOKENS]))
    with pytest.raises(ValueError, match=r"\b8\b"):
        drafter.advance([0], states, ids, [4], [5])


def test_greedy_proposals_carry_no_distributions():
    config = config_of(confidence_head=False)
    drafter = ALGORITHM.drafter(draft_of(config, QWEN), config)
    drafter.allocate(1, 8)
    proposal = drafter.propose([0], torch.tensor([3]), [0], lambda logits_RV, _: (logits_RV.argmax(-1), None))
    assert proposal.probs_RKV is None
    assert proposal.confidence_RK is None
    assert proposal.tokens_RK.shape == (1, NUM_DRAFT_TOKENS)
