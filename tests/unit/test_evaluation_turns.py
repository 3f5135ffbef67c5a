"""Prompts of several turns: each behind the target's own answers, as the chat formats have them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.data.chat.formats import CHATML, GEMMA4
from deepspec.data.chat.renderer import Renderer
from deepspec.data.chat.tokenizer import load_tokenizer
from deepspec.data.sources.rows import Message, RowRejected
from deepspec.decoding.random import derive_seed
from deepspec.errors import DataError
from deepspec.evaluation.answering import requests_for
from deepspec.evaluation.config import Config
from deepspec.evaluation.prompts.selection import (
    EncodedPrompt,
    Prompt,
    Skipped,
    answer_message,
    encode,
    encode_turn,
    num_turns,
    read_benchmark,
    select_split,
)
from tests.fixtures.chat_templates import readable_tokenizer
from tests.fixtures.refused import refused

FORMATS = {"qwen3": CHATML, "gemma4": GEMMA4}
TEXTS = "first question second third one two because user assistant system model thought brief"

RenderersOf = Callable[..., Renderer]


def prompt_of(tmp_path: Path, row: object, **arguments: Any) -> Prompt:
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (prompt,) = read_benchmark("b", str(path), **arguments)
    return prompt


@pytest.fixture(scope="module")
def renderer_of(tmp_path_factory: pytest.TempPathFactory) -> RenderersOf:
    words = {piece for word in TEXTS.split() for piece in (word, f" {word}")} | {"\n", "\n\n"}
    loaded = {
        family: load_tokenizer(readable_tokenizer(tmp_path_factory.mktemp(family), family, sorted(words)))
        for family in FORMATS
    }
    return lambda family, **arguments: Renderer(loaded[family], FORMATS[family], **arguments)


def text_of(renderer: Renderer, turn: EncodedPrompt | Skipped) -> str:
    """What the target reads, token by token."""
    assert isinstance(turn, EncodedPrompt)
    tokens: list[str] = renderer.tokenizer.convert_ids_to_tokens(list(turn.prompt_ids))
    assert "<unk>" not in tokens
    return "".join(tokens)


def ids_of(renderer: Renderer, *tokens: str) -> list[int]:
    ids: list[int] = renderer.tokenizer.convert_tokens_to_ids(list(tokens))
    assert renderer.tokenizer.unk_token_id not in ids
    return ids


EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def test_qwen3_reads_its_answers_before_the_next_question(tmp_path: Path, renderer_of: RenderersOf) -> None:
    prompt = prompt_of(tmp_path, {"turns": ["first question", "second question", "third"]}, system_prompt="brief")
    renderer = renderer_of("qwen3")
    assert num_turns(prompt) == 3
    answer = answer_message(prompt, ids_of(renderer, "one", "<|im_end|>"), renderer)
    assert answer == {"role": "assistant", "content": "one"}
    first = "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\nfirst question<|im_end|>\n<|im_start|>assistant\n"
    second = first + "one<|im_end|>\n<|im_start|>user\nsecond question<|im_end|>\n<|im_start|>assistant\n"
    third = second + "two<|im_end|>\n<|im_start|>user\nthird<|im_end|>\n<|im_start|>assistant\n"
    for answers, text in (([], first), ([answer], second), (["one", "two"], third)):
        turn = encode_turn("b", prompt, answers, renderer, context=100)
        assert text_of(renderer, turn) == text + EMPTY_THOUGHT


def test_gemma4_reads_its_answers_before_the_next_question(tmp_path: Path, renderer_of: RenderersOf) -> None:
    prompt = prompt_of(tmp_path, {"turns": ["first question", "second question"]})
    renderer = renderer_of("gemma4")
    answer = answer_message(prompt, ids_of(renderer, "one", "<turn|>"), renderer)
    assert answer == {"role": "assistant", "content": "one"}
    turn = encode_turn("b", prompt, [answer], renderer, context=100)
    assert text_of(renderer, turn) == (
        "<bos><|turn>user\nfirst question<turn|>\n<|turn>model\none<turn|>\n"
        "<|turn>user\nsecond question<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    )


def test_thoughts_of_earlier_turns_are_gone_where_the_target_thinks(tmp_path: Path, renderer_of: RenderersOf) -> None:
    prompt = prompt_of(tmp_path, {"turns": ["first", "second"]})
    qwen3, gemma4 = renderer_of("qwen3", thinking="on"), renderer_of("gemma4", thinking="on")
    said = ids_of(qwen3, "<think>", "\n", "because", "\n", "</think>", "\n\n", "one", "<|im_end|>")
    answer = answer_message(prompt, said, qwen3)
    assert "because" in answer["reasoning_content"]
    assert answer["content"].strip() == "one"
    text = text_of(qwen3, encode_turn("b", prompt, [{**answer, "content": "one"}], qwen3, context=100))
    assert text == (
        "<|im_start|>user\nfirst<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
        "<|im_start|>user\nsecond<|im_end|>\n<|im_start|>assistant\n"
    )
    said = ids_of(gemma4, "<|channel>", "thought", "\n", "because", "\n", "<channel|>", "one", "<turn|>")
    answer = answer_message(prompt, said, gemma4)
    text = text_of(gemma4, encode_turn("b", prompt, [{**answer, "content": "one"}], gemma4, context=100))
    assert "because" not in text
    assert text.endswith("<|turn>model\none<turn|>\n<|turn>user\nsecond<turn|>\n<|turn>model\n")


def test_what_an_answer_looks_like_does_not_make_the_target_think(tmp_path: Path, renderer_of: RenderersOf) -> None:
    prompt = prompt_of(tmp_path, {"turns": ["first", "second"]})
    renderer = renderer_of("qwen3", thinking="keep")
    answer = "<think>\nbecause\n</think>\n\none"
    assert text_of(renderer, encode_turn("b", prompt, [answer], renderer, context=100)).endswith(EMPTY_THOUGHT)


class Letters:
    """Renders one token per character."""

    def prompt_ids(self, messages: Sequence[Message], **_: Any) -> tuple[int, ...]:
        if "refused" in messages[-1]["content"]:
            raise RowRejected("the chat template refuses the conversation")
        return tuple(ord(letter) for message in messages for letter in message["content"])

    def thinks(self, messages: Sequence[Message]) -> bool:
        return False


def test_ids_and_seeds_depend_on_prompt_and_turn_alone(tmp_path: Path) -> None:
    prompt = prompt_of(tmp_path, {"turns": ["a", "b", "c"]})
    config = Config()
    turns = [encode_turn("b", prompt, ["x"] * turn, Letters(), context=99) for turn in range(3)]  # type: ignore[arg-type]
    assert [turn.id for turn in turns if isinstance(turn, EncodedPrompt)] == [
        prompt.id,
        f"{prompt.id}-1",
        f"{prompt.id}-2",
    ]
    requests = requests_for(config, turns)  # type: ignore[arg-type]
    assert requests[0].seed == derive_seed(config.sampling.seed, prompt.id)
    assert len({request.seed for request in requests}) == 3
    other = encode_turn("b", prompt, ["another answer"], Letters(), context=99)  # type: ignore[arg-type]
    assert requests_for(config, [other])[0].seed == requests[1].seed  # type: ignore[list-item]
    assert all(isinstance(turn, EncodedPrompt) and turn.asked is prompt for turn in turns)
    with pytest.raises(ValueError, match="zip"):
        encode_turn("b", prompt, ["x"] * 3, Letters(), context=99)  # type: ignore[arg-type]


def test_a_turn_that_does_not_fit_is_skipped_with_its_number(tmp_path: Path) -> None:
    prompt = prompt_of(tmp_path, {"turns": ["aaaa", "bbbb"]})
    turn = encode_turn("b", prompt, ["x" * 10], Letters(), context=18)  # type: ignore[arg-type]
    assert isinstance(turn, Skipped)
    assert turn.lost().to_json() == {
        "prompt": prompt.id,
        "turn": "1",
        "place": prompt.place,
        "reason": "18 tokens, but the target's context holds 18",
    }
    assert isinstance(encode_turn("b", prompt, ["x" * 9], Letters(), context=18), EncodedPrompt)  # type: ignore[arg-type]
    encoded = encode("b", [prompt, prompt], Letters(), context=5, max_skipped_share=0)  # type: ignore[arg-type]
    assert [(one.turn, one.asked) for one in encoded.prompts] == [(0, prompt)] * 2


def test_a_turn_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    prompt = prompt_of(tmp_path, {"turns": ["a", "refused"]})
    with refused(DataError, "template", where=f"benchmark b, {tmp_path}/b.jsonl:1, turn 2"):
        encode_turn("b", prompt, ["x"], Letters(), context=99)  # type: ignore[arg-type]


def test_the_rows_own_answers_and_what_follows_a_tools_result_are_not_asked(tmp_path: Path) -> None:
    def said(role: str, content: str, **more: Any) -> dict[str, Any]:
        return {"role": role, "content": content, **more}

    asked = [said("system", "s"), said("user", "one"), said("assistant", "theirs"), said("user", "two")]
    prompt = prompt_of(tmp_path, {"messages": asked})
    assert prompt.later == ("two",)
    turn = encode_turn("b", prompt, ["ours"], Letters(), context=99)  # type: ignore[arg-type]
    assert isinstance(turn, EncodedPrompt)
    assert "".join(map(chr, turn.prompt_ids)) == "soneourstwo"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    calling = [
        *asked,
        said("assistant", "", tool_calls=[call]),
        said("tool", "42", tool_call_id="1"),
        said("assistant", "so"),
        said("user", "three"),
    ]
    prompt = prompt_of(tmp_path, {"messages": calling})
    assert prompt.later == ("two",)
    assert prompt.turns == ("one", "two", "three")  # held out of training all the same


def test_of_a_split_only_the_first_turn_is_asked(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gate.parquet")
    (prompt,) = select_split(tmp_path / "gate.parquet", num_prompts=1, seed=0)
    assert num_turns(prompt) == 1
    (encoded,) = encode("gate", [prompt], Letters(), context=9, max_skipped_share=0).prompts  # type: ignore[arg-type]
    assert encoded == EncodedPrompt(prompt.id, (97,), "gate")
    assert encoded.asked is None
