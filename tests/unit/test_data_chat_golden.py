"""Token lists and masks written by hand: tests/golden/chat/*.json, at least a dozen conversations per family."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepspec.data.chat.formats import CHATML, GEMMA4, ChatFormat
from deepspec.data.chat.renderer import Renderer
from deepspec.data.chat.tokenizer import load_tokenizer
from tests.fixtures.chat_templates import readable_tokenizer

FOLDER = Path(__file__).parents[1] / "golden" / "chat"
FORMATS: dict[str, ChatFormat] = {"qwen3": CHATML, "gemma4": GEMMA4}
CASES = [
    pytest.param(family, case, id=f"{family}: {case['name']}")
    for family in FORMATS
    for case in json.loads((FOLDER / f"{family}.json").read_text(encoding="utf-8"))["conversations"]
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    loaded = {}
    for family in FORMATS:
        words = {token for param in CASES for _, run in param.values[1]["runs"] for token in run}
        folder = tmp_path_factory.mktemp(family)
        loaded[family] = load_tokenizer(readable_tokenizer(folder, family, sorted(words)))
    return loaded


def expected(case: dict[str, Any], mask: str) -> list[tuple[str, bool]]:
    return [(token, mask[0] in masks) for masks, run in case["runs"] for token in run]


@pytest.mark.parametrize("mask", ["serving", "deepspec"])
@pytest.mark.parametrize(("family", "case"), CASES)
def test_tokens_and_mask(tokenizers: dict[str, Any], family: str, case: dict[str, Any], mask: Any) -> None:
    tokenizer = tokenizers[family]
    renderer = Renderer(tokenizer, FORMATS[family], thinking=case["thinking"])
    complete, tools = case.get("complete", True), case.get("tools")
    rendered = renderer.render(case["messages"], mask=mask, complete=complete, tools=tools)
    (encoded,) = renderer.encode([rendered])
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist())
    assert list(zip(tokens, encoded.mask.tolist(), strict=True)) == expected(case, mask)


@pytest.mark.parametrize(("family", "case"), CASES)
def test_the_last_answer_stands_behind_the_prompt_that_asks_for_it(
    tokenizers: dict[str, Any], family: str, case: dict[str, Any]
) -> None:
    """What "serving" supervises of the last answer begins where the generation prompt ends."""
    renderer = Renderer(tokenizers[family], FORMATS[family], thinking=case["thinking"])
    messages, tools = case["messages"], case.get("tools")
    if messages[-1]["role"] != "assistant":
        return
    prompt = renderer.prompt_text(messages[:-1], tools=tools, thinks=renderer.thinks(messages))
    rendered = renderer.render(messages, mask="serving", complete=case.get("complete", True), tools=tools)
    # What lies further back may differ: while it is asked, a template shows other thoughts of the turns before.
    assert rendered.text[: rendered.spans[-1][0]].endswith(prompt[-30:])


def test_there_are_enough() -> None:
    for family in FORMATS:
        assert sum(param.values[0] == family for param in CASES) >= 12
