"""What one row of a log says: a request and its response, as a row that the ordinary forms read. Standard library only.

The row of a log may also be a conversation itself (forms.py), with the fields that the section `traffic` names next to
it. A field is named dotted (`response.model`); where a table holds JSON as text, it is read as such.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from deepspec.data.sources.forms import FORMS
from deepspec.data.sources.rows import RowRejected
from deepspec.data.traffic_config import Traffic

REQUEST, USER, MODEL = "request", "user", "model"
"""Fields of a row that was taken, next to its conversation: digests of the request's and the user's id, and the name of
the model that gave its last answer."""

_MILLISECONDS = 10**11  # as seconds that is the year 5138
_COMPLETE = frozenset({"stop", "tool_calls", "function_call", None})


@dataclass(frozen=True, slots=True)
class Exchange:
    """A conversation as it was served.

    Attributes:
        row: it, in one of the forms.
        request, user: digests of their ids, or None.
        model: what answered last; None: not known, or there is no answer.
        cut_off: whether there was an answer that is left out because it was cut off or withheld.
    """

    row: dict[str, Any]
    request: str | None
    user: str | None
    model: str | None
    cut_off: bool = False

    def taken(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row that is written, with the conversation as a hook returned it."""
        named = {REQUEST: self.request, USER: self.user, MODEL: self.model}
        return {**row, **{name: value for name, value in named.items() if value is not None}}


def consents(row: Mapping[str, Any], traffic: Traffic) -> bool:
    """Whether a row says that it may be used."""
    if traffic.consent_field is None:
        return True
    said, wanted = field(row, traffic.consent_field), traffic.consent_value
    return type(said) is type(wanted) and bool(said == wanted)


def day_of(row: Mapping[str, Any], name: str) -> date:
    """The day (UTC) of a row's time.

    Raises:
        RowRejected: it has none, or it is no time.
    """
    value = field(row, name)
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC).date()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000 if value > _MILLISECONDS else value, UTC).date()
    except (ValueError, OverflowError, OSError):
        pass
    raise RowRejected("row without a time that can be read (time_field)")


def exchange_of(row: Mapping[str, Any], traffic: Traffic) -> Exchange:
    """What a row says.

    Raises:
        RowRejected: it is neither a request with messages nor a conversation.
    """
    identity = field(row, traffic.id_field) if traffic.id_field else None
    user = field(row, traffic.user_field) if traffic.user_field else None
    answered_by = field(row, traffic.model_field) if traffic.model_field else None
    model = answered_by if isinstance(answered_by, str) else None
    request = None if identity is None else _digest("request", str(identity))
    forgotten_by = None if user is None else user_digest(str(user), traffic.user_salt or "")
    asked = _object(field(row, traffic.request_field))
    if asked is None:
        form = next((form for form in FORMS if row.get(form.column)), None)
        if form is None:
            raise RowRejected("row without a request and without a conversation (request_field)")
        conversation = {name: _plain(row[name]) for name in form.fields if row.get(name) is not None}
        return Exchange(conversation, request, forgotten_by, model)
    messages = _plain(asked.get("messages"))
    if not isinstance(messages, list) or not messages:
        raise RowRejected("request without messages")
    answer, cut_off = _answer(_object(field(row, traffic.response_field)))
    conversation = {name: _plain(asked[name]) for name in ("tools", "functions") if asked.get(name)}
    conversation["messages"] = [*messages, *([answer] if answer else [])]
    return Exchange(conversation, request, forgotten_by, model if answer else None, cut_off)


def user_digest(user: str, salt: str) -> str:
    """What is kept of a user's id: HMAC-SHA-256 with the recipe's salt, 128 bits of it in hex."""
    return hmac.new(salt.encode(), user.encode(), hashlib.sha256).hexdigest()[:32]


def identity_of(exchange: Exchange) -> str:
    """What a share is chosen by: the request's id, or the conversation."""
    if exchange.request is not None:
        return exchange.request
    return _digest("row", json.dumps(exchange.row, sort_keys=True, ensure_ascii=False, default=str))


def field(row: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted field; None where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        inner = _object(value)
        if inner is None:
            return None
        value = inner.get(part)
    return value


def _answer(response: Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, bool]:
    """The answer of a chat completion's first choice; None with True where it was cut off or withheld."""
    choices = _plain(response.get("choices")) if response is not None else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _object(choice.get("message")) if isinstance(choice, Mapping) else None
    if message is None or not isinstance(choice, Mapping):
        return None, False
    if choice.get("finish_reason") not in _COMPLETE:
        return None, True
    if not (message.get("content") or message.get("tool_calls") or message.get("function_call")):
        return None, False
    kept = ("content", "tool_calls", "function_call", "reasoning_content", "reasoning")
    return {"role": "assistant", **{name: message[name] for name in kept if message.get(name)}}, False


def _object(value: Any) -> Mapping[str, Any] | None:
    value = _plain(value)
    return value if isinstance(value, Mapping) else None


def _plain(value: Any) -> Any:
    """JSON that a table holds as text, read."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _digest(what: str, text: str) -> str:
    return hashlib.sha256(f"{what}/{text}".encode(errors="surrogatepass")).hexdigest()[:32]
