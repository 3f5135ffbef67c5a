"""Gemma 4's chat format, against texts written by hand, with and without what releases of its template leave out."""

from pathlib import Path
from typing import Any

import pytest

from deepspec.data.chat.formats import GEMMA4
from deepspec.data.chat.renderer import Renderer
from deepspec.data.chat.tokenizer import load_tokenizer
from deepspec.data.sources.rows import Message
from deepspec.errors import UnsupportedTarget
from tests.fixtures.refused import refused
from tests.fixtures.tokenizers import gemma4_template, tiny_gemma4_tokenizer

PRIMER = "<|channel>thought\n<channel|>"


def renderer_of(folder: Path, **arguments: bool) -> Renderer:
    return Renderer(load_tokenizer(tiny_gemma4_tokenizer(folder, chat_template=gemma4_template(**arguments))), GEMMA4)


@pytest.fixture(scope="module")
def primed(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """The generation prompt has the empty thought, past turns have not."""
    return renderer_of(tmp_path_factory.mktemp("primed"))


@pytest.fixture(scope="module")
def primed_everywhere(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return renderer_of(tmp_path_factory.mktemp("everywhere"), primed_past=True)


@pytest.fixture(scope="module")
def unprimed(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return renderer_of(tmp_path_factory.mktemp("unprimed"), primed_prompt=False)


def conversation(*contents: str, system: str | None = None) -> list[Message]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    messages: list[Message] = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def supervised(renderer: Renderer, messages: list[Message], **arguments: Any) -> list[str]:
    """The texts of the supervised stretches, decoded from the tokens themselves."""
    encoded = renderer.encode([renderer.render(messages, **arguments)])[0]
    stretches: list[list[int]] = []
    before = False
    for token, is_supervised in zip(encoded.input_ids.tolist(), encoded.mask.tolist(), strict=True):
        if is_supervised and not before:
            stretches.append([])
        if is_supervised:
            stretches[-1].append(token)
        before = is_supervised
    return [renderer.tokenizer.decode(stretch) for stretch in stretches]


def test_the_text_of_a_conversation_by_hand(primed: Renderer, primed_everywhere: Renderer) -> None:
    messages = conversation("hi", "one", "more", "two", system="Be kind.")
    expected = (
        "<bos><|turn>system\nBe kind.<turn|>\n<|turn>user\nhi<turn|>\n"
        "<|turn>model\n<|channel>thought\n<channel|>one<turn|>\n"
        "<|turn>user\nmore<turn|>\n<|turn>model\n<|channel>thought\n<channel|>two<turn|>\n"
    )
    for renderer in (primed, primed_everywhere):
        assert renderer.render(messages, mask="serving").text == expected
        assert renderer.render(messages, mask="deepspec").text == expected


CASES: list[tuple[list[Message], list[str]]] = [
    # messages, supervised when serving; DeepSpec's mask adds the newline
    (conversation("hi", "Mira"), ["Mira<turn|>"]),
    (conversation("hi", "one", "more", "two", system="Be kind."), ["one<turn|>", "two<turn|>"]),
    (conversation("hi", "one", "and then?"), ["one<turn|>"]),
    (conversation("hi", "naïve 漢字 🌊"), ["naïve 漢字 🌊<turn|>"]),
    # The template trims.
    (conversation(" hi ", "\n\nMira \n"), ["Mira<turn|>"]),
    # Contents that look like markers.
    (conversation("say <|turn>model\nno<turn|>\n", "ok", "model\n", "fine"), ["ok<turn|>", "fine<turn|>"]),
    (conversation("hi", "<|turn>model\nno<turn|>"), ["<|turn>model\nno<turn|><turn|>"]),
    # Thoughts are gone from the text: the answer stands behind the empty one, which the target was given.
    (conversation("hi", "<|channel>thought\nwell\n<channel|>Mira"), ["Mira<turn|>"]),
    (conversation("hi", PRIMER + "Mira"), ["Mira<turn|>"]),
]


@pytest.mark.parametrize("name", ["primed", "primed_everywhere", "unprimed"])
@pytest.mark.parametrize(("messages", "serving"), CASES)
def test_supervised_tokens(
    request: pytest.FixtureRequest, name: str, messages: list[Message], serving: list[str]
) -> None:
    renderer: Renderer = request.getfixturevalue(name)
    assert supervised(renderer, messages, mask="serving") == serving
    assert supervised(renderer, messages, mask="deepspec") == [stretch + "\n" for stretch in serving]
    text = renderer.render(messages, mask="serving").text
    assert text.count(PRIMER) == (0 if name == "unprimed" else len(serving))


@pytest.mark.parametrize("name", ["primed", "primed_everywhere", "unprimed"])
def test_an_answer_stands_behind_the_prompt_it_was_given_to(request: pytest.FixtureRequest, name: str) -> None:
    renderer: Renderer = request.getfixturevalue(name)
    prompt = renderer.prompt_text(conversation("hi"))
    assert prompt == "<bos><|turn>user\nhi<turn|>\n<|turn>model\n" + PRIMER * (name != "unprimed")
    rendered = renderer.render(conversation("hi", "Mira"), mask="serving")
    assert rendered.text.startswith(prompt)
    assert rendered.spans == ((len(prompt), len(prompt + "Mira<turn|>")),)


@pytest.mark.parametrize("primed_past", [False, True])
@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("answer", [PRIMER + "Mira", f"\n{PRIMER}\nMira", PRIMER + PRIMER + "Mira", "Mira"])
def test_the_empty_thought_stands_once_whatever_the_template_does(
    answer: str,
    strips: bool,
    primed_past: bool,
    tmp_path: Path,
) -> None:
    renderer = renderer_of(tmp_path / "tokenizer", primed_past=primed_past, strips=strips)
    messages = conversation("hi", answer, "more", answer)
    for mask, end in (("serving", "<turn|>"), ("deepspec", "<turn|>\n")):
        text = renderer.render(messages, mask=mask).text  # type: ignore[arg-type]
        assert text.startswith(renderer.prompt_text(conversation("hi")) + "Mira<turn|>\n")
        assert text.count(PRIMER) == 2
        assert supervised(renderer, messages, mask=mask) == ["Mira" + end] * 2
    cut = renderer.render(messages, mask="serving", complete=False)
    assert cut.text.endswith(f"<|turn>model\n{PRIMER}Mira")
    added = [] if primed_past else [PRIMER, PRIMER]
    assert [cut.text[start:end] for start, end in cut.added] == added


def test_where_the_prompt_has_no_empty_thought_the_answer_keeps_its_own(tmp_path: Path) -> None:
    renderer = renderer_of(tmp_path / "tokenizer", primed_prompt=False, strips=False)
    messages = conversation("hi", PRIMER + "Mira")
    assert supervised(renderer, messages, mask="serving") == [PRIMER + "Mira<turn|>"]


def test_a_cut_off_answer_has_no_end_of_turn(primed: Renderer) -> None:
    messages = conversation("hi", "one", "more", "two and")
    assert supervised(primed, messages, mask="serving", complete=False) == ["one<turn|>", "two and"]
    assert primed.render(messages, mask="serving", complete=False).text.endswith(PRIMER + "two and")


def test_end_of_turn_is_a_token(primed: Renderer, tokenizer: Any) -> None:
    assert primed.end_of_turn_ids == (primed.tokenizer.convert_tokens_to_ids("<turn|>"),)
    ids = primed.tokenizer.encode("Mira has 12<turn|>", add_special_tokens=False)
    assert primed.answer_text(ids) == "Mira has 12"
    with refused(UnsupportedTarget, "'gemma4'"):
        Renderer(tokenizer, GEMMA4)
