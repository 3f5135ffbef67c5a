"""Bench "tokens": the `tokens` stage against `datasets.map` with the chat template, row by row.

Ours reads answered conversations from Parquet, renders each once, tokenises batches, masks by character offsets and
writes Parquet. The reference maps a function over the same rows, memory-mapped and written by `datasets`: it renders
and tokenises each conversation, and finds what is supervised by doing the same to the conversation's beginnings, before
and after each answer. Both make the same ids and masks, which is checked. Both use one process and the tokenizer's own
threads, of which only batches make use.

Conversations are drawn with one seed; the tokenizer is trained on them, or the user's own.
"""

import argparse
import random
import shutil
import string
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from deepspec.bench import measuring
from deepspec.data.chat.formats import CHATML
from deepspec.data.chat.tokenizer import load_tokenizer
from deepspec.data.config import SPLITS, Config
from deepspec.data.responses.regenerate import RESPONSES_SCHEMA
from deepspec.data.tables import TableWriter, read_table
from deepspec.data.tokens.encode import runs_to_mask, write_tokens
from deepspec.errors import DeepspecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_VOCAB_SIZE = 8192
_NUM_WORDS = 5000
_COMMON = 0.15  # exponent of the draw: most words of a text are few


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes of this bench."""
    for name, default, text in (
        ("rows", 1000, "conversations"),
        ("turns", 3, "questions and answers of the longest"),
        ("words", 150, "words of the longest answer"),
    ):
        parser.add_argument(f"--{name}", type=measuring.positive, default=default, help=f"{text} (%(default)s)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a ChatML target's; default: one made here")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The bench's document."""
    _check_reference()
    with tempfile.TemporaryDirectory(prefix="deepspec-bench-") as name:
        folder = Path(name)
        problem = _Problem(folder, options)
        problem.ours()
        problem.reference()
        counts, differing = problem.compared()
        seconds = measuring.alternate(
            {"ours": problem.ours, "reference": problem.reference}, repeat=options.repeat, device="cpu"
        )
    sides = {
        side: {"seconds": measuring.median(found), "rows_per_second": round(options.rows / measuring.median(found), 1)}
        for side, found in seconds.items()
    }
    rates = [sides[side]["rows_per_second"] for side in ("ours", "reference")]
    return {
        "bench": "tokens",
        "device": "cpu",
        "sizes": {
            "rows": options.rows,
            "turns": options.turns,
            "words": options.words,
            **counts,
            "repeat": options.repeat,
        },
        **sides,
        "ratio": {"rows_per_second_to_datasets_map": measuring.ratio(*rates)},
        "rows_that_differ": differing,
    }


def lines(document: Mapping[str, Any]) -> list[list[str]]:
    """The document as a table for people."""
    rows = [["", "seconds", "rows per second"]]
    for side in ("ours", "reference"):
        rows.append([side, f"{document[side]['seconds']:.3f}", f"{document[side]['rows_per_second']:,.0f}"])
    rows.append(["ratio", "", f"{document['ratio']['rows_per_second_to_datasets_map']:.2f}"])
    rows.append(["rows that differ", "", str(document["rows_that_differ"])])
    return rows


def _check_reference() -> None:
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise DeepspecError(
            "the package `datasets` is not installed here: it is what this bench compares with.",
            where="bench tokens",
            remedy="Install it (`pip install datasets`); nothing else of deepspec's tokens needs it.",
        ) from error


