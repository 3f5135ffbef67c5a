"""The demo's corpus: conversations of three kinds, and benchmarks whose prompts never occur among them.

What a template's blanks are filled with (a story with its numbers, an operation with its names, a topic with an
occasion) is a combination. A hash of it decides, for all phrasings, whether it belongs to the conversations or to the
benchmarks. Every file is a pure function of the configuration.

Files: `conversations.jsonl` (what the pipeline starts from), `target-training.jsonl` (more of the same, for the
target's own training), `held-out.jsonl` (the benchmarks' prompts with answers, to measure the target on), and
`benchmarks/<kind>.jsonl` (`{"turns": [prompt]}`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from deepspec.demo import arithmetic, chat, code
from deepspec.demo.config import Config, Corpus
from deepspec.demo.draws import KeyedDraws
from deepspec.errors import DataError, RecipeError
from deepspec.keyed_random import fraction
from deepspec.progress import SILENT, Progress

CONVERSATIONS = "conversations.jsonl"
TARGET_TRAINING = "target-training.jsonl"
HELD_OUT = "held-out.jsonl"
BENCHMARKS = "benchmarks"

_MAX_TRIES = 1000
"""Draws without anything new before giving up: over that, what is missing is rarer than one in a hundred."""


class Problem(Protocol):
    """Something to ask, in several ways, with several good answers."""

    @property
    def combination(self) -> str:
        """What is asked, whatever its wording: held out as a whole."""

    def prompt(self, draws: KeyedDraws) -> str:
        """One way to ask."""

    def answer(self, draws: KeyedDraws) -> str:
        """One good answer."""


KINDS: Mapping[str, Callable[[KeyedDraws], Problem]] = MappingProxyType(
    {"arithmetic": arithmetic.draw_problem, "code": code.draw_problem, "chat": chat.draw_problem}
)


@dataclass(frozen=True)
class Conversation:
    """A prompt with one answer, and what kind it is."""

    kind: str
    prompt: str
    answer: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Conversation":
        """The conversation that `row` was made from."""
        prompt, answer = (message["content"] for message in row["messages"])
        return cls(row["kind"], prompt, answer)

    def row(self) -> dict[str, Any]:
        """The conversation as OpenAI messages."""
        contents = (("user", self.prompt), ("assistant", self.answer))
        return {"kind": self.kind, "messages": [{"role": role, "content": content} for role, content in contents]}


def is_held_out(problem: Problem, config: Corpus) -> bool:
    """Whether a problem's combination belongs to the benchmarks."""
    return fraction(f"{config.seed}/held-out/{problem.combination}") < config.held_out


def conversations(config: Corpus, name: str, count: int) -> Iterator[Conversation]:
    """Compose conversations, the kinds in turn, none of them held out.

    Args:
        config: seed and held-out share.
        name: of the series; another name gives other draws.
        count: how many.
    """
    kinds = tuple(KINDS)
    for index in range(count):
        kind = kinds[index % len(kinds)]
        draws = KeyedDraws(config.seed, name, index)
        problem = _draw(kind, draws, config, held_out=False)
        yield Conversation(kind, problem.prompt(draws), problem.answer(draws))


def benchmark(config: Corpus, kind: str) -> list[Conversation]:
    """Compose `num_benchmark_prompts` held-out conversations of a kind, with different prompts.

    Raises:
        RecipeError: there are fewer different ones.
    """
    found: dict[str, Conversation] = {}
    draws = KeyedDraws(config.seed, "benchmark", kind)
    tries = 0
    while tries < _MAX_TRIES:
        problem = _draw(kind, draws, config, held_out=True)
        conversation = Conversation(kind, problem.prompt(draws), problem.answer(draws))
        tries += 1
        if conversation.prompt not in found:
            found[conversation.prompt] = conversation
            tries = 0
        if len(found) == config.num_benchmark_prompts:
            return list(found.values())
    raise RecipeError(
        f"{config.num_benchmark_prompts} is more than the {len(found)} different {kind} prompts that are held out.",
        where="corpus.num_benchmark_prompts",
        remedy="Ask for fewer, or raise corpus.held_out.",
    )


def write_corpus(config: Config, out: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Write the corpus to the directory `out`.

    Args:
        config: its `corpus` section is read.
        out: created.
        progress: advances by conversations.

    Returns:
        Counts: `conversations`, `target_conversations`, `different_prompts` (of `conversations`), `benchmark_prompts`.

    Raises:
        RecipeError: see `benchmark`.
    """
    corpus = config.corpus
    benchmarks = {kind: benchmark(corpus, kind) for kind in KINDS}
    progress.start(corpus.num_conversations + corpus.num_target_conversations, "conversations")
    (out / BENCHMARKS).mkdir(parents=True, exist_ok=True)
    for kind, rows in benchmarks.items():
        _write(out / BENCHMARKS / f"{kind}.jsonl", ({"turns": [row.prompt]} for row in rows))
    _write(out / HELD_OUT, (row.row() for rows in benchmarks.values() for row in rows))
    prompts: set[str] = set()
    for file, count in ((CONVERSATIONS, corpus.num_conversations), (TARGET_TRAINING, corpus.num_target_conversations)):
        made = list(conversations(corpus, file, count))
        _write(out / file, (row.row() for row in made))
        progress.advance(count)
        if file == CONVERSATIONS:
            prompts.update(row.prompt for row in made)
    return {
        "conversations": corpus.num_conversations,
        "target_conversations": corpus.num_target_conversations,
        "different_prompts": len(prompts),
        "benchmark_prompts": sum(map(len, benchmarks.values())),
    }


def read_conversations(file: Path) -> list[Conversation]:
    """The conversations in a file that `write_corpus` wrote.

    Raises:
        DataError: the file is missing or is not one of those.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [Conversation.from_row(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is not a file of the demo's corpus ({error}).", where=str(file), remedy="Make the corpus again."
        ) from error


def _draw(kind: str, draws: KeyedDraws, config: Corpus, *, held_out: bool) -> Problem:
    for _ in range(_MAX_TRIES):
        problem = KINDS[kind](draws)
        if is_held_out(problem, config) == held_out:
            return problem
    raise RecipeError(
        f"{config.held_out} leaves no {kind} problems {'for the benchmarks' if held_out else 'to train on'}.",
        where="corpus.held_out",
        remedy="Choose a share like 0.1.",
    )


def _write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8", newline="\n")
