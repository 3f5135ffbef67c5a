"""What a row of a request log says of one served answer.

A row is a reply itself, or an object with a reply in its field `response` (an object, or JSON as text), as request logs
have it. The reply is vLLM's, started with `--per-request-spec-decode-metrics`, or SGLang's with `meta_info`; the rounds
in it are read by `deepspec.data.responses.reported_rounds`, and put right at the answer's end by
`deepspec.evaluation.server.replies`. Next to the response may stand, each of them optional:

    domain      a label; else `metadata.domain` of the request
    time        seconds since 1970, or ISO 8601; else `created` of the reply
    revision    of the target; else unknown
    engine      name and version; else `system_fingerprint` of the reply

No text of a request or answer is kept, or quoted in any message.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deepspec.data.responses.reported_rounds import reported_rounds
from deepspec.evaluation.server.replies import rounds_behind
from deepspec.store.records import JsonRecord

NOT_SAID = "the reply says nothing of rounds"
NO_ROUNDS = "no round of speculative decoding"
NO_REPLY = "no reply in the row"
UNFINISHED = "broken off, or ended unusually"
SEVERAL = "several answers in one reply"
CONTRADICTS = "its numbers contradict one another"
_MILLISECONDS = 10**11
_MOST_CHARACTERS = 80


class Says(JsonRecord):
    """What a server, or a row of its log, says that it is; None: nothing.

    Attributes:
        target: the model's name.
        revision: of the model.
        engine: name and version.
    """

    target: str | None = None
    revision: str | None = None
    engine: str | None = None


@dataclass(frozen=True)
class ServedAnswer:
    """One answer.

    Attributes:
        tokens: that came from rounds.
        rounds: of speculative decoding; at least one.
        label: its domain; None: none.
        time: seconds since 1970; None: not known.
        says: who answered.
    """

    tokens: int
    rounds: int
    label: str | None
    time: float | None
    says: Says


def served_answer(row: Mapping[str, Any]) -> ServedAnswer | str:
    """The answer of a row; or why it has none, in words without anything of the row."""
    reply = _object(row.get("response")) or _object(row)
    choices = reply.get("choices")
    choice = _object(choices[0]) if isinstance(choices, list) and choices else {}
    meta = _object(choice.get("meta_info")) or _object(reply.get("meta_info"))
    if not choice and not meta:
        return NO_REPLY
    if isinstance(choices, list) and len(choices) > 1:
        return SEVERAL
    ended = choice.get("finish_reason", meta.get("finish_reason"))
    ended = ended.get("type") if isinstance(ended, dict) else ended
    if ended not in ("stop", "length", "tool_calls"):
        return UNFINISHED
    tokens = _object(reply.get("usage")).get("completion_tokens", meta.get("completion_tokens"))
    said = reported_rounds(reply, choice)
    if said is None or type(tokens) is not int or tokens < 1:
        return NOT_SAID
    found = rounds_behind(tokens, said, stopped=ended != "length")
    if found is None or found.flaw:
        return CONTRADICTS
    if not found.rounds:
        return NO_ROUNDS
    return ServedAnswer(
        tokens=found.from_rounds if found.stopped else found.rounds + found.accepted,
        rounds=found.rounds,
        label=_text(row.get("domain")) or _text(_object(_object(row.get("request")).get("metadata")).get("domain")),
        time=_time(row.get("time", reply.get("created"))),
        says=Says(
            target=_text(reply.get("model")) or _text(row.get("model")),
            revision=_text(row.get("revision")),
            engine=_text(row.get("engine")) or _text(reply.get("system_fingerprint")),
        ),
    )


def _object(value: object) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return value[:_MOST_CHARACTERS] if isinstance(value, str) and value.isprintable() and value else None


def _time(value: object) -> float | None:
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value.strip())
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _MILLISECONDS * 1000:
            return float(value / 1000 if value > _MILLISECONDS else value)
    except (ValueError, OverflowError):
        pass
    return None