class _Problem:
    """Both sides' inputs, and where each writes."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        import datasets

        datasets.disable_progress_bars()
        self._folder = folder
        rows = list(_conversations(options.rows, options.turns, options.words))
        directory = options.tokenizer or _trained(folder / "tokenizer", rows)
        self._tokenizer: PreTrainedTokenizerFast = load_tokenizer(directory)
        (folder / "responses").mkdir()
        schema = pa.schema([RESPONSES_SCHEMA.field(name) for name in rows[0]])
        for split in SPLITS:
            with TableWriter(folder / "responses" / f"{split}.parquet", schema) as writer:
                for row in rows if split == SPLITS[0] else ():
                    writer.write(row)
        # Rows longer than any limit are kept whole: the reference cuts nothing.
        self._config = Config(source=("bench",), min_supervised_tokens=1, max_length_tokens=1 << 30)
        self._dataset = datasets.Dataset.from_parquet(
            str(folder / "responses" / f"{SPLITS[0]}.parquet"), cache_dir=str(folder / "cache")
        )

    def ours(self) -> None:
        out = self._folder / "ours"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        write_tokens(self._config, self._folder / "responses", out, tokenizer=self._tokenizer, chat=CHATML)

    def reference(self) -> None:
        out = self._folder / "reference.arrow"
        out.unlink(missing_ok=True)
        # A fingerprint of its own spares `datasets` the hashing of the tokenizer, and finds nothing in its cache.
        self._dataset.map(
            self._mapped,
            remove_columns=self._dataset.column_names,
            cache_file_name=str(out),
            load_from_cache_file=False,
            new_fingerprint=f"{time.monotonic_ns():x}",
        )

    def _mapped(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One row, as one would first write it: masks from the lengths of the conversation's beginnings."""

        def ids(num_messages: int, *, asked: bool) -> list[int]:
            text = self._tokenizer.apply_chat_template(
                row["messages"][:num_messages], tokenize=False, add_generation_prompt=asked, enable_thinking=False
            )
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

        whole = ids(len(row["messages"]), asked=False)
        mask = [0] * len(whole)
        for number, message in enumerate(row["messages"]):
            if message["role"] == "assistant":
                # Without the line end behind the end of the turn.
                start, end = len(ids(number, asked=True)), len(ids(number + 1, asked=False)) - 1
                mask[start:end] = [1] * (end - start)
        return {"input_ids": whole, "mask": mask}

    def compared(self) -> tuple[dict[str, int], int]:
        """Tokens in all and in a row, and how many rows the two sides made differently."""
        import datasets

        theirs = datasets.Dataset.from_file(str(self._folder / "reference.arrow"))
        ours = read_table(self._folder / "ours" / f"{SPLITS[0]}.parquet", ("input_ids", "mask_runs"))
        num_tokens = longest = differing = 0
        for mine, other in zip(ours, theirs, strict=True):
            same = mine["input_ids"] == other["input_ids"]
            same = same and runs_to_mask(mine["mask_runs"]).astype(int).tolist() == other["mask"]
            differing += not same
            num_tokens += len(mine["input_ids"])
            longest = max(longest, len(mine["input_ids"]))
        return {"tokens": num_tokens, "longest_tokens": longest}, differing


def _conversations(num_rows: int, turns: int, words: int) -> Iterator[dict[str, Any]]:
    """Made conversations as rows of answered ones: words of letters, some of them much commoner than others."""
    dice = random.Random(0)  # noqa: S311  # no secret depends on it
    known = ["".join(dice.choices(string.ascii_lowercase, k=dice.randint(2, 9))) for _ in range(_NUM_WORDS)]

    def text(count: int) -> str:
        return " ".join(known[int(_NUM_WORDS * dice.random() ** (1 / _COMMON))] for _ in range(count)) + "."

    for number in range(num_rows):
        messages = []
        for _ in range(dice.randint(1, turns)):
            messages.append({"role": "user", "content": text(dice.randint(1, max(words // 5, 1)))})
            messages.append({"role": "assistant", "content": text(dice.randint(1, words))})
        row = {"id": f"{number}", "prompt_id": f"{number}", "messages": messages}
        yield {**row, "prompt_ids": None, "output_ids": None, "finish_reason": None}


def _trained(directory: Path, rows: list[dict[str, Any]]) -> Path:
    """A byte-level tokenizer for these rows, with ChatML's markers and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((message["content"] for row in rows for message in row["messages"]), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",  # noqa: S106  # a marker, no secret
        pad_token="<|endoftext|>",  # noqa: S106
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    directory.mkdir()
    tokenizer.save_pretrained(directory)
    return directory
