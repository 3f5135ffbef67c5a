"""DSpark against a naive implementation written from the formulas: python loops, one anchor at a time, full logits.

Value, every gradient and every logged metric; for each sequential head and each family. What a family does is written
down here once more, not read off its table. In bf16, where rounding tells them apart, the parts that differ are
compared with Hugging Face's.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch

import deepspec.targets
from deepspec.states.batch import PackedStates
from deepspec.targets.directory import read_spec
from deepspec.targets.layers import FusedLayer, attend
from deepspec.targets.rotary import Rotary
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
from tests.fixtures.targets import tiny_gemma4

# fp32 sums in another order; gradients of norms and soft caps add a few units.
RELATIVE_FROBENIUS = 1e-5


@pytest.fixture(autouse=True)
def _toy_family(monkeypatch):
    monkeypatch.setattr(deepspec.targets, "FAMILIES", FAMILIES)


@dataclass(frozen=True)
class Facts:
    """What a family's targets of this size do."""

    scale: float = 8**-0.5
    embedding_scale: float = 1.0
    cap: float | None = None
    turning_pairs: int = 4
    gemma_like: bool = False
    values_from_keys: bool = False


GEMMA_FACTS = Facts(
    scale=1.0, embedding_scale=24**0.5, cap=2.5, turning_pairs=2, gemma_like=True, values_from_keys=True
)
FACTS = {
    id(QWEN): Facts(),
    id(GEMMA): GEMMA_FACTS,
    id(GEMMA_OWN_VALUES): replace(GEMMA_FACTS, values_from_keys=False),
    id(TOY): replace(GEMMA_FACTS, turning_pairs=4),
}


