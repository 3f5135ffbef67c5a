"""DSpark's recipe section, what its target answers for it, and that an estimate of it needs no torch."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from deepspec.drafts import ALGORITHMS
from deepspec.errors import RecipeError
from deepspec.targets.directory import read_spec
from tests.fixtures.refused import refused

ALGORITHM = ALGORITHMS["dspark"]


@pytest.fixture
def spec(tmp_path):
    config = {"model_type": "qwen3", "num_hidden_layers": 8, "hidden_size": 64, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 700, "rms_norm_eps": 1e-6}
    config |= {"max_position_embeddings": 512, "rope_theta": 1e4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_spec(tmp_path)


def test_defaults_are_the_published_ones():
    config = ALGORITHM.Config()
    assert config.model_dump() == {
        "algorithm": "dspark",
        "num_draft_tokens": 7,
        "num_layers": 5,
        "target_layer_ids": None,
        "mask_token_id": None,
        "num_anchors": 512,
        "markov_rank": 256,
        "markov_head": "vanilla",
        "confidence_head": True,
        "confidence_head_with_markov": True,
        "ce_weight": 0.1,
        "tv_weight": 0.9,
        "confidence_weight": 1.0,
        "loss_decay_gamma": 4.0,
    }
    assert ALGORITHM.num_draft_tokens(config) == 7


def test_what_cannot_be_meant_is_refused():
    for fields in ({"markov_rank": -1}, {"markov_head": "lstm"}, {"loss_decay_gamma": 0.0}, {"block_size": 7}):
        with pytest.raises(ValidationError, match=next(iter(fields))):
            ALGORITHM.Config(**fields)
    with pytest.raises(ValidationError, match="nothing would be learned"):
        ALGORITHM.Config(ce_weight=0.0, tv_weight=0.0)


def test_layers_are_chosen_by_the_target_or_checked(spec):
    assert ALGORITHM.layer_ids(ALGORITHM.Config(), spec) == (1, 2, 3, 4, 5)
    assert ALGORITHM.layer_ids(ALGORITHM.Config(target_layer_ids=(-1, 6)), spec) == (-1, 6)
    for ids, named in (
        ((1, 7), ["7", "last layer"]),
        ((1, 8), ["8", "out of range"]),
        ((-2, 1), ["-2", "out of range"]),
        ((3, 1), ["increasing"]),
        ((1, 1), ["increasing"]),
        ((), ["no layer"]),
    ):
        with refused(RecipeError, *named, where="draft.target_layer_ids"):
            ALGORITHM.layer_ids(ALGORITHM.Config(target_layer_ids=ids), spec)


def test_a_mask_token_outside_the_vocabulary_is_refused(spec):
    for token in (None, 700):
        with refused(RecipeError, "vocabulary of 700", where="draft.mask_token_id"):
            ALGORITHM.build(ALGORITHM.Config(mask_token_id=token, num_layers=1), spec)


def test_an_estimate_imports_no_torch():
    code = (
        "import sys; from deepspec.drafts import ALGORITHMS; from deepspec.targets.family import TargetSpec; "
        "print(sorted({'torch', 'transformers', 'prefect', 'mlflow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
