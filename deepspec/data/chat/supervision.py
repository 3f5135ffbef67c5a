"""Which characters of a rendered conversation are supervised, and what the template left out that is put in.

Masks (spec/algorithms.md, "Decoding, caches and positions"): "serving" supervises what the target generates when it
serves: the answer, its tool calls and the token that ends them, not what the template puts into the prompt, and never
a tool's result. "deepspec" is the mask of DeepSpec's own data: from the assistant header on, with the newline after the
end of the turn.

Not here: where the template put the contents (template_layout.py), and the tokens (renderer.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from deepspec.data.chat.formats import ChatFormat
from deepspec.data.chat.prepared import Prepared
from deepspec.data.chat.template_layout import Turn, TurnBounds

MaskKind = Literal["serving", "deepspec"]


@dataclass(frozen=True, slots=True)
class RenderedConversation:
    """A conversation as text.

    Attributes:
        text: all of it.
        spans: the supervised [start, end) characters, ascending and disjoint.
        added: those which the template left out and which were put in, as the target sees them; ascending.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    added: tuple[tuple[int, int], ...] = ()


class SuppliedBehind(Protocol):
    """What generation prompts have behind the header of an answer to the user, or to a tool's result."""

    def __call__(self, *, thinking: bool, after_result: bool) -> str:
        """The characters; empty if a prompt ends with the header."""


class Supervision:
    """Finds what is supervised in conversations of one chat format.

    Args:
        chat: the markers that the template writes.
        supplied_behind: what this target's generation prompts have behind the header of an answer.
    """

    def __init__(self, chat: ChatFormat, supplied_behind: SuppliedBehind) -> None:
        self._chat = chat
        self._supplied_behind = supplied_behind

    def marked(
        self,
        text: str,
        turns: Sequence[tuple[Turn, TurnBounds]],
        prepared: Prepared,
        mask: MaskKind,
        *,
        complete: bool,
    ) -> RenderedConversation:
        """The text with what the template left out of it put in, and its spans.

        Args:
            text: as the template wrote it.
            turns: the assistant's, each with where it lies in the text.
            prepared: what the template was given.
            mask: which of the two masks.
            complete: False for a last answer that was cut off: its span then ends with it.
        """
        last_user = max(index for index, message in enumerate(prepared.messages) if message["role"] == "user")
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        put_in: list[tuple[int, int]] = []
        done = shift = 0
        for turn, bounds in turns:
            added, is_generated = self._added(turn, bounds, prepared, is_past=turn.message < last_user)
            if added:
                pieces += (text[done : bounds.header_end], added)
                done = bounds.header_end
                put_in.append((done + shift, done + shift + len(added)))
            start, end = self._span(turn, bounds, prepared, mask)
            if not complete and turn is turns[-1][0]:
                end = bounds.last
            moved = bounds.header_end if is_generated else start + len(added)
            if not self._is_context(turn, bounds, prepared, mask, is_generated=is_generated):
                spans.append((moved + shift, end + len(added) + shift))
            shift += len(added)
        return RenderedConversation("".join((*pieces, text[done:])), tuple(spans), tuple(put_in))

    def _added(self, turn: Turn, bounds: TurnBounds, prepared: Prepared, *, is_past: bool) -> tuple[str, bool]:
        """What is put in behind a turn's header, and whether the target generates it."""
        thought = prepared.thoughts[turn.message]
        if thought is not None:
            if bounds.thought is not None or is_past or self._chat.thoughts_in_content:
                return "", False
            return self._chat.written_thought(thought), True
        is_primed = self._chat.primed_turns or (prepared.primed[turn.message] and not is_past)
        if not is_primed or bounds.thought is not None or (prepared.thinking and is_past):
            return "", False
        after_result = turn.message > 0 and prepared.messages[turn.message - 1]["role"] == "tool"
        supplied = self._supplied_behind(thinking=prepared.thinking, after_result=after_result)
        return ("", False) if turn.lead_text.startswith(supplied) else (supplied, False)

    def _is_context(
        self, turn: Turn, bounds: TurnBounds, prepared: Prepared, mask: MaskKind, *, is_generated: bool
    ) -> bool:
        """Whether an answer is not supervised: the row says so, or the target would not have answered so without a
        thought that is gone."""
        if not prepared.weighted[turn.message]:
            return True
        is_gone = prepared.thoughts[turn.message] is not None and bounds.thought is None and not is_generated
        return is_gone and mask == "serving"

    def _span(self, turn: Turn, bounds: TurnBounds, prepared: Prepared, mask: MaskKind) -> tuple[int, int]:
        """The supervised characters of one of the assistant's turns."""
        end = bounds.end + len(turn.marker)
        has_thought = bounds.thought is not None and bool(bounds.thought.strip())
        if mask == "deepspec":
            covered = has_thought or self._chat.deepspec_supervises_empty_thought
            return (bounds.header_end if covered else bounds.answer), end + turn.newline
        if prepared.thinking:
            supplied = self._supplied_behind(thinking=True, after_result=False)
            skipped = len(supplied) if supplied and turn.lead_text.startswith(supplied) else 0
            return bounds.header_end + skipped, end
        return (bounds.header_end if has_thought else bounds.answer), end
