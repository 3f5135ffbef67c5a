"""What must not be promoted again by a run: it follows from the promotion log alone.

A roll back blocks the draft that it was rolled back from, and whatever has the same weights or comes of the same recipe
and inputs. The block ends when a person unblocks the draft, or makes it champion again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deepspec.registry.entries import DraftIdentity, Promotion


@dataclass(frozen=True)
class Block:
    """A draft that is blocked, and the roll back that blocked it."""

    draft: DraftIdentity
    entry: Promotion

    def sentence(self, likeness: str) -> str:
        """Why a draft may not be promoted, in words.

        Args:
            likeness: what it has in common with the blocked one.
        """
        entry = self.entry
        reason = f": {entry.reason}" if entry.reason else ""
        when = entry.when.isoformat(timespec="seconds")
        return (
            f"Draft {self.draft.digest[:12]} was rolled back by {entry.asked_by} at {when} (entry {entry.number})"
            f"{reason}. This is {likeness}."
        )


def blocks(entries: Iterable[Promotion]) -> tuple[Block, ...]:
    """All blocks that hold after `entries`, oldest first."""
    held: list[Block] = []
    for entry in entries:
        lifted = entry.about if entry.kind == "unblock" else DraftIdentity(digest=entry.champion.digest)
        if lifted is not None:
            held = [block for block in held if block.draft.likeness(lifted) is None]
        if entry.kind == "rollback" and entry.previous is not None:
            # Format 1 says no more of it than its digest.
            held.append(Block(entry.about or DraftIdentity(digest=entry.previous.digest), entry))
    return tuple(held)


def block_of(entries: Iterable[Promotion], draft: DraftIdentity) -> tuple[Block, str] | None:
    """What blocks a draft, and what both have in common; None: nothing blocks it."""
    for block in reversed(blocks(entries)):
        likeness = block.draft.likeness(draft)
        if likeness is not None:
            return block, likeness
    return None


def blocked_entries(entries: Iterable[Promotion]) -> Mapping[str, int]:
    """Digest of every blocked draft -> the number of the roll back that blocked it."""
    return {block.draft.digest: block.entry.number for block in blocks(entries)}
