"""The request to an OpenAI-compatible server for one answer, and how its reply is read.

The prompt goes as token ids to `/v1/completions`: the target reads exactly what our renderer wrote, and the server's
chat template has no part in it. The request asks for the answer's ids as well (`return_token_ids`: vLLM from 0.10 on,
SGLang since July 2026); a server that ignores this returns text only, which is encoded once and marked.

Every sampling parameter is sent, neutral ones included. vLLM and SGLang take a missing one from the model's
generation_config.json, and a repetition penalty there would change the answers silently.

Pure functions: nothing is sent here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deepspec.data.config import Responses
from deepspec.data.responses.reported_rounds import ASKED, reported_rounds
from deepspec.data.responses.requests import GenerationFailure, GenerationRequest, GenerationResult
from deepspec.data.sources.rows import excerpt_of
from deepspec.errors import DataError
from deepspec.foreign_json import parse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_MOST_WORDS = 1 << 16
"""Bytes of a reply in which a server's words about a failure are looked for."""

_FINISHED: Mapping[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}


class BadReply(Exception):
    """A reply that cannot be used; another attempt may help.

    Attributes:
        reason: what is wrong, in words that many can share.
        words: what the server said.
    """

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.words = words


@dataclass(frozen=True)
class Vocabulary:
    """What is needed to tell a right answer from a wrong one.

    Attributes:
        tokenizer: the target's.
        size: the target's; ids beyond it are not the target's.
        end_ids: tokens that end an answer, the one that ends a turn of the chat first.
    """

    tokenizer: "PreTrainedTokenizerFast"
    size: int
    end_ids: tuple[int, ...]


def completion_request(
    request: GenerationRequest, config: Responses, model: str, vocabulary: Vocabulary, *, asks_rounds: bool = False
) -> dict[str, Any]:
    """The body of a request to `/v1/completions`; `asks_rounds`: also for the rounds behind the answer."""
    return {
        **(ASKED if asks_rounds else {}),
        "model": model,
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k or -1,  # SGLang takes 0 for an error; both take -1 for all
        "seed": request.seed,
        **NEUTRAL,
        "stop_token_ids": list(vocabulary.end_ids),
        "return_token_ids": True,
        "skip_special_tokens": False,  # where only text comes back, the answer's markers have to be in it
        "spaces_between_special_tokens": False,
    }


def read_completion(
    body: bytes, request: GenerationRequest, model: str, vocabulary: Vocabulary, *, engine: str, version: str
) -> GenerationResult | GenerationFailure:
    """The answer in a reply to `completion_request`.

    Args:
        body: of the reply.
        request: what was asked.
        model: what was asked for it.
        vocabulary: the target's.
        engine, version: of the server.

    Returns:
        The answer, or why it cannot be used and asking again would not help.

    Raises:
        BadReply: it is no answer; the next may be one.
        DataError: it is another model's.
    """
    reply = _mapping(body)
    answered_by = reply.get("model")
    if isinstance(answered_by, str) and answered_by != model:
        raise another_model(model, [answered_by])
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise BadReply("the endpoint's reply holds no answer", excerpt_of(body.decode(errors="replace")))
    finished = choice.get("finish_reason")
    if finished in (None, "abort"):
        raise BadReply("the endpoint broke the answer off", f"finish_reason {finished}")
    reason = _FINISHED.get(str(finished))
    if reason is None:
        return GenerationFailure(request.id, "the endpoint ended the answer unusually", f"finish_reason {finished}")
    read = choice.get("prompt_token_ids")
    if isinstance(read, list) and tuple(read) != request.prompt_ids:
        words = f"{len(read)} tokens instead of {len(request.prompt_ids)}"
        return GenerationFailure(request.id, "the endpoint read another prompt than it was sent", words)
    ids: Any = choice.get("token_ids")
    text = choice.get("text")
    ids_from: Literal["engine", "engine_without_end", "text"] = "engine"
    if not isinstance(ids, list):
        if not isinstance(text, str):
            raise BadReply("the endpoint's reply holds no answer", excerpt_of(body.decode(errors="replace")))
        ids = vocabulary.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids_from = "text"
    elif not _are_ids(ids, vocabulary.size) or len(ids) > request.max_new_tokens:
        words = f"{len(ids)} ids, limit {request.max_new_tokens}, vocabulary {vocabulary.size}"
        return GenerationFailure(request.id, "the endpoint's token ids are not the target's", words)
    if _is_empty(ids, vocabulary):
        return GenerationFailure(request.id, "the endpoint's answer is empty", f"finish_reason {reason}")
    if reason == "stop" and ids[-1] not in vocabulary.end_ids:
        ids = [*ids, _end_of(choice, vocabulary)]
        ids_from = "text" if ids_from == "text" else "engine_without_end"
    reported = reported_rounds(reply, choice)
    return GenerationResult(request.id, tuple(ids), reason, engine, version, ids_from, reported)


def words_of(body: bytes) -> str:
    """A server's words about a failure: the message in its JSON, else its text; not shortened."""
    text = body[:_MOST_WORDS].decode(errors="replace")
    try:
        content: Any = parse(body, _MOST_WORDS)
    except ValueError:
        return text
    for _ in range(3):
        if not isinstance(content, dict):
            break
        content = next((content[name] for name in ("error", "message", "detail") if content.get(name)), text)
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def another_model(wanted: str, served: Sequence[str]) -> DataError:
    """The error of an endpoint that serves something else."""
    return DataError(
        f"This endpoint serves {', '.join(map(repr, served)) or 'nothing'}, but the target is {wanted!r}.",
        remedy="Serve the target there, or set data.responses.served_model to the name that the server gives it.",
    )


def _mapping(body: bytes) -> dict[str, Any]:
    try:
        reply = parse(body, len(body))
    except ValueError as error:
        raise BadReply("the endpoint's reply is no valid JSON", excerpt_of(body.decode(errors="replace"))) from error
    if not isinstance(reply, dict):
        raise BadReply("the endpoint's reply holds no answer", excerpt_of(body.decode(errors="replace")))
    return reply


def _are_ids(ids: Sequence[Any], vocabulary_size: int) -> bool:
    return all(type(token) is int and 0 <= token < vocabulary_size for token in ids)


def _is_empty(ids: Sequence[int], vocabulary: Vocabulary) -> bool:
    text = vocabulary.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return not text.strip()


def _end_of(choice: Mapping[str, Any], vocabulary: Vocabulary) -> int:
    """The token that ended an answer whose ids or text leave it out: as the server says, else the end of a turn."""
    for name in ("stop_reason", "matched_stop"):
        said = choice.get(name)
        if type(said) is int and said in vocabulary.end_ids:
            return said
    return vocabulary.end_ids[0]
