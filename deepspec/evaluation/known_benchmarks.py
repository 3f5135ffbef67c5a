"""The benchmarks that are known by name: their domain, where they are published, and how a row becomes a prompt.

A known benchmark is read as it was published: each of its rows becomes the user's turns, with the instruction that the
public evaluations of draft models put around it. Rows that already have `turns` or `messages` are taken as they are.

    mine = KNOWN["gsm8k"].turns({"question": "…", "answer": "…"})   # ["…\\nPlease reason step by step, …"]

Numbers of prompts, ids and instructions are those of DeepSpec's and DFlash's public evaluations (the sets without a
number, AIME24, LBPP and SWE-bench, are in the latter alone). The ids on the hub, their splits and their columns were
taken from public code and pages; nothing was fetched from the hub to check them. They name no revision: what is read is
what the hub has when a run starts, and its commit is part of the keys.

Not here: reading rows (prompts/files.py). Only the standard library is imported: recipes are checked against this.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from deepspec.data.sources.forms import instruction_with_input
from deepspec.data.sources.hub import HubPart, split_id
from deepspec.data.sources.rows import RowRejected
from deepspec.errors import DataError

Domain = Literal["math", "code", "chat"]
Row: TypeAlias = Mapping[str, Any]
"""A row of a published data set, as it is; what is read of it is checked."""

VARIABLE = "DEEPSPEC_BENCHMARKS"
"""Names a folder, or a prefix `s3://bucket/…`, with `<name>.jsonl` or `<name>.parquet` of known benchmarks."""

_SUFFIXES = (".jsonl", ".parquet")
_PYTHON_BLOCK = "```python\n{}\n```"


@dataclass(frozen=True)
class KnownBenchmark:
    """A benchmark that is known by name.

    Attributes:
        name: that name.
        domain: what its answers are.
        num_prompts: asked in DeepSpec's protocol; None: it is not part of it.
        hub: id of the original on the hub, `owner/name`.
        part: what of it.
        questions: columns where a row may have its question; the first that it has is taken.
        ask: the user's turn, from the question and the row.
        optional: more columns that `ask` reads, each of which a row may lack.
    """

    name: str
    domain: Domain
    num_prompts: int | None
    hub: str
    part: HubPart
    questions: tuple[str, ...]
    ask: Callable[[str, Row], str] = field(repr=False)
    optional: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All that is read of a row."""
        return self.questions + self.optional

    def turns(self, row: Row) -> list[str]:
        """The user's turns that one of the benchmark's own rows becomes.

        Raises:
            RowRejected: it has no question, or one that is no text.
        """
        column = next((name for name in self.questions if row.get(name) is not None), None)
        question = row[column] if column is not None else []
        questions = question if isinstance(question, list) else [question]
        if not questions:
            raise RowRejected(f"row of {self.name} without {' or '.join(self.questions)}")
        return [self.ask(_checked(text, str(column)), row) for text in questions]


def _checked(text: object, column: str) -> str:
    if not isinstance(text, str):
        raise RowRejected(f"{column} is not a string")
    if not text.strip():
        raise RowRejected(f"{column} is empty")
    return text


def _optional_text(row: Row, column: str) -> str:
    """Optional text of a row; "" where it has none."""
    text = row.get(column)
    if text is not None and not isinstance(text, str):
        raise RowRejected(f"{column} is not a string")
    return text or ""


def _unchanged(question: str, row: Row) -> str:
    del row
    return question


def _reasoning(question: str, row: Row) -> str:
    del row
    return f"{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}."


def _function(question: str, row: Row) -> str:
    del row
    what = "Write a solution to the following problem and make sure that it passes the tests:"
    return f"{what}\n{_PYTHON_BLOCK.format(question)}"


def _program(question: str, row: Row) -> str:
    """LiveCodeBench's own form: with the code to start from, where there is some."""
    begun = _optional_text(row, "starter_code")
    form = "Use the following code structure" if begun else "Write your code in the following format"
    return (
        "You are an expert Python programmer. You will be given a question (problem specification) and will generate"
        " a correct Python program that matches the specification and passes all tests. You will NOT return anything"
        " except for the program\n\n"
        f"### Question:\n{question}\n\n"
        f"### Format: {form}:\n{_PYTHON_BLOCK.format(begun or '# YOUR CODE HERE')}\n\n"
        "### Answer: (use the provided format with backticks)"
    )


def _issue(question: str, row: Row) -> str:
    del row
    return f"Problem Statement:\n{question}\nPlease fix the issue described above."


def _instruction(question: str, row: Row) -> str:
    return instruction_with_input(question, _optional_text(row, "input"))


_LIVE_FILES = tuple(f"test{number}.jsonl" for number in ("", 2, 3, 4, 5, 6))

