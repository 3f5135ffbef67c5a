"""One conversation while it is answered: its next request, and the row of its answers."""

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any

from deepspec.data.chat.renderer import Renderer
from deepspec.data.config import Config
from deepspec.data.responses.requests import GenerationFailure, GenerationRequest, GenerationResult
from deepspec.data.sources.rows import Message, Position, RowRejected
from deepspec.data.tables import TOOLS
from deepspec.keyed_random import integer

NO_ROOM = "prompt leaves no room for an answer within data.max_length_tokens"


def answer_seed(seed: int, prompt_id: str, index: int, turn: int) -> int:
    """The seed of one answer, in 0 … 2^63 - 1.

    Args:
        seed: the recipe's.
        prompt_id: hash of the prompt.
        index: which of the answers to equal prompts.
        turn: which of the user's turns, from 0.
    """
    return integer(f"answer/{seed}/{prompt_id}/{index}/{turn}", bits=63)


@dataclass(frozen=True, slots=True)
class IndexedRow:
    """A row of the conversations, its position, and its index among the rows with its prompt."""

    split: str
    position: Position
    index: int
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a conversation: a row to write, or why there is none.

    `is_excluded`: the recipe excludes answers that were cut off, and there was no other.
    """

    split: str
    position: Position
    index: int
    row: dict[str, Any]
    rejection: RowRejected | None
    excerpt: str
    is_excluded: bool = False


class Conversation:
    """A conversation that is being answered, turn by turn.

    Attributes:
        was_cut_off: whether the last answer that was asked for was.
        turns_left_out: user turns that were given up, because an answer was cut off or empty or there was no room.
    """

    def __init__(self, indexed: IndexedRow, *, thinks: bool) -> None:
        self.indexed = indexed
        self._thinks = thinks
        self._tools: str | None = indexed.row[TOOLS]
        self.was_cut_off = False
        self._rejection: RowRejected | None = None
        self._messages: list[Message] = []  # asked and answered so far
        self._prompt: list[Message] = []  # those, and what is being asked
        self._last: tuple[GenerationRequest, GenerationResult] | None = None
        self._turn = 0
        self._waiting: deque[list[Message]] = deque()  # for each turn to come, the messages up to its answer
        asked: list[Message] = []
        messages = indexed.row["messages"]
        answered_by_a_tool = next((n for n, message in enumerate(messages) if message["role"] == "tool"), len(messages))
        self._num_unasked = sum(message["role"] == "user" for message in messages[answered_by_a_tool:])
        self.turns_left_out = self._num_unasked
        for message in messages[:answered_by_a_tool]:
            if message["role"] != "assistant":
                asked.append(message)
            if message["role"] == "user":
                self._waiting.append(asked)
                asked = []

    @property
    def is_open(self) -> bool:
        """Whether there is more to ask, or an answer is awaited."""
        return bool(self._waiting)

    @property
    def is_excluded(self) -> bool:
        """Whether nothing is left of it because its only answer was cut off."""
        return self.was_cut_off and self._last is None

    def ask(self, config: Config, renderer: Renderer) -> GenerationRequest | None:
        """The request for the next turn; None if it cannot be asked, which ends the conversation."""
        self._prompt = [*self._messages, *self._waiting[0]]
        try:
            prompt_ids = renderer.prompt_ids(self._prompt, tools=self._tools, thinks=self._thinks)
            room = config.max_length_tokens - len(prompt_ids)
            if room < config.min_supervised_tokens:
                raise RowRejected(NO_ROOM, detail=f"{len(prompt_ids)} tokens")
        except RowRejected as rejection:
            if self._turn == 0:
                self._rejection = rejection
            self._give_up()
            return None
        prompt_id, index = self.indexed.row["prompt_id"], self.indexed.index
        return GenerationRequest(
            id=f"{prompt_id}-{index}-{self._turn}",
            prompt_ids=prompt_ids,
            max_new_tokens=min(config.responses.max_new_tokens, room),
            seed=answer_seed(config.responses.seed, prompt_id, index, self._turn),
        )

    def take(self, config: Config, request: GenerationRequest, result: GenerationResult, renderer: Renderer) -> None:
        """Append the answer to what was asked last."""
        self.was_cut_off = result.finish_reason == "length"
        if self.was_cut_off and config.responses.truncated == "exclude":
            self._give_up()  # with the turn that it answers: the turns before it are whole
            return
        answer = renderer.answer(result.output_ids, thinks=self._thinks, has_tools=self._tools is not None)
        self._last = (request, result)
        self._messages = [*self._prompt, answer]
        self._turn += 1
        self._waiting.popleft()
        calls_a_tool = self._tools is not None and renderer.calls_a_tool(answer)
        if self.was_cut_off or not answer["content"].strip() or calls_a_tool:
            self._give_up()  # no turn follows half an answer, and no tool runs here that could answer a call

    def fail(self, failure: GenerationFailure) -> None:
        """Reject the whole conversation: an answer failed."""
        self._rejection = RowRejected(failure.reason, detail=failure.words or None)
        self._give_up()

    def outcome(self, config: Config) -> Outcome:
        """The row that is written, or the reason for the quarantine."""
        prompt_id = self.indexed.row["prompt_id"]
        row = {
            "id": hashlib.sha256(f"{prompt_id}/{self.indexed.index}".encode()).hexdigest()[:32],
            "prompt_id": prompt_id,
            "messages": self._messages,
            TOOLS: self._tools,
            **(NO_ANSWER if self._last is None else _answer_columns(config, *self._last)),
        }
        if self._turn != 1 and not self._thinks:
            row |= {"prompt_ids": None, "output_ids": None}
        indexed = self.indexed
        return Outcome(
            indexed.split,
            indexed.position,
            indexed.index,
            row,
            self._rejection,
            excerpt=self._prompt[-1]["content"],
            is_excluded=self.is_excluded,
        )

    def _give_up(self) -> None:
        self.turns_left_out = self._num_unasked + len(self._waiting)
        self._waiting.clear()


class Served:
    """A conversation whose last answer the target has given in production: there is nothing to ask."""

    is_open = is_excluded = was_cut_off = False
    turns_left_out = 0

    def __init__(self, indexed: IndexedRow) -> None:
        self.indexed = indexed

    def outcome(self, config: Config) -> Outcome:
        """The row as it is, its last answer alone supervised."""
        del config
        indexed, messages = self.indexed, self.indexed.row["messages"]
        kept = [{**message, "weight": "0"} if message["role"] == "assistant" else message for message in messages[:-1]]
        row = {**indexed.row, **NO_ANSWER, "messages": [*kept, messages[-1]]}
        return Outcome(indexed.split, indexed.position, indexed.index, row, None, "")


NO_ANSWER = dict.fromkeys(
    ("prompt_ids", "output_ids", "finish_reason", "sampling", "engine", "engine_version", "ids_from")
)


def _answer_columns(config: Config, request: GenerationRequest, result: GenerationResult) -> dict[str, Any]:
    """What a row says of an answer."""
    sampling = {name: getattr(config.responses, name) for name in ("temperature", "top_p", "top_k")}
    return {
        "prompt_ids": request.prompt_ids,
        "output_ids": result.output_ids,
        "finish_reason": result.finish_reason,
        "sampling": {**sampling, "max_new_tokens": request.max_new_tokens, "seed": request.seed},
        "engine": result.engine,
        "engine_version": result.engine_version,
        "ids_from": result.ids_from,
    }
