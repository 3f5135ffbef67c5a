"""The table of what loads which draft, against the engines' own registries and sources: every cell, either way."""

from collections.abc import Mapping

import pytest

from deepspec.export.matrix import GEMMA4, QWEN3, ROWS, SGLANG, SPECULATORS, VLLM, cell
from tests.fixtures.engines import sources
from tests.fixtures.engines.sources import GEMMA_BODY, mentions

pytestmark = pytest.mark.full

CELLS = [(form, family, row) for form in (VLLM, SGLANG, SPECULATORS) for family in (QWEN3, GEMMA4) for row in ROWS]
LOADED = [place for place in CELLS if cell(*place).architecture]
REFUSED = [place for place in CELLS if not cell(*place).architecture]
WORDS = {"eagle3": "Eagle3", "dflash, in_place": "DFlash", "eagle3, several layers": "Eagle3"}
"""What architectures of a row have in their names; every other row goes out as DSpark."""


def sources_of(form: str, row: str) -> Mapping[str, str]:
    """Architecture -> its class's source, of those that an engine has for a row."""
    word = WORDS.get(row, "DSpark")
    if form == VLLM:
        files = {name: file for name, file in sources.vllm_drafts().items() if word in name}
        inside = {name: file for name, file in files.items() if not file.startswith("vllm.")}  # DeepSeek's and Kimi's
        return {name: sources.vllm(f"model_executor/models/{file}") for name, file in inside.items()}
    named = {name: file for name, file in sources.sglang_architectures().items() if word in name}
    return {name: sources.sglang_models()[file] for name, file in named.items()}


def name_of(place: tuple[str, str, str]) -> str:
    return "; ".join(place)


@pytest.mark.parametrize("place", LOADED, ids=name_of)
def test_what_is_exported_is_registered(place: tuple[str, str, str]) -> None:
    (form, _, row), found = place, cell(*place)
    head = row.removeprefix("dspark, ").removesuffix(" head")
    if form == SPECULATORS:
        assert found.architecture in sources.speculators_drafts()[found.method]
        assert found.method in sources.vllm_speculators()
        if head in ("gated", "rnn"):
            assert f'"{head}"' in sources.speculators("models/dspark/config.py")
        return
    assert found.architecture in sources_of(form, row)
    if head in ("gated", "rnn"):
        assert f'markov_head_type == "{head}"' in sources_of(form, row)[found.architecture]


@pytest.mark.parametrize("place", REFUSED, ids=name_of)
def test_what_is_refused_the_engine_has_not(place: tuple[str, str, str]) -> None:
    form, family, row = place
    if form == SPECULATORS:
        if family == QWEN3:
            assert mentions(sources.speculators("models/eagle3/core.py"), "first_layer_class")
        else:
            assert not [body for body in sources.speculators_bodies() if body.startswith("gemma")]
        return
    found = sources_of(form, row)
    assert found
    if row in ("dspark, gated head", "dspark, rnn head") and form == VLLM:
        assert not mentions(found["Qwen3DSparkModel"] + found["Gemma4DSparkModel"], "markov_head_type", "Gated", "RNN")
    elif family == GEMMA4:
        assert not [name for name, text in found.items() if mentions(text, *GEMMA_BODY)]
    elif form == SGLANG:
        inherited = sources.sglang_models()["llama.py"]
        assert not [
            name for name, text in found.items() if mentions(text + inherited, r"self\.q_norm", r"self\.k_norm")
        ]
    else:
        assert mentions(found["Eagle3Qwen3ForCausalLM"], "layer_idx == 0")


def test_what_is_looked_for_would_be_found() -> None:
    assert mentions(sources.vllm("model_executor/models/gemma4_dspark.py"), *GEMMA_BODY)
    assert mentions(sources.sglang_models()["gemma4_causal.py"], *GEMMA_BODY)
    assert mentions(sources.sglang_models()["dflash.py"], r"self\.q_norm")
    assert mentions(sources.sglang_models()["dspark.py"], "markov_head_type", "RNN")
    assert {"qwen3", "llama"} < sources.speculators_bodies()


def test_vllm_takes_gemma_only_where_keys_serve_as_values() -> None:
    """Its class has a projection of values, and nothing that fills the cache with them."""
    text = sources.vllm("model_executor/models/gemma4_dspark.py")
    assert "assert all(a.use_k_eq_v for a in layers_attn)" in text