_TABLE = (
    KnownBenchmark("gsm8k", "math", 500, "openai/gsm8k", HubPart("main", "test"), ("question",), _reasoning),
    KnownBenchmark("math500", "math", 500, "HuggingFaceH4/MATH-500", HubPart(split="test"), ("problem",), _reasoning),
    KnownBenchmark(
        "aime24",
        "math",
        None,
        "HuggingFaceH4/aime_2024",
        HubPart(split="train"),
        ("problem", "Problem", "question"),  # so called in other public copies
        _reasoning,
    ),
    KnownBenchmark(
        "aime25",
        "math",
        30,
        "MathArena/aime_2025",
        HubPart(split="train"),
        ("problem", "Problem", "question"),
        _reasoning,
    ),
    KnownBenchmark("humaneval", "code", 164, "openai/openai_humaneval", HubPart(split="test"), ("prompt",), _function),
    KnownBenchmark(
        "mbpp",
        "code",
        256,
        "google-research-datasets/mbpp",
        HubPart("sanitized", "test"),
        ("prompt", "text"),  # the second in the full configuration
        _unchanged,
    ),
    KnownBenchmark(
        "livecodebench",
        "code",
        500,
        "livecodebench/code_generation_lite",
        HubPart(files=_LIVE_FILES),
        ("question_content",),
        _program,
        optional=("starter_code",),
    ),
    KnownBenchmark(
        "lbpp", "code", None, "CohereLabs/lbpp", HubPart(files=("python/test.parquet",)), ("instruction",), _unchanged
    ),
    KnownBenchmark(
        "swe-bench",
        "code",
        None,
        "princeton-nlp/SWE-bench_Lite",
        HubPart(split="test"),
        ("problem_statement",),
        _issue,
    ),
    KnownBenchmark(
        "mt-bench",
        "chat",
        80,
        "HuggingFaceH4/mt_bench_prompts",
        HubPart(split="train"),
        ("prompt",),  # a list: both turns
        _unchanged,
    ),
    KnownBenchmark(
        "alpaca",
        "chat",
        500,
        "tatsu-lab/alpaca",
        HubPart(split="train"),
        ("instruction",),
        _instruction,
        optional=("input",),
    ),
    KnownBenchmark(
        "arena-hard-v2",
        "chat",
        500,
        "lmarena-ai/arena-hard-auto",
        HubPart(files=("data/arena-hard-v2.0/question.jsonl",)),
        ("prompt",),
        _unchanged,
    ),
)

KNOWN: Mapping[str, KnownBenchmark] = MappingProxyType({known.name: known for known in _TABLE})
_BY_HUB_ID = MappingProxyType({known.hub: known for known in _TABLE})


def known_benchmark(path: str) -> KnownBenchmark | None:
    """The known benchmark that a path means by itself: its name, or its id on the hub (with any revision)."""
    return KNOWN.get(path) or _BY_HUB_ID.get(split_id(path)[0])


def unknown_name(name: str) -> str:
    """What to say of a name that is no benchmark's: which is meant, and which there are; no full stop."""
    close = get_close_matches(name.lower(), KNOWN, n=1)
    advice = f"Did you mean {close[0]}? " if close else ""
    return f"{advice}Known by name: {', '.join(KNOWN)}; anything else needs a file's path"


Copy = Callable[[str, str], str]
"""The local path of a location in object storage (any other is handed back); and the field, for messages."""


def located(name: str, path: str, copy: Copy | None = None) -> str:
    """Where a benchmark is read: the file that a known name stands for, or its id on the hub; else `path`'s own copy.

    With DEEPSPEC_BENCHMARKS set a known name is a file there, and nothing else: what is missing is not silently had
    from somewhere else.

    Args:
        name: the benchmark's in the recipe.
        path: a known name, or where it lies.
        copy: of what lies in object storage; None: that is an error.

    Raises:
        DataError: the folder or prefix has no such file; and what `copy` raises.
    """
    where = f"evaluate.benchmarks.{name}"
    known = KNOWN.get(path)
    folder = os.environ.get(VARIABLE)
    if known is not None and not folder:
        return known.hub
    location = path if known is None else str(folder)
    if copy is None and location.startswith("s3://"):
        raise DataError("is in object storage.", where=f"{where} {location}", remedy="Copy it into a folder.")
    if known is None or folder is None:
        return path if copy is None else copy(path, where)
    for suffix in _SUFFIXES:
        found = _in_folder(folder, known.name + suffix, where, copy)
        if found is not None:
            return found
    raise DataError(
        f"There is no {' or '.join(known.name + suffix for suffix in _SUFFIXES)} in {folder}, which {VARIABLE} names.",
        where=where,
        remedy=f"Put it there, set {where}={known.hub} to have it from the hub, or leave the benchmark out.",
    )


def _in_folder(folder: str, file: str, where: str, copy: Copy | None) -> str | None:
    if copy is None or "://" not in folder:
        path = Path(folder).expanduser() / file
        return str(path) if path.is_file() else None
    try:
        return copy(f"{folder.rstrip('/')}/{file}", where)
    except DataError:  # there is no such object; a storage that does not answer is another type
        return None
