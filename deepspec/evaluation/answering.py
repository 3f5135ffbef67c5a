"""Plays prompts through an engine, turn by turn, many at once; a prompt that fails does not lose the others.

A later turn follows the target's own plain answers to the earlier ones: these are the same for every draft, so that
drafts can be compared prompt by prompt.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deepspec.data.responses.requests import GenerationRequest
from deepspec.data.sources.rows import Message
from deepspec.decoding.completion import Completion
from deepspec.decoding.engine import Engine
from deepspec.decoding.random import derive_seed
from deepspec.errors import DataError, UnsupportedTarget
from deepspec.evaluation.config import Config
from deepspec.evaluation.prompts.selection import (
    EncodedPrompt,
    EncodedPrompts,
    Skipped,
    answer_message,
    encode_turn,
    num_turns,
)
from deepspec.evaluation.results import LostTurn
from deepspec.progress import SILENT, Progress

if TYPE_CHECKING:
    from deepspec.data.chat.renderer import Renderer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One turn, answered speculatively.

    Attributes:
        turn: what was asked.
        completion: the answer and its rounds.
    """

    turn: EncodedPrompt
    completion: Completion

    @property
    def prompt_id(self) -> str:
        """The prompt that it is a turn of: what intervals are over."""
        return self.turn.asked.id if self.turn.asked is not None else self.turn.id


@dataclass(frozen=True)
class Answers:
    """A benchmark or split, answered.

    Attributes:
        answers: in the order of prompts and turns.
        skipped: turns that were too long.
        failed: turns that could not be decoded.
    """

    answers: list[Answer] = field(default_factory=list)
    skipped: list[LostTurn] = field(default_factory=list)
    failed: list[LostTurn] = field(default_factory=list)


def requests_for(
    config: Config, prompts: Sequence[EncodedPrompt], max_new_tokens: int | None = None
) -> list[GenerationRequest]:
    """What is asked of an engine; an answer's randomness depends on the sampling seed and the prompt alone."""
    return [
        GenerationRequest(
            id=prompt.id,
            prompt_ids=prompt.prompt_ids,
            max_new_tokens=max_new_tokens or config.max_new_tokens,
            seed=derive_seed(config.sampling.seed, prompt.id),
        )
        for prompt in prompts
    ]


def answer(
    name: str,
    prompts: EncodedPrompts,
    config: Config,
    *,
    speculative: Engine,
    plain: Engine,
    renderer: "Renderer | None",
    context: int,
    progress: Progress = SILENT,
) -> Answers:
    """Answer every turn of every prompt.

    Args:
        name: of the benchmark or split, for messages.
        prompts: first turns.
        config: sampling, limits, and the share of prompts that may be lost.
        speculative: answers them.
        plain: answers the turns that later turns follow.
        renderer: the target's chat template; None: first turns only.
        context: positions that the target has.
        progress: advances by prompts.

    Raises:
        DataError: more than `config.max_skipped_share` of the prompts were too long or failed, or all were.
    """
    answered = Answers(skipped=list(prompts.skipped))
    answers: dict[str, Answer] = {}
    histories: dict[str, list[Message]] = {}
    turns = list(prompts.prompts)
    order = [turn.id for turn in turns]
    while turns:
        found, reasons = decoded(speculative, requests_for(config, turns))
        for turn in turns:
            if turn.id in found:
                answers[turn.id] = Answer(turn, found[turn.id])
            else:
                logger.warning("benchmark %s, %s: %s", name, turn.place, reasons[turn.id])
                answered.failed.append(Skipped(turn.id, turn.place, reasons[turn.id], turn.turn).lost())
            if turn.turn == 0:
                progress.advance()
        going = [turn for turn in turns if renderer is not None and turn.id in found and _has_next_turn(turn)]
        said, reasons = decoded(plain, requests_for(config, going))
        turns = []
        for turn in going:
            if turn.asked is None or renderer is None:
                continue
            if turn.id not in said:
                answered.failed.append(Skipped(turn.id, turn.place, reasons[turn.id], turn.turn).lost())
                continue
            history = histories.setdefault(turn.asked.id, [])
            history.append(answer_message(turn.asked, said[turn.id].output_ids, renderer))
            following = encode_turn(name, turn.asked, history, renderer, context=context)
            if isinstance(following, Skipped):
                answered.skipped.append(following.lost())
            else:
                turns.append(following)
    places = {name: place for place, name in enumerate(order)}
    answered.answers.extend(sorted(answers.values(), key=lambda one: (places[one.prompt_id], one.turn.turn)))
    _check_losses(name, prompts, answered, config)
    return answered


def decoded(engine: Engine, requests: Sequence[GenerationRequest]) -> tuple[dict[str, Completion], dict[str, str]]:
    """Decode requests together; where the target fails, what is left is decoded one by one.

    Returns:
        What came out, and why the others did not; both by id.
    """
    found: dict[str, Completion] = {}
    try:
        for completion in engine.run(requests):
            found[completion.id] = completion
    except UnsupportedTarget:
        logger.debug("a batch failed; its requests are decoded one by one")
    else:
        return found, {}
    reasons: dict[str, str] = {}
    for request in requests:
        if request.id in found:
            continue
        try:
            [completion] = engine.run([request])
        except UnsupportedTarget as error:
            reasons[request.id] = str(error)
        else:
            found[request.id] = completion
    return found, reasons


def _has_next_turn(turn: EncodedPrompt) -> bool:
    return turn.asked is not None and turn.turn + 1 < num_turns(turn.asked)


def _check_losses(name: str, prompts: EncodedPrompts, answered: Answers, config: Config) -> None:
    """Too many lost prompts are an error; those that were too long at their first turn have been counted before."""
    asked = len(prompts.prompts)
    late = [turn for turn in answered.skipped if turn.turn is not None]
    lost = {_prompt_of(turn) for turn in (*answered.failed, *late)}
    if len(lost) > config.max_skipped_share * asked or (asked and not answered.answers):
        first = (*answered.failed, *late)[0]
        raise DataError(
            f"{len(lost)} of {asked} prompts failed; the first: {first.reason}",
            where=f"benchmark {name}, {first.place}",
            remedy="Leave the benchmark out, or raise evaluate.max_skipped_share.",
        )


def _prompt_of(lost: LostTurn) -> str:
    return lost.prompt.rsplit("-", 1)[0] if lost.turn is not None and "-" in lost.prompt else lost.prompt
