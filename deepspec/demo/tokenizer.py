"""The demo's tokenizer: byte-level BPE trained on the corpus, with ChatML's special tokens and a chat template.

It is written as the files of a Hugging Face tokenizer directory, without importing transformers. Any text can be
encoded, as all bytes are tokens; digits stand alone, so that a small target can learn to calculate.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from deepspec.demo.config import Config
from deepspec.demo.corpus import CONVERSATIONS, TARGET_TRAINING, Conversation, read_conversations
from deepspec.progress import SILENT, Progress

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
MASK = "<|mask|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, MASK)
"""Their ids are their indices here. The mask token never occurs in text: a draft's masked positions take it."""

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja")

CHAT_TEMPLATE = """\
{%- for turn in messages %}
    {%- if turn.role not in ("system", "user", "assistant") %}
        {{- raise_exception("A turn is the system's, the user's or the assistant's, not: " ~ turn.role) }}
    {%- endif %}
    {{- "<|im_start|>" ~ turn.role ~ "\\n" ~ turn.content ~ "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""

# A digit; a word with the blank before it; a line's end with the next line's indentation; signs; other blanks.
_PIECES = r"\p{N}| ?\p{L}+|\n+ *| ?[^\s\p{L}\p{N}]+|\s+"


def prompt_text(prompt: str) -> str:
    """What the chat template makes of a conversation that waits for its first answer."""
    return f"{TURN_START}user\n{prompt}{TURN_END}\n{TURN_START}assistant\n"


def answer_text(answer: str) -> str:
    """What the target is to generate: the answer and the end of its turn."""
    return f"{answer}{TURN_END}"


def write_tokenizer(config: Config, corpus_dir: Path, out: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Train the tokenizer on the corpus and write it to the directory `out`.

    Args:
        config: its `tokenizer` section is read.
        corpus_dir: from `write_corpus`; the benchmarks in it are not read.
        out: created.
        progress: advances by conversations.

    Returns:
        Counts: `vocab_size` (smaller than configured where the corpus has no more merges), `conversations`.

    Raises:
        DataError: the corpus is not there or damaged.
    """
    rows = [row for file in (CONVERSATIONS, TARGET_TRAINING) for row in read_conversations(corpus_dir / file)]
    progress.start(len(rows), "conversations")
    tokenizer = _train(rows, config.tokenizer.vocab_size)
    progress.advance(len(rows))
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / TOKENIZER_FILE))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "mask_token": MASK,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8", newline="\n")
    return {"vocab_size": tokenizer.get_vocab_size(), "conversations": len(rows)}


def _train(rows: list[Conversation], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(rows), trainer)
    return tokenizer


def _texts(rows: list[Conversation]) -> Iterator[str]:
    # The header's words are text, too: they get their own tokens.
    for row in rows:
        yield f"user\n{row.prompt}"
        yield f"assistant\n{row.answer}"