class Naive:
    """The formulas, for one draft's weights."""

    def __init__(self, draft, config, spec):
        self.w = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in draft.named_parameters()}
        self.scalars = dict(draft.named_buffers())
        self.config, self.facts = config, FACTS[id(spec)]

    def norm(self, x, name):
        normed = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)
        return normed if name is None else normed * self.w[name + ".weight"]

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T

    def cap(self, z):
        c = self.facts.cap
        return z if c is None else c * torch.tanh(z / c)

    def rope(self, x, position):
        """x [heads, 8] at one position: pair (i, i + 4) turns by position / theta^(i/4), if it does."""
        out = x.clone()
        for i in range(self.facts.turning_pairs):
            angle = position / 100.0 ** (i / 4)
            out[:, i] = x[:, i] * math.cos(angle) - x[:, i + 4] * math.sin(angle)
            out[:, i + 4] = x[:, i + 4] * math.cos(angle) + x[:, i] * math.sin(angle)
        return out

    def key_value(self, x, layer, position):
        p = f"layers.{layer}.self_attn."
        raw = self.linear(x, p + "k_proj").view(2, 8)
        value = raw if self.facts.values_from_keys else self.linear(x, p + "v_proj").view(2, 8)
        key = self.rope(self.norm(raw, p + "k_norm"), position)
        return key, self.norm(value, None) if self.facts.gemma_like else value

    def attention(self, x_KD, context_TD, layer, anchor):
        p = f"layers.{layer}.self_attn."
        pairs = [self.key_value(context_TD[t], layer, t) for t in range(anchor)]
        pairs += [self.key_value(x_KD[k], layer, anchor + k) for k in range(len(x_KD))]
        outputs = []
        for k in range(len(x_KD)):
            query = self.rope(self.norm(self.linear(x_KD[k], p + "q_proj").view(4, 8), p + "q_norm"), anchor + k)
            heads = []
            for head in range(4):
                scores = torch.stack([(query[head] * key[head // 2]).sum() for key, _ in pairs])
                weights = torch.softmax(scores * self.facts.scale, 0)
                heads.append(sum(w * value[head // 2] for w, (_, value) in zip(weights, pairs, strict=True)))
            outputs.append(self.linear(torch.cat(heads), p + "o_proj"))
        return torch.stack(outputs)

    def mlp(self, x, p):
        gate = self.linear(x, p + "mlp.gate_proj")
        act = (
            torch.nn.functional.gelu(gate, approximate="tanh") if self.facts.gemma_like else gate * torch.sigmoid(gate)
        )
        return self.linear(act * self.linear(x, p + "mlp.up_proj"), p + "mlp.down_proj")

    def hidden(self, states_TLD, token, anchor, size=NUM_DRAFT_TOKENS):
        """Normed output [size, D] of the block at `anchor` whose token is `token`."""
        context_TD = self.norm(self.linear(states_TLD.flatten(1), "fc"), "hidden_norm")
        x = self.w["embed_tokens.weight"][[token] + [self.config.mask_token_id] * (size - 1)]
        x = x * self.facts.embedding_scale
        for layer in range(self.config.num_layers):
            p = f"layers.{layer}."
            branch = self.attention(self.norm(x, p + "input_layernorm"), context_TD, layer, anchor)
            if self.facts.gemma_like:
                x = x + self.norm(branch, p + "post_attention_layernorm")
                branch = self.mlp(self.norm(x, p + "pre_feedforward_layernorm"), p)
                x = (x + self.norm(branch, p + "post_feedforward_layernorm")) * self.scalars[p + "layer_scalar"]
            else:
                x = x + branch
                x = x + self.mlp(self.norm(x, p + "post_attention_layernorm"), p)
        return self.norm(x, "norm")

    def block(self, states_TLD, ids, anchor):
        """Logits [K, V] and confidence logits [K] of one block; `ids` are the previous tokens of its positions."""
        hidden_KD = self.hidden(states_TLD, ids[0], anchor)
        logits, confidences = [], []
        state = torch.zeros(self.config.markov_rank, dtype=hidden_KD.dtype)
        for k in range(NUM_DRAFT_TOKENS):
            h, row = hidden_KD[k], self.w["markov_head.markov_w1.weight"][ids[k]]
            factor = row
            if self.config.markov_head == "gated":
                gate = self.linear(torch.cat([h, row]), "markov_head.gate_proj") + self.w["markov_head.gate_proj.bias"]
                factor = torch.sigmoid(gate) * row
            elif self.config.markov_head == "rnn":
                z = torch.cat([state, row, h])
                out = self.linear(z, "markov_head.joint_proj") + self.w["markov_head.joint_proj.bias"]
                gate, candidate, output = out[:6], out[6:12], out[12:]
                factor = torch.tanh(output)
                state = torch.sigmoid(gate) * state + (1 - torch.sigmoid(gate)) * torch.tanh(candidate)
            logits.append(self.cap(self.linear(h, "lm_head")) + self.linear(factor, "markov_head.markov_w2"))
            if self.config.confidence_head:
                features = torch.cat([h, row]) if self.config.confidence_head_with_markov else h
                weight = self.w["confidence_head.proj.weight"][0]
                confidences.append((features * weight).sum() + self.w["confidence_head.proj.bias"][0])
        return torch.stack(logits), confidences

    def factors(self):
        return {"ce": 0.1, "tv": 0.9} | ({"confidence": 1.0} if self.config.confidence_head else {})

    def loss(self, batch, anchors_of_documents):
        """(loss, metrics) of a batch whose anchors are known, normalised over this batch."""
        rows, blocks, start = [], [], 0
        for length, anchors in zip(batch.lengths, anchors_of_documents, strict=True):
            ids = batch.input_ids_T[start : start + length].tolist()
            mask = batch.loss_mask_T[start : start + length].tolist()
            states, final = batch.states_TLD[start : start + length], batch.final_TD[start : start + length]
            for anchor in anchors:
                previous = [ids[min(anchor + k, length - 1)] for k in range(NUM_DRAFT_TOKENS)]
                logits, confidences = self.block(states, previous, anchor)
                accepted = []
                for k in range(NUM_DRAFT_TOKENS):
                    if anchor + k + 1 >= length or not mask[anchor + k + 1]:
                        break
                    p = torch.softmax(self.cap(self.linear(final[anchor + k], "lm_head")), 0)
                    q = torch.softmax(logits[k], 0)
                    tv = (q - p).abs().sum()
                    star = min(max(1 - tv.item() / 2, 0.0), 1.0)
                    accepted.append(star)
                    row = {"k": k, "w": math.exp(-k / 4.0), "star": star}
                    row |= {"ce": -torch.log(q[ids[anchor + k + 1]]), "tv": tv}
                    if confidences:
                        c = torch.sigmoid(confidences[k])
                        row |= {"c": c.item(), "confidence": -(star * torch.log(c) + (1 - star) * torch.log(1 - c))}
                    rows.append(row)
                blocks.append(1 + sum(math.prod(accepted[: j + 1]) for j in range(len(accepted))))
            start += length
        total = sum(row["w"] for row in rows)
        factors = self.factors()
        means = {term: sum(row["w"] * row[term] for row in rows) / total for term in factors}
        metrics = {f"loss_{term}": mean.item() for term, mean in means.items()}
        metrics["tau_probabilistic"] = sum(blocks) / len(blocks)
        for k in range(NUM_DRAFT_TOKENS):
            stars = [row["star"] for row in rows if row["k"] == k]
            metrics[f"accept_rate@{k}"] = sum(stars) / len(stars)
        if "confidence" in factors:
            errors = [(row["w"], row["c"] - row["star"]) for row in rows]
            metrics["confidence_abs_error"] = sum(w * abs(e) for w, e in errors) / total
            metrics["confidence_bias"] = sum(w * e for w, e in errors) / total
        return sum(factors[term] * means[term] for term in factors), metrics


def anchors_by_document(supervision):
    positions = supervision.positions_A.tolist()
    result = []
    for count in supervision.anchors_per_document:
        result.append(positions[:count])
        positions = positions[count:]
    return result


def relative(found, expected):
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        pytest.param(QWEN, {}, id="vanilla"),
        pytest.param(QWEN, {"markov_head": "gated"}, id="gated"),
        pytest.param(QWEN, {"markov_head": "rnn"}, id="rnn"),
        pytest.param(QWEN, {"confidence_head_with_markov": False}, id="confidence-alone"),
        pytest.param(QWEN, {"confidence_head": False}, id="no-confidence"),
        pytest.param(GEMMA, {}, id="gemma4"),
        pytest.param(GEMMA_OWN_VALUES, {"markov_head": "rnn"}, id="gemma4-own-values"),
        pytest.param(TOY, {"markov_head": "gated"}, id="toy-family"),
    ],
)
def test_loss_gradients_and_metrics_are_the_formulas(spec, fields):
    config = config_of(**fields)
    draft = draft_of(config, spec)
    batch = batch_of((9, 14, 5))
    supervision = ALGORITHM.supervise(batch, config, seed=1, step=2)
    output = ALGORITHM.loss(draft, batch, supervision, supervision.totals)
    output.loss.backward()

    naive = Naive(draft, config, spec)
    expected, metrics = naive.loss(batch, anchors_by_document(supervision))
    expected.backward()

    assert output.loss.item() == pytest.approx(expected.item(), rel=RELATIVE_FROBENIUS)
    assert {name: float(total / count) for name, (total, count) in output.sums.items()} == pytest.approx(
        metrics, rel=RELATIVE_FROBENIUS
    )
    for name, weight in draft.named_parameters():
        if name in ("embed_tokens.weight", "lm_head.weight"):
            assert weight.grad is None
            continue
        reference = naive.w[name].grad
        assert reference is not None, name
        assert reference.norm() > 0, name
        assert relative(weight.grad, reference) <= RELATIVE_FROBENIUS, name


def bf16(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@torch.no_grad()
@pytest.mark.parametrize("spec", [QWEN, GEMMA], ids=["qwen3", "gemma4"])
def test_norms_of_a_half_precision_draft_round_as_the_familys(spec):
    from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    draft = draft_of(config_of(), spec, dtype=torch.bfloat16)
    drafter = ALGORITHM.drafter(draft, config_of())
    x, small = bf16(64, 24, seed=1), bf16(64, 8, seed=2)
    for norm, value in ((draft.norm, x), (draft.hidden_norm, x), (draft.layers[0].self_attn.k_norm, small)):
        theirs, other = (Gemma4RMSNorm, Qwen3RMSNorm) if spec is GEMMA else (Qwen3RMSNorm, Gemma4RMSNorm)
        theirs, other = (kind(value.shape[-1], eps=1e-5).bfloat16() for kind in (theirs, other))
        theirs.weight.copy_(norm.weight)
        other.weight.copy_(norm.weight)
        for found in (norm(value), drafter._norm(value, norm.weight)):
            # Powers and reciprocal roots may differ in fp32's last place, which seldom shows in bf16.
            assert (found != theirs(value)).float().mean() < 0.005
            assert (found != other(value)).float().mean() > 0.05


@torch.no_grad()
def test_embeddings_of_a_half_precision_draft_are_scaled_by_a_rounded_root():
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextScaledWordEmbedding

    draft = draft_of(config_of(), GEMMA, dtype=torch.bfloat16)
    theirs = Gemma4TextScaledWordEmbedding(37, 24, 0, embed_scale=24**0.5)
    theirs.weight.copy_(draft.embed_tokens.weight)
    ids = torch.arange(37)
    found = draft.embed(ids)
    assert torch.equal(found, theirs.bfloat16()(ids))
    exact = (draft.embed_tokens.weight.float() * 24**0.5).bfloat16()
    assert (found != exact).float().mean() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("keys_as_values", [True, False])
def test_a_drafts_layer_is_the_targets_own_where_nothing_differs(tmp_path, keys_as_values):
    """Without a context and behind a causal mask, the block's layer and the fused one are Gemma's decoder layer."""
    from transformers import AutoModelForCausalLM

    from deepspec.drafts.attention.sdpa import SDPA
    from deepspec.drafts.layers import BlockLayer
    from deepspec.targets import family_of

    path = tiny_gemma4(tmp_path, attention_k_eq_v=keys_as_values)
    spec = read_spec(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    weights = model.model.layers[2].state_dict()
    ids = torch.randint(0, 61, (1, 12), generator=torch.Generator().manual_seed(0))
    states = model(ids, output_hidden_states=True).hidden_states
    cos, sin = Rotary(spec).lookup(torch.arange(12), torch.float32, limit=12)

    layer = BlockLayer(spec, family_of(spec))
    layer.load_state_dict(weights, strict=True)
    causal = SDPA.causal((12,), torch.device("cpu"))

    def attend_causally(projected, *, scale):
        return causal(projected.queries_NHd, projected.own_keys_MHd, projected.own_values_MHd, scale=scale)

    found = layer(states[2][0], states[2][0, :1], (cos, sin), (cos[:1], sin[:1]), attend_causally)
    assert relative(found, states[3][0]) <= RELATIVE_FROBENIUS

    fused = FusedLayer(weights, spec, family_of(spec), where="test")
    queries, keys, values = fused.project(states[2], cos[None], sin[None])
    attended = attend(queries, keys, values, None, scale=spec.attention_scale, causal=True)
    assert relative(fused.finish(states[2], attended), states[3]) <= RELATIVE_FROBENIUS


@pytest.mark.parametrize("parts", [(8,), (4, 4), (1,) * 8, (3, 5)])
def test_a_step_is_the_same_however_it_was_split(parts):
    config = config_of(num_anchors=3)
    lengths = (9, 14, 6, 11, 8, 12, 10, 13)
    batch = batch_of(lengths, dtype=torch.float64)

    def step(sizes):
        draft = draft_of(config, QWEN, dtype=torch.float64)
        pieces, first = [], 0
        for size in sizes:
            documents = range(first, first + size)
            span = slice(sum(lengths[:first]), sum(lengths[: first + size]))
            pieces.append(
                PackedStates(
                    batch.input_ids_T[span],
                    batch.loss_mask_T[span],
                    tuple(lengths[d] for d in documents),
                    tuple(batch.document_ids[d] for d in documents),
                    batch.states_TLD[span],
                    batch.final_TD[span],
                )
            )
            first += size
        supervisions = [ALGORITHM.supervise(piece, config, seed=3, step=9) for piece in pieces]
        totals = {term: sum(s.totals[term] for s in supervisions) for term in supervisions[0].totals}
        loss = 0.0
        for piece, supervision in zip(pieces, supervisions, strict=True):
            output = ALGORITHM.loss(draft, piece, supervision, totals)
            output.loss.backward()
            loss += output.loss.item()
        return loss, {n: p.grad for n, p in draft.named_parameters() if p.requires_grad}

    loss, gradients = step(parts)
    whole_loss, whole = step((8,))
    assert loss == pytest.approx(whole_loss, rel=1e-10)
    for name, gradient in gradients.items():
        # fp64; only the order of additions differs.
        assert relative(gradient, whole[name]) <= 1e-10, name


def test_validation_in_inference_mode_leaves_training_alone():
    config = config_of()
    draft = draft_of(config, QWEN)
    batch = batch_of((12,))
    supervision = ALGORITHM.supervise(batch, config, seed=0, step=0)
    with torch.inference_mode():
        ALGORITHM.loss(draft, batch, supervision, supervision.totals)
    ALGORITHM.loss(draft, batch, supervision, supervision.totals).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in draft.parameters() if p.requires_grad)


@pytest.mark.parametrize("spec", [QWEN, GEMMA], ids=["qwen3", "gemma4"])
def test_loss_falls_on_a_batch_that_can_be_learned(spec):
    config = config_of()
    draft = draft_of(config, spec)
    batch = batch_of((20, 20))
    supervision = ALGORITHM.supervise(batch, config, seed=0, step=0)
    optimizer = torch.optim.AdamW([p for p in draft.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        output = ALGORITHM.loss(draft, batch, supervision, supervision.totals)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.6 * losses[0]
