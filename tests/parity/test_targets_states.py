"""The target's forward against Hugging Face's own: captured states, logits, and decoding on the row cache."""

from functools import partial

import pytest
import torch

from deepspec.targets.capture import capture, capture_together, length_batches
from deepspec.targets.hugging_face import PastKeyValues
from deepspec.targets.layers import rms_norm
from deepspec.targets.model import Target
from tests.fixtures.targets import tiny_gemma4, tiny_qwen3

LAYERS = (-1, 0, 2)
TARGETS = {
    "qwen3, fused": (tiny_qwen3, {}, True),
    "qwen3, huggingface": (tiny_qwen3, {}, False),
    "gemma4": (tiny_gemma4, {}, True),
    "gemma4, own values": (
        tiny_gemma4,
        {"attention_k_eq_v": False, "final_logit_softcapping": None, "tie_word_embeddings": False},
        True,
    ),
    "gemma4, part of a unified model": (tiny_gemma4, {"unified": True, "composite": True}, True),
}
# fp32, other order of summation (fused projections): a few units in the last place of states of size ~1.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# Gemma's scores are not scaled down: they reach ±16 here, and rounding in them is that much larger in their softmax.
SHARP = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module", params=TARGETS)
def made(request, tmp_path_factory):
    make, fields, fused = TARGETS[request.param]
    return make(tmp_path_factory.mktemp("target") / "tiny", **fields), fused


@pytest.fixture(scope="module")
def directory(made):
    return made[0]


