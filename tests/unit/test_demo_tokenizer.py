"""The demo's tokenizer as everybody else loads it."""

import numpy as np
import pytest

from deepspec.data.chat.formats import CHATML
from deepspec.data.chat.renderer import Renderer
from deepspec.data.chat.tokenizer import load_tokenizer
from deepspec.demo.config import Config, Corpus, Tokenizer
from deepspec.demo.corpus import HELD_OUT, read_conversations, write_corpus
from deepspec.demo.target import encode_rows
from deepspec.demo.tokenizer import SPECIAL_TOKENS, TOKENIZER_FILES, answer_text, prompt_text, write_tokenizer
from deepspec.errors import DataError
from tests.fixtures.refused import refused

SMALL = Config(
    corpus=Corpus(num_conversations=60, num_target_conversations=60, num_benchmark_prompts=4),
    tokenizer=Tokenizer(vocab_size=400),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_corpus(SMALL, folder / "corpus")
    counts = write_tokenizer(SMALL, folder / "corpus", folder / "tokenizer")
    return folder, counts, load_tokenizer(folder / "tokenizer")


def test_counts_and_special_tokens(made):
    _, counts, tokenizer = made
    assert counts == {"vocab_size": 400, "conversations": 120}
    assert len(tokenizer) == 400
    assert tuple(tokenizer.convert_ids_to_tokens(range(4))) == SPECIAL_TOKENS
    assert tokenizer.mask_token_id == 3
    assert tokenizer.eos_token == "<|im_end|>"


def test_the_template_writes_what_the_target_is_trained_on(made):
    _, _, tokenizer = made
    messages = [{"role": "user", "content": "How many?"}]
    waiting = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert waiting == prompt_text("How many?") == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    messages.append({"role": "assistant", "content": "Four."})
    assert tokenizer.apply_chat_template(messages, tokenize=False) == waiting + answer_text("Four.") + "\n"
    messages.insert(0, {"role": "system", "content": "Be brief."})
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_training_tokens_and_mask_are_the_pipelines(made):
    folder, _, tokenizer = made
    renderer = Renderer(tokenizer, CHATML)
    file = folder / "corpus" / HELD_OUT
    rows = encode_rows(file, folder / "tokenizer")
    assert len(rows) == 12
    for row, conversation in zip(rows, read_conversations(file), strict=True):
        messages = conversation.row()["messages"]
        (encoded,) = renderer.encode([renderer.render(messages, mask="serving")])
        # The pipeline's text ends with the newline after the turn, which nobody generates.
        assert row.input_ids == tuple(encoded.input_ids[: len(row.input_ids)])
        assert np.flatnonzero(encoded.mask).tolist() == list(range(row.num_prompt_tokens, len(row.input_ids)))
        assert row.input_ids[: row.num_prompt_tokens] == renderer.prompt_ids(messages[:1])


@pytest.mark.parametrize(
    "text", ["12345", " über straße\n\n    x = 1\t\r\n", "日本語 🙂 <|im_end|> \u0000", "", "   a  b"]
)
def test_any_text_survives(made, text):
    _, _, tokenizer = made
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_digits_stand_alone(made):
    _, _, tokenizer = made
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("a 120 = 7", add_special_tokens=False)]
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == ["1", "2", "0", "7"]


def test_same_corpus_same_bytes(made, tmp_path):
    folder, _, _ = made
    write_tokenizer(SMALL, folder / "corpus", tmp_path)
    for name in TOKENIZER_FILES:
        assert (tmp_path / name).read_bytes() == (folder / "tokenizer" / name).read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == set(TOKENIZER_FILES)


def test_missing_inputs_are_data_errors(made, tmp_path):
    folder, _, _ = made
    with refused(DataError, where=str(tmp_path)):
        write_tokenizer(SMALL, tmp_path, tmp_path / "out")
    with refused(DataError, where=str(tmp_path)):
        encode_rows(folder / "corpus" / HELD_OUT, tmp_path)
