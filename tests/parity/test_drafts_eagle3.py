"""Eagle3 against a naive implementation written from the formulas, and its training steps against its decoding.

Python loops, one document, one index and one step at a time; full logits; for both families.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

import deepspec.targets
from deepspec.drafts import ALGORITHMS
from deepspec.states.batch import PackedStates
from tests.fixtures.drafts import FAMILIES, GEMMA, GEMMA_OWN_VALUES, LAYERS, QWEN, batch_of, randomised
from tests.parity.test_drafts_decoding import TOLERANCE, Forced
from tests.parity.test_drafts_dspark import Naive, relative

ALGORITHM = ALGORITHMS["eagle3"]
STEPS = 4
# fp32 sums in another order; gradients of norms and soft caps add a few units.
RELATIVE_FROBENIUS = 1e-5


@pytest.fixture(autouse=True)
def _toy_family(monkeypatch):
    monkeypatch.setattr(deepspec.targets, "FAMILIES", FAMILIES)


def config_of(**fields):
    return ALGORITHM.Config(num_draft_tokens=STEPS, target_layer_ids=LAYERS, **fields)


def draft_of(config, spec, dtype=torch.float32):
    return randomised(ALGORITHM, config, spec, dtype)


class NaiveEagle3(Naive):
    """The formulas, for one draft's weights."""

    def unroll(self, states_TLD, ids):
        """Un-normed outputs [step][index] of one document; indices whose token lies outside it are left out."""
        length = len(ids)
        hidden = [self.linear(states_TLD[t].flatten(), "fc") for t in range(length)]
        kept = {}  # (layer, step, index) -> key and value
        outputs = []
        for step in range(STEPS):
            count = length - 1 - step
            outputs.append([self.one(hidden[t], ids[t + 1 + step], t, step, kept) for t in range(max(0, count))])
            hidden = outputs[-1]
        return outputs

    def one(self, x, token, t, step, kept):
        embedded = self.w["embed_tokens.weight"][token] * self.facts.embedding_scale
        for layer in range(self.config.num_layers):
            p = f"layers.{layer}."
            read = torch.cat([self.norm(embedded, p + "input_layernorm"), self.norm(x, p + "hidden_norm")])
            kept[layer, step, t] = self.key_value(read, layer, t + step)
            seen = [kept[layer, 0, before] for before in range(t + 1)]
            seen += [kept[layer, own, t] for own in range(1, step + 1)]
            query = self.linear(read, p + "self_attn.q_proj").view(4, 8)
            query = self.rope(self.norm(query, p + "self_attn.q_norm"), t + step)
            heads = []
            for head in range(4):
                scores = torch.stack([(query[head] * key[head // 2]).sum() for key, _ in seen])
                weights = torch.softmax(scores * self.facts.scale, 0)
                heads.append(sum(w * value[head // 2] for w, (_, value) in zip(weights, seen, strict=True)))
            branch = self.linear(torch.cat(heads), p + "self_attn.o_proj")
            if self.facts.gemma_like:
                x = x + self.norm(branch, p + "post_attention_layernorm")
                branch = self.mlp(self.norm(x, p + "pre_feedforward_layernorm"), p)
                x = (x + self.norm(branch, p + "post_feedforward_layernorm")) * self.scalars[p + "layer_scalar"]
            else:
                x = x + branch
                x = x + self.mlp(self.norm(x, p + "post_attention_layernorm"), p)
        return x

    def logits(self, x):
        return self.cap(self.linear(self.norm(x, "norm"), "lm_head"))

    def loss(self, batch):
        """(loss, metrics) of a batch."""
        documents, stars, start = [], {}, 0
        for number, length in enumerate(batch.lengths):
            span = slice(start, start + length)
            ids, mask, final = batch.input_ids_T[span].tolist(), batch.loss_mask_T[span].tolist(), batch.final_TD[span]
            outputs = self.unroll(batch.states_TLD[span], ids)
            terms = []
            for step in range(STEPS):
                for t in range(length):
                    if t + step >= length - 1 or not mask[t + step]:
                        continue
                    p = torch.softmax(self.cap(self.linear(final[t + 1 + step], "lm_head")), 0)
                    q = torch.softmax(self.logits(outputs[step][t]), 0)
                    terms.append(0.8**step * -(p * torch.log(q)).sum())
                    stars[number, t, step] = min(max(1 - (p - q).abs().sum().item() / 2, 0.0), 1.0)
            documents.append(sum(terms) / length)
            start += length
        loss = sum(documents) / len(documents)
        metrics = {"loss_soft_ce": loss.item()}
        for step in range(STEPS):
            at_step = [star for (_, _, s), star in stars.items() if s == step]
            metrics[f"accept_rate@{step}"] = sum(at_step) / len(at_step)
        chains = {(number, t) for number, t, step in stars if step == 0}  # a round begins at step 0
        taus = []
        for number, t in chains:
            tau, product = 1.0, 1.0
            for step in range(STEPS):
                product *= stars.get((number, t, step), 0.0)
                tau += product
            taus.append(tau)
        metrics["tau_probabilistic"] = sum(taus) / len(taus)
        return loss, metrics


@pytest.mark.parametrize(
    ("num_layers", "dtype", "error"),  # fp64 with rotary angles in fp32, as everywhere
    [(1, torch.float32, RELATIVE_FROBENIUS), (2, torch.float64, 1e-6)],
)
@pytest.mark.parametrize("spec", [QWEN, GEMMA, GEMMA_OWN_VALUES], ids=["qwen3", "gemma4", "own-values"])
def test_loss_gradients_and_metrics_are_the_formulas(spec, num_layers, dtype, error):
    config = config_of(num_layers=num_layers)
    draft = draft_of(config, spec, dtype)
    batch = batch_of((9, 2, 12, 5), dtype)
    supervision = ALGORITHM.supervise(batch, config, seed=1, step=2)
    output = ALGORITHM.loss(draft, batch, supervision, supervision.totals)
    output.loss.backward()

    # The reference in fp64: what is left is our rounding alone.
    naive = NaiveEagle3(copy.deepcopy(draft).double(), config, spec)
    expected, metrics = naive.loss(batch.to("cpu", torch.float64))
    expected.backward()

    assert output.loss.item() == pytest.approx(expected.item(), rel=error)
    found = {name: float(total / count) for name, (total, count) in output.sums.items()}
    assert found == pytest.approx(metrics, rel=error)
    for name, weight in draft.named_parameters():
        if name in ("embed_tokens.weight", "lm_head.weight"):
            assert weight.grad is None
            continue
        reference = naive.w[name].grad
        assert reference is not None, name
        assert reference.norm() > 0, name
        assert relative(weight.grad, reference) <= error, name


def test_only_rows_that_reach_something_supervised_are_computed():
    batch = batch_of((12,))
    batch.loss_mask_T[:] = False
    batch.loss_mask_T[7:9] = True
    supervision = ALGORITHM.supervise(batch, config_of(), seed=0, step=0)
    rows = [step.indices_N.tolist() for step in supervision.steps]
    assert rows == [list(range(12)), [4, 5, 6, 7], [4, 5, 6], [4, 5]]
    supervised = [step.indices_N[step.supervised_M].tolist() for step in supervision.steps]
    assert supervised == [[7, 8], [6, 7], [5, 6], [4, 5]]


def test_nothing_supervised_is_a_loss_of_zero():
    batch = batch_of((6,))
    batch.loss_mask_T[:] = False
    config = config_of()
    supervision = ALGORITHM.supervise(batch, config, seed=0, step=0)
    output = ALGORITHM.loss(draft_of(config, QWEN), batch, supervision, supervision.totals)
    assert output.loss.item() == 0.0
    assert output.sums["tau_probabilistic"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("parts", [(4, 4), (1,) * 8, (3, 5)])
def test_a_step_is_the_same_however_it_was_split(parts):
    config = config_of()
    lengths = (9, 14, 6, 11, 8, 12, 10, 13)
    batch = batch_of(lengths, dtype=torch.float64)

    def step(sizes):
        draft = draft_of(config, QWEN, torch.float64)
        first, loss = 0, 0.0
        for size in sizes:
            span = slice(sum(lengths[:first]), sum(lengths[: first + size]))
            piece = PackedStates(
                batch.input_ids_T[span],
                batch.loss_mask_T[span],
                lengths[first : first + size],
                batch.document_ids[first : first + size],
                batch.states_TLD[span],
                batch.final_TD[span],
            )
            first += size
            supervision = ALGORITHM.supervise(piece, config, seed=3, step=9)
            output = ALGORITHM.loss(draft, piece, supervision, {"soft_ce": 8.0})
            output.loss.backward()
            loss += output.loss.item()
        return loss, {n: p.grad for n, p in draft.named_parameters() if p.requires_grad}

    loss, gradients = step(parts)
    whole_loss, whole = step((8,))
    assert loss == pytest.approx(whole_loss, rel=1e-10)
    for name, gradient in gradients.items():
        # fp64; only the order of additions differs.
        assert relative(gradient, whole[name]) <= 1e-10, name


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("spec", [QWEN, GEMMA, GEMMA_OWN_VALUES], ids=["qwen3", "gemma4", "own-values"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2]], ids=str)
def test_training_steps_are_the_decoding(spec, num_layers, order):
    config = config_of(num_layers=num_layers)
    draft = draft_of(config, spec)
    lengths = (22, 17, 26)
    batch = batch_of(lengths)
    batch.loss_mask_T[:] = True
    supervision = ALGORITHM.supervise(batch, config, seed=0, step=0)
    with torch.no_grad():
        output = draft(batch, supervision)
        logits_MV = F.linear(output.hidden_MD, output.head_VD)
        if output.softcap:
            logits_MV = output.softcap * torch.tanh(logits_MV / output.softcap)
    places = [(int(t), step) for step, s in enumerate(supervision.steps) for t in s.indices_N[s.supervised_M]]
    trained = dict(zip(places, logits_MV, strict=True))
    starts = [0, 22, 39]
    drafter = ALGORITHM.drafter(draft, config)
    drafter.allocate(3, 32)
    # A former request's context lies in the memory.
    drafter.advance([0, 1, 2], torch.full((3, 30, 3, 24), 5.0), torch.zeros(3, 30, dtype=torch.long), [0] * 3, [30] * 3)
    for row in range(3):
        drafter.reset(row)
    known = [0, 0, 0]
    for turn in range(4):
        anchors = [known[row] + 1 + (turn * 2 + row) % 4 for row in order]
        counts = [anchor - known[row] for anchor, row in zip(anchors, order, strict=True)]
        states = torch.full((len(order), max(counts) + 1, 3, 24), torch.nan)
        ids = torch.zeros(states.shape[:2], dtype=torch.long)
        for index, row in enumerate(order):
            span = slice(starts[row] + known[row], starts[row] + known[row] + counts[index])
            states[index, : counts[index]] = batch.states_TLD[span]
            ids[index, : counts[index]] = batch.input_ids_T[span]
        # Lists and tensors are both taken.
        rows = torch.tensor(order) if turn % 2 else order
        drafter.advance(rows, states, ids, [known[row] for row in order], torch.tensor(counts))
        for anchor, row in zip(anchors, order, strict=True):
            known[row] = anchor
        if turn == 1:
            continue  # context that arrives without a proposal in between
        packed = torch.tensor([anchor + starts[row] for anchor, row in zip(anchors, order, strict=True)])
        truth = batch.input_ids_T[packed[:, None] + torch.arange(1, STEPS + 1)]
        forced = Forced(truth)
        proposal = drafter.propose(rows, batch.input_ids_T[packed], anchors, forced)
        for index, anchor in enumerate(packed.tolist()):
            for position in range(STEPS):
                torch.testing.assert_close(forced.logits[position][index], trained[anchor - 1, position], **TOLERANCE)
        assert torch.equal(proposal.tokens_RK, truth)
        assert proposal.confidence_RK is None


def test_positions_that_do_not_follow_are_refused():
    config = config_of()
    drafter = ALGORITHM.drafter(draft_of(config, QWEN), config)
    drafter.allocate(1, 8)
    states, ids = torch.zeros(1, 9, 3, 24), torch.zeros(1, 9, dtype=torch.long)
    with pytest.raises(ValueError, match="no context"):
        drafter.propose([0], ids[:, 0], [0], Forced(ids[:, :STEPS]))
    drafter.advance([0], states, ids, [0], [4])
    with pytest.raises(ValueError, match=r"\b4\b.*\b5\b"):
        drafter.advance([0], states, ids, [5], [1])
    with pytest.raises(ValueError, match=r"\b4\b.*anchor at 3"):
        drafter.propose([0], ids[:, 0], [3], Forced(ids[:, :STEPS]))
    with pytest.raises(ValueError, match=r"\b8\b"):
        drafter.advance([0], states, ids, [4], [5])