@pytest.fixture(scope="module")
def reference(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def target(made):
    directory, fused = made
    return Target.load(directory, layer_ids=LAYERS, fused=fused)


@pytest.fixture
def close(target):
    tolerance = SHARP if target.spec.attention_scale == 1.0 else TOLERANCE
    return partial(torch.testing.assert_close, **tolerance)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return tiny_qwen3(tmp_path_factory.mktemp("target") / "tiny")


def ids(length, seed):
    return torch.randint(0, 61, (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_states_final_and_logits_are_huggingfaces(target, reference, close):
    input_ids = torch.stack([ids(23, 1), ids(23, 2)])
    expected = reference(input_ids, output_hidden_states=True)
    output = target.forward(input_ids)
    for index, layer in enumerate(LAYERS):
        # hidden_states[0] is the embedding, hidden_states[k + 1] the output of layer k.
        close(output.states_BQLD[:, :, index], expected.hidden_states[layer + 1])
    close(output.final_BQD, expected.hidden_states[-1])
    close(target.logits(output.final_BQD), expected.logits)


@torch.no_grad()
def test_capture_of_a_padded_batch_is_each_document_alone(target, reference, close):
    documents = [ids(length, seed) for seed, length in enumerate((5, 17, 9))]
    states_TLD, final_TD = capture_together(target, documents)
    start = 0
    for document in documents:
        expected = reference(document[None], output_hidden_states=True)
        end = start + len(document)
        close(states_TLD[start:end, 1], expected.hidden_states[1][0])
        close(final_TD[start:end], expected.hidden_states[-1][0])
        start = end
    assert start == states_TLD.shape[0] == final_TD.shape[0]


@torch.no_grad()
def test_rows_at_different_lengths_decode_as_whole_sequences(target, reference, close):
    texts = [ids(40, 11), ids(40, 12), ids(40, 13)]
    expected = [reference(text[None]).logits[0] for text in texts]
    cache = target.allocate_cache(3, 48)
    prompts = (4, 19, 9)
    for row, length in enumerate(prompts):
        output = target.forward(texts[row][None, :length], cache=cache.row(row))
        close(target.logits(output.final_BQD)[0], expected[row][:length])
    assert cache.lengths_B == list(prompts)
    # Rounds of several positions, of which each row keeps another number; then single positions.
    for width, kept in ((8, (1, 8, 3)), (8, (5, 2, 8)), (1, (1, 1, 1)), (8, (8, 1, 1))):
        starts = cache.lengths_B
        step = torch.stack([text[start : start + width] for text, start in zip(texts, starts, strict=True)])
        positions = torch.tensor(starts)[:, None] + torch.arange(width)
        logits = target.logits(target.forward(step, position_ids_BQ=positions, cache=cache).final_BQD)
        for row, start in enumerate(starts):
            close(logits[row], expected[row][start : start + width])
        cache.crop([start + keep for start, keep in zip(starts, kept, strict=True)])


@torch.no_grad()
def test_a_row_starts_anew_while_others_go_on(target, reference, close):
    old, new = ids(30, 21), ids(30, 22)
    cache = target.allocate_cache(2, 32)
    target.forward(torch.stack([old[:12], old[:12]]), cache=cache)
    cache.reset_row(1)
    target.forward(new[None, :7], cache=cache.row(1))
    output = target.forward(torch.stack([old[12:15], new[7:10]]), cache=cache)
    logits = target.logits(output.final_BQD)
    close(logits[0], reference(old[None, :15]).logits[0, 12:])
    close(logits[1], reference(new[None, :10]).logits[0, 7:])
    cache.crop([13, 10])
    cache.move_row(1, 0)
    output = target.forward(new[None, 10:14], cache=cache.view(0, 1))
    close(target.logits(output.final_BQD)[0], reference(new[None, :14]).logits[0, 10:])
    assert cache.lengths_B == [14, 10]


@torch.no_grad()
@torch.inference_mode()
def test_a_batch_of_which_little_is_real_computes_the_same_at_what_is(target, close):
    """Few real positions are packed where the family allows it; the caches go on as if nothing had been left out."""
    draws = torch.Generator().manual_seed(5)
    ids = torch.randint(0, target.spec.vocab_size, (4, 12), generator=draws)
    counts = [5, 1, 1, 2]
    found = {}
    for packed in (False, True):
        cache = target.allocate_cache(4, 12)
        target.forward(ids[:, :4], cache=cache)
        cache.crop([4, 1, 3, 2])
        output = target.forward(ids[:, 4:9], cache=cache, counts_B=counts if packed else None)
        cache.crop([start + count for start, count in zip([4, 1, 3, 2], counts, strict=True)])
        after = target.forward(ids[:, 9:10], cache=cache)
        real = [(row, column) for row, count in enumerate(counts) for column in range(count)]
        found[packed] = [
            torch.stack([tensor[at] for at in real]) for tensor in (output.final_BQD, output.states_BQLD)
        ] + [after.final_BQD]
    for ours, whole in zip(found[True], found[False], strict=True):
        close(ours, whole)


def test_rows_know_nothing_of_each_other(target):
    mine = ids(20, 41)
    found = []
    for other in (ids(20, 42), ids(20, 43)):
        cache = target.allocate_cache(2, 24)
        target.forward(torch.stack([other, mine])[:, :12], cache=cache)
        cache.crop([12, 9])
        first = target.forward(torch.stack([other[12:16], mine[9:13]]), cache=cache)
        cache.crop([13, 13])
        last = target.forward(torch.stack([other[13:14], mine[13:14]]), cache=cache)
        found.append(torch.cat([first.states_BQLD, last.states_BQLD], dim=1)[1])
    assert torch.equal(found[0], found[1])


@torch.no_grad()
def test_a_mask_of_the_callers_is_seen_through_the_layers_windows(target, reference, close):
    text = ids(20, 51)
    causal_QK = torch.ones(20, 20, dtype=torch.bool).tril()
    output = target.forward(text[None], attention_mask=causal_QK[None, None])
    close(target.logits(output.final_BQD), reference(text[None]).logits)


@torch.no_grad()
def test_huggingface_takes_the_cache_and_builds_its_own_mask(target, reference, close):
    text = ids(20, 31)
    cache = target.allocate_cache(1, 32)
    for start, end in ((0, 6), (6, 7), (7, 15)):
        positions = torch.arange(start, end)[None]
        output = reference(
            text[None, start:end], position_ids=positions, past_key_values=PastKeyValues(cache), use_cache=True
        )
        expected = reference(text[None, :end]).logits[:, start:]
        close(output.logits, expected)


@torch.no_grad()
def test_norms_in_half_precision_round_where_the_family_does():
    from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=generator).bfloat16()
    weight = torch.randn(32, generator=generator).bfloat16()
    qwen, gemma = Qwen3RMSNorm(32, eps=1e-6).bfloat16(), Gemma4RMSNorm(32, eps=1e-6).bfloat16()
    qwen.weight.copy_(weight)
    gemma.weight.copy_(weight)
    cast_first = rms_norm(x, weight, 1e-6, casts_first=True)
    scaled_first = rms_norm(x, weight, 1e-6, casts_first=False)
    torch.testing.assert_close(cast_first, qwen(x), rtol=0, atol=0)
    # Its power -1/2 may differ from a reciprocal root in fp32's last place, which seldom shows in bf16.
    assert (scaled_first != gemma(x)).float().mean() < 0.001
    assert (cast_first != scaled_first).any()


@torch.no_grad()
def test_half_precision_states_are_near_huggingfaces(qwen3):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(qwen3, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    text = torch.stack([ids(16, seed) for seed in range(4)])
    expected = reference(text, output_hidden_states=True).hidden_states[1].float()
    states = Target.load(qwen3, dtype="bfloat16", layer_ids=(0,)).forward(text).states_BQLD[:, :, 0].float()
    # bf16 has 2^-9 = 0.2 % rounding error per operation; fused products and rotations round fewer times.
    assert (states - expected).norm() / expected.norm() < 0.01


def test_on_a_cpu_a_documents_states_depend_on_nothing_else(target):
    documents = [ids(length, seed) for seed, length in enumerate((30, 5, 17, 30, 9, 2, 30))]
    alone = [capture(target, [document]) for document in documents]
    for numbers in (range(7), (3, 1, 5), (6, 2)):
        states_TLD, final_TD = capture(target, [documents[number] for number in numbers])
        assert torch.equal(states_TLD, torch.cat([alone[number][0] for number in numbers]))
        assert torch.equal(final_TD, torch.cat([alone[number][1] for number in numbers]))


def test_batches_are_of_similar_lengths_within_the_budget():
    lengths = [5, 30, 7, 100, 8, 9, 28]
    batches = length_batches(lengths, 60)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert batches[0] == [3]
    for batch in batches[1:]:
        assert max(lengths[index] for index in batch) * len(batch) <= 60
    assert len(batches) == 3
