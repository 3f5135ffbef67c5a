"""Prompts that drafts are judged on: read from benchmarks or from the run's own splits, chosen, and encoded.

Choices go by content hash: they depend on neither the order of a file nor on its other rows. What is held out of
training is decided by `share` alone, so that evaluating more or fewer prompts never changes the training data.

A benchmark's prompt is all of a row's user turns, asked one after the other: a later one behind the answers that the
target has given to the earlier ones, not behind those that the row may have. Of a split only the first turn is asked.
Equal first turns are one prompt. Not here: decoding, and finding files (files.py).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.data.conversations.decontamination import BenchmarkPrompt
from deepspec.data.sources.parsing import conversation_hash, parse_row, prompt_hashes
from deepspec.data.sources.rows import Message, RowRejected
from deepspec.data.tables import read_conversations
from deepspec.errors import DataError
from deepspec.evaluation.config import Benchmark, Config
from deepspec.evaluation.known_benchmarks import KnownBenchmark
from deepspec.evaluation.prompts.files import MAX_ROW_BYTES, find_benchmark, read_benchmark_rows
from deepspec.evaluation.results import LostTurn
from deepspec.keyed_random import fraction

if TYPE_CHECKING:
    from deepspec.data.chat.renderer import Renderer


@dataclass(frozen=True)
class Prompt:
    """What is asked: one question, or several in turn.

    Attributes:
        id: hash of the first user turn: equal questions are one prompt.
        messages: what the target is asked first: that turn, after a system message if there is one.
        place: file and row, or split.
        known_as: hashes under which the whole row, with all its turns, is recognised among training conversations.
        tools: what the target may call, as the data have it, or None.
        thinks: whether the target is asked to think; None: as `data.thinking` has it for what has no thought.
        row: of the file or data set, from 1.
        turns: of the user, all that the row has: what is recognised in training conversations.
        later: those of them that are asked after the first.
    """

    id: str
    messages: tuple[Message, ...]
    place: str
    known_as: frozenset[str]
    tools: str | None = None
    thinks: bool | None = None
    row: int = 0
    turns: tuple[str, ...] = ()
    later: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedPrompt:
    """A turn of a prompt as the target reads it: ready to be answered.

    Attributes:
        id: the prompt's, and of later turns `<prompt's>-<turn>`: what an answer's randomness depends on.
        prompt_ids: up to where the answer begins.
        place: file and row, or split.
        turn: which, from 0.
        asked: the prompt that it is a turn of, if it has later ones.
    """

    id: str
    prompt_ids: tuple[int, ...]
    place: str
    turn: int = 0
    asked: Prompt | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Skipped:
    """A turn that cannot be asked. With it, the prompt's later turns cannot be either.

    Attributes:
        prompt: the prompt's id.
        place: file and row, or split.
        reason: why.
        turn: which, from 0.
    """

    prompt: str
    place: str
    reason: str
    turn: int = 0

    def lost(self) -> LostTurn:
        """As it stands in a result: the turn is named where it is not the first."""
        if not self.turn:
            return LostTurn(prompt=self.prompt, place=self.place, reason=self.reason)
        return LostTurn(prompt=self.prompt, turn=str(self.turn), place=self.place, reason=self.reason)


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts of one benchmark or split, ready to be decoded.

    Attributes:
        prompts: first turns of those that fit.
        skipped: the others.
    """

    prompts: tuple[EncodedPrompt, ...]
    skipped: tuple[LostTurn, ...] = ()


def read_benchmark(
    name: str, path: str, *, known: KnownBenchmark | None = None, system_prompt: str | None = None
) -> list[Prompt]:
    """All different prompts of a benchmark, in the order of its rows.

    Args:
        name: for messages.
        path: file, folder, glob, `datasets` id or a known benchmark's name; rows with `turns`, `messages` or
            `conversations`.
        known: the known benchmark whose own rows it may have instead.
        system_prompt: put before rows that have no system message, as `data.system_prompt` is in training.

    Raises:
        DataError: the benchmark cannot be read or is empty, or a row is malformed; names benchmark and row.
    """
    prompts: dict[str, Prompt] = {}
    for source in find_benchmark(name, path, known):
        for row in read_benchmark_rows(source, known):
            try:
                if row.rejection is not None:
                    raise row.rejection
                messages = parse_row(row.value, max_row_bytes=MAX_ROW_BYTES, system_prompt=system_prompt)
            except RowRejected as rejection:
                detail = f" ({rejection.detail})" if rejection.detail else ""
                raise DataError(
                    f"{rejection.reason}{detail}.",
                    where=f"benchmark {name}, {row.position}",
                    remedy=_row_forms(known),
                ) from rejection
            prompt = replace(_prompt(messages, str(row.position)), row=row.position.row, later=_later(messages))
            prompts.setdefault(prompt.id, prompt)
    if not prompts:
        raise DataError(
            "The benchmark is empty.", where=f"benchmark {name}, {path}", remedy="Give it rows, or leave it out."
        )
    return list(prompts.values())


def _row_forms(known: KnownBenchmark | None) -> str:
    own = "" if known is None else f", or one of {known.name} as published, with {' or '.join(known.questions)}"
    return f'A row is {{"turns": ["first turn", …]}} or {{"messages": [{{"role": …, "content": …}}, …]}}{own}.'


def _later(messages: Sequence[Message]) -> tuple[str, ...]:
    """The user's turns after the first, up to a tool's result: there are no tools to run the target's own calls."""
    end = next((index for index, message in enumerate(messages) if message["role"] == "tool"), len(messages))
    return tuple(message["content"] for message in messages[:end] if message["role"] == "user")[1:]


def held_out(prompts: Iterable[Prompt], name: str, benchmark: Benchmark, seed: int) -> list[Prompt]:
    """Those of a benchmark's prompts that no draft may be trained on: a seeded share by content.

    Raises:
        DataError: the share holds no prompt.
    """
    kept = [prompt for prompt in prompts if _fraction(seed, "share", prompt.id) < benchmark.share]
    if not kept:
        raise DataError(
            f"A share of {benchmark.share:g} leaves no prompt.", where=f"benchmark {name}", remedy="Raise its share."
        )
    return kept


def held_out_prompts(config: Config, *, system_prompt: str | None = None) -> list[BenchmarkPrompt]:
    """Everything that the benchmarks hold out: what `write_conversations` has to leave out.

    Raises:
        DataError: as `read_benchmark`.
    """
    return [
        BenchmarkPrompt(name, prompt.row, prompt.known_as, prompt.turns)
        for name, benchmark in sorted(config.benchmarks.items())
        for prompt in held_out(
            read_benchmark(name, benchmark.path, known=benchmark.known(name), system_prompt=system_prompt),
            name,
            benchmark,
            config.seed,
        )
    ]


def select(name: str, benchmark: Benchmark, *, seed: int, system_prompt: str | None = None) -> list[Prompt]:
    """The prompts of a benchmark that are evaluated.

    Args:
        name: for messages.
        benchmark: where they are and how many are wanted.
        seed: of the choice.
        system_prompt: as in `read_benchmark`.

    Returns:
        A subset of the held-out ones, in a seeded order: fewer prompts are a prefix of more.

    Raises:
        DataError: as `read_benchmark` and `held_out`.
    """
    prompts = read_benchmark(name, benchmark.path, known=benchmark.known(name), system_prompt=system_prompt)
    return _first(held_out(prompts, name, benchmark, seed), benchmark.num_prompts, seed)


def select_split(
    file: Path, *, num_prompts: int | None, seed: int, thinks: Callable[[Sequence[Message]], bool] | None = None
) -> list[Prompt]:
    """Different prompts of one of the run's own splits.

    Args:
        file: `<split>.parquet` of the conversations or responses stage.
        num_prompts: most prompts to select; None: all.
        seed: of the choice.
        thinks: whether the target is asked to think in a conversation.

    Raises:
        ArtifactError: the file cannot be read.
        DataError: it has no rows.
    """
    prompts: dict[str, Prompt] = {}
    for row in read_conversations(file, ("messages",)):
        prompt = _prompt(row["messages"], file.stem)
        prompt = replace(prompt, tools=row["tools"], thinks=thinks(row["messages"]) if thinks else None)
        prompts.setdefault(prompt.id, prompt)
    if not prompts:
        raise DataError(
            f"The split {file.stem} has no conversation.",
            where=f"data.splits.{file.stem}",
            remedy="Give it a larger share, or more conversations.",
        )
    return _first(prompts.values(), num_prompts, seed)


def encode(
    name: str, prompts: Sequence[Prompt], renderer: "Renderer", *, context: int, max_skipped_share: float
) -> EncodedPrompts:
    """Render the first turns of prompts with the target's chat template.

    Args:
        name: of the benchmark or split, for messages.
        prompts: what is asked.
        renderer: the target's tokenizer and chat format.
        context: positions that the target has; a prompt that fills it is skipped.
        max_skipped_share: largest share of skipped prompts, 0 … 1.

    Raises:
        DataError: the template refuses a prompt, or too many (or all of them) don't fit.
    """
    encoded, skipped = [], []
    for prompt in prompts:
        turn = encode_turn(name, prompt, (), renderer, context=context)
        if isinstance(turn, EncodedPrompt):
            encoded.append(turn)
        else:
            skipped.append(turn.lost())
    if len(skipped) > max_skipped_share * len(prompts) or (skipped and not encoded):
        raise DataError(
            f"{len(skipped)} of {len(prompts)} prompts don't fit into the target's context; the first is"
            f" {skipped[0].place} with {skipped[0].reason}. evaluate.max_skipped_share allows {max_skipped_share:.1%}.",
            where=f"benchmark {name}",
            remedy="Leave the benchmark out, or raise evaluate.max_skipped_share.",
        )
    return EncodedPrompts(tuple(encoded), tuple(skipped))


def num_turns(prompt: Prompt) -> int:
    """How many turns of a prompt are asked."""
    return 1 + len(prompt.later)


def encode_turn(
    name: str, prompt: Prompt, answers: Sequence[str | Message], renderer: "Renderer", *, context: int
) -> EncodedPrompt | Skipped:
    """Render the next turn of a prompt, behind the answers that were given so far.

    Args:
        name: of the benchmark or split, for messages.
        prompt: what is asked.
        answers: to its turns before this one, in order; their number is the turn, less than `num_turns(prompt)`. As
            texts, or as messages (`answer_message`).
        renderer: the target's tokenizer and chat format.
        context: positions that the target has; a turn that fills it is skipped.

    Raises:
        DataError: the template refuses the conversation; names benchmark, row and turn.
    """
    turn = len(answers)
    messages = list(prompt.messages)
    for answer, question in zip(answers, prompt.later[:turn], strict=True):
        messages.append({"role": "assistant", "content": answer} if isinstance(answer, str) else answer)
        messages.append({"role": "user", "content": question})
    thinks = prompt.thinks if turn == 0 else _thinks(prompt, renderer)
    try:
        ids = renderer.prompt_ids(messages, tools=prompt.tools, thinks=thinks)
    except RowRejected as rejection:
        where = f"benchmark {name}, {prompt.place}" + (f", turn {turn + 1}" if turn else "")
        raise DataError(
            f"{rejection.reason}.", where=where, remedy="Correct that row, or leave the benchmark out."
        ) from rejection
    if len(ids) >= context:
        reason = f"{len(ids)} tokens, but the target's context holds {context}"
        return Skipped(prompt.id, prompt.place, reason, turn)
    turn_id = f"{prompt.id}-{turn}" if turn else prompt.id
    return EncodedPrompt(turn_id, ids, prompt.place, turn, prompt if prompt.later else None)


def answer_message(prompt: Prompt, output_ids: Sequence[int], renderer: "Renderer") -> Message:
    """The assistant's message that an answer to a prompt's turn is, as the turns after it have it before them.

    It is what regenerated conversations have: text without the token that ended it; a thought that was asked for is
    separate (`reasoning_content`), and the chat template leaves it out of past turns, as in serving.
    """
    said = list(output_ids)
    while said and said[-1] in renderer.end_of_turn_ids:  # not every tokenizer counts it to its special tokens
        said.pop()
    return renderer.answer(said, thinks=_thinks(prompt, renderer), has_tools=prompt.tools is not None)


def _thinks(prompt: Prompt, renderer: "Renderer") -> bool:
    """Whether the target thinks: as at the first turn, whatever its answers look like."""
    return renderer.thinks(prompt.messages) if prompt.thinks is None else prompt.thinks


def by_rank(ids: Iterable[str], seed: int, purpose: str) -> Iterator[str]:
    """Names in a seeded order that depends on nothing but the names themselves."""
    yield from sorted(ids, key=lambda name: (_fraction(seed, purpose, name), name))


def _prompt(messages: Sequence[Message], place: str) -> Prompt:
    first = next(index for index, message in enumerate(messages) if message["role"] == "user")
    asked = tuple(messages[: first + 1])
    turns = tuple(message["content"] for message in messages if message["role"] == "user")
    return Prompt(conversation_hash([messages[first]]), asked, place, prompt_hashes(messages), turns=turns)


def _first(prompts: Iterable[Prompt], num_prompts: int | None, seed: int) -> list[Prompt]:
    by_id = {prompt.id: prompt for prompt in prompts}
    order = list(by_rank(by_id, seed, "choice"))
    return [by_id[name] for name in order[:num_prompts]]


def _fraction(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that is a pure function of its arguments."""
    return fraction(f"{purpose}\x1f{seed}\x1f{name}", bits=48)
