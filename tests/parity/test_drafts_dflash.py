"""DFlash in both layouts of its positions against the naive formulas, and its training blocks against its decoding."""

import pytest
import torch
import torch.nn.functional as F

import deepspec.targets
from deepspec.drafts import ALGORITHMS
from tests.fixtures.drafts import (
    FAMILIES,
    GEMMA,
    GEMMA_OWN_VALUES,
    LAYERS,
    NUM_DRAFT_TOKENS,
    QWEN,
    batch_of,
    randomised,
)
from tests.parity.test_drafts_decoding import TOLERANCE, Forced, truth
from tests.parity.test_drafts_dspark import RELATIVE_FROBENIUS, Naive, anchors_by_document, relative

ALGORITHM = ALGORITHMS["dflash"]


@pytest.fixture(autouse=True)
def _toy_family(monkeypatch):
    monkeypatch.setattr(deepspec.targets, "FAMILIES", FAMILIES)


def config_of(**fields):
    common = {"num_draft_tokens": NUM_DRAFT_TOKENS, "num_layers": 2, "target_layer_ids": LAYERS, "mask_token_id": 36}
    return ALGORITHM.Config(**common, **({"num_anchors": 5} | fields))


class NaiveDFlash(Naive):
    """No heads; in place, the anchor's own position predicts nothing."""

    def block(self, states_TLD, ids, anchor):
        skipped = int(self.config.slots == "in_place")
        hidden_KD = self.hidden(states_TLD, ids[0], anchor, size=NUM_DRAFT_TOKENS + skipped)[skipped:]
        return torch.stack([self.cap(self.linear(h, "lm_head")) for h in hidden_KD]), []

    def factors(self):
        return {"ce": 1.0, "tv": 0.0}


@pytest.mark.parametrize("slots", ["next_token", "in_place"])
@pytest.mark.parametrize("spec", [QWEN, GEMMA, GEMMA_OWN_VALUES], ids=["qwen3", "gemma4", "own-values"])
def test_loss_gradients_and_metrics_are_the_formulas(spec, slots):
    config = config_of(slots=slots)
    draft = randomised(ALGORITHM, config, spec)
    batch = batch_of((9, 14, 5))
    supervision = ALGORITHM.supervise(batch, config, seed=1, step=2)
    output = ALGORITHM.loss(draft, batch, supervision, supervision.totals)
    output.loss.backward()

    naive = NaiveDFlash(draft, config, spec)
    expected, metrics = naive.loss(batch, anchors_by_document(supervision))
    expected.backward()

    assert output.loss.item() == pytest.approx(expected.item(), rel=RELATIVE_FROBENIUS)
    found = {name: float(total / count) for name, (total, count) in output.sums.items()}
    assert found == pytest.approx(metrics, rel=RELATIVE_FROBENIUS)
    for name, weight in draft.named_parameters():
        if name in ("embed_tokens.weight", "lm_head.weight"):
            assert weight.grad is None
            continue
        assert naive.w[name].grad.norm() > 0, name
        assert relative(weight.grad, naive.w[name].grad) <= RELATIVE_FROBENIUS, name


@pytest.mark.parametrize("slots", ["next_token", "in_place"])
@pytest.mark.parametrize("spec", [QWEN, GEMMA, GEMMA_OWN_VALUES], ids=["qwen3", "gemma4", "own-values"])
def test_training_blocks_are_the_decoding(spec, slots):
    config = config_of(slots=slots, num_anchors=99)
    draft = randomised(ALGORITHM, config, spec)
    batch = batch_of((24,))
    supervision = ALGORITHM.supervise(batch, config, seed=0, step=0)
    with torch.no_grad():
        output = draft(batch, supervision)
        logits_NV = F.linear(output.hidden_ND, output.head_VD)
        if output.softcap:
            logits_NV = output.softcap * torch.tanh(logits_NV / output.softcap)
    drafter = ALGORITHM.drafter(draft, config)
    assert drafter.num_draft_tokens == NUM_DRAFT_TOKENS
    drafter.allocate(1, 24)
    known = 0
    for block, anchor in enumerate(supervision.anchors_A.tolist()):
        new = slice(known, anchor)
        drafter.advance([0], batch.states_TLD[None, new], batch.input_ids_T[None, new], [known], [anchor - known])
        known = anchor
        forced = Forced(truth(batch, [anchor]))
        proposal = drafter.propose([0], batch.input_ids_T[anchor][None], [anchor], forced)
        assert proposal.confidence_RK is None
        for place, row in enumerate(supervision.rows_N.tolist()):
            if row // NUM_DRAFT_TOKENS == block:
                torch.testing.assert_close(forced.logits[row % NUM_DRAFT_TOKENS][0], logits_NV[place], **TOLERANCE)


@pytest.mark.parametrize("slots", ["next_token", "in_place"])
def test_nothing_supervised_is_a_loss_of_zero(slots):
    config = config_of(slots=slots)
    batch = batch_of((6, 4))
    batch.loss_mask_T[:] = False
    supervision = ALGORITHM.supervise(batch, config, seed=0, step=0)
    output = ALGORITHM.loss(randomised(ALGORITHM, config, QWEN), batch, supervision, supervision.totals)
    assert output.loss.item() == 0.0
