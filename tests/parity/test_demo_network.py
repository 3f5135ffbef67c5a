"""The demo's own training module against Hugging Face's Qwen3: value and gradient."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from deepspec.demo.config import Config, TargetShape
from deepspec.demo.network import Network
from deepspec.demo.target import describe, spec_of

SHAPE = TargetShape(
    num_hidden_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
)


class FourTokens:
    """As much of a tokenizer as a description needs."""

    def get_vocab_size(self) -> int:
        return 40

    def token_to_id(self, token: str) -> int:
        return len(token) % 4


@pytest.fixture
def pair():
    description = describe(Config(target=SHAPE), FourTokens())
    network = Network(spec_of(description), seed=3)
    theirs = Qwen3ForCausalLM(Qwen3Config(**description))
    missing = theirs.load_state_dict(network.state_dict(), strict=True)
    assert not missing.missing_keys
    return network, theirs


def test_logits_and_gradients_equal_hugging_face(pair):
    network, theirs = pair
    # Hugging Face gives the padding token (1) no gradient, ours never sees it but as padding.
    ids_BT = torch.randint(2, 40, (3, 20), generator=torch.Generator().manual_seed(0))
    weights = torch.randn(3, 20, 40, generator=torch.Generator().manual_seed(1))
    ours_BTV = network.lm_head(network(ids_BT))
    theirs_BTV = theirs(input_ids=ids_BT).logits
    (ours_BTV * weights).sum().backward()
    (theirs_BTV * weights).sum().backward()
    # fp32 rounding of another order of operations, over two layers.
    torch.testing.assert_close(ours_BTV, theirs_BTV, rtol=1e-4, atol=1e-5)
    expected = dict(theirs.named_parameters())
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name].grad, rtol=1e-3, atol=1e-4, msg=name)


def test_right_padding_changes_nothing_before_it(pair):
    network, _ = pair
    ids_BT = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(0))
    padded_BT = torch.cat((ids_BT, torch.zeros(2, 5, dtype=torch.int64)), dim=1)
    torch.testing.assert_close(network(padded_BT)[:, :12], network(ids_BT), rtol=1e-5, atol=1e-6)


def test_initial_weights_depend_on_the_seed_alone():
    spec = spec_of(describe(Config(target=SHAPE), FourTokens()))
    one, same, other = (dict(Network(spec, seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert float(one["model.embed_tokens.weight"].detach().std()) == pytest.approx(SHAPE.initializer_range, rel=0.1)
    assert torch.equal(one["model.norm.weight"], torch.ones(32))
