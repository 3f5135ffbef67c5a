"""Which of the gate's prompts a draft has met before: a draft that was made from other data may have trained on them.

A run's own splits keep its challenger from them. The champion, and what either was started from, were made from
conversations of their own, whose splits may have been drawn otherwise. Met is what a run keeps apart in its own splits:
the same question, or one in nearly the same words. Of a gate prompt only the first turn is asked, so only that counts;
a draft may have met it in any turn.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, TypeAlias

from deepspec.data.config import SPLITS
from deepspec.data.conversations.near_duplicates import KnownTurns
from deepspec.data.conversations.splits import SIMILAR
from deepspec.data.tables import read_conversations
from deepspec.evaluation.prompts.selection import select_split
from deepspec.evaluation.results import GateResult
from deepspec.gates.verdict import Reason

GATE = "unseen_prompts"
Side: TypeAlias = Literal["challenger", "champion"]
_USED = tuple(split for split in SPLITS if split != "gate")
"""What a draft is trained, chosen and calibrated on."""


def seen_prompts(file: Path, prompts: Collection[str], conversations: Iterable[Path]) -> frozenset[str]:
    """Those of the gate's prompts that stand in other conversations, as they are or in nearly the same words.

    Args:
        file: the gate split, `gate.parquet`.
        prompts: ids of those that were asked.
        conversations: folders of the splits that a draft was made from; each is read once, row by row.

    Raises:
        ArtifactError: a file cannot be read.
    """
    folders = list(conversations)
    if not folders or not prompts:
        return frozenset()
    asked = [prompt for prompt in select_split(file, num_prompts=None, seed=0) if prompt.id in prompts]
    known = KnownTurns((prompt.messages[-1]["content"] for prompt in asked), SIMILAR)
    found: set[int] = set()
    for path in (folder / f"{split}.parquet" for folder in folders for split in _USED):
        for row in read_conversations(path, ("messages",)) if path.exists() else ():
            found.update(
                index for turn in row["messages"] if turn["role"] == "user" for index in known.like(turn["content"])
            )
    return frozenset(asked[index].id for index in found)


def without(measured: GateResult, prompts: Collection[str]) -> GateResult:
    """A measurement without some of its prompts; where none is left, without a τ."""
    if not prompts:
        return measured
    kept = {name: counts for name, counts in measured.per_prompt.items() if name not in prompts}
    committed, rounds = (sum(counts[index] for counts in kept.values()) for index in (0, 1))
    return measured.model_copy(update={"per_prompt": kept, "tau": committed / rounds if rounds else None})


def reason(asked: int, seen: int, imported: Collection[Side] = ()) -> Reason | None:
    """The gate: whether there are prompts that neither draft was trained or chosen on; None if all are such.

    Args:
        asked: how many prompts were asked.
        seen: how many of them a draft had met before, as far as that is known.
        imported: whose data are not known: it, or a draft that its training was started from, was not trained here.
            That is said and does not refuse: otherwise no imported draft could serve, and none take its place.
    """
    if not seen and not imported:
        return None
    if not seen:
        return Reason(gate=GATE, passed=True, measured=None, sentence=_not_known(imported))
    said = (
        f"{seen} of {asked} gate prompts are left out: a draft was trained or chosen on them, or nearly the same ones."
    )
    if seen == asked:
        said = (
            f"All {asked} gate prompts were trained or chosen on by the champion, or by what a draft was started from."
        )
    if imported:
        said = f"{said} {_not_known(imported)}"
    return Reason(gate=GATE, passed=seen < asked, measured=asked - seen, required=1, sentence=said)


def _not_known(imported: Collection[Side]) -> str:
    """Whose data are not known, and whom that may favour."""
    if len(set(imported)) > 1:
        return (
            "What both drafts were trained on is not known in full: either may have met gate prompts or benchmarks, and"
            " its τ may be too high."
        )
    (side,) = set(imported)
    effect = {
        "challenger": "its τ, and its gain over a champion, may be too high",
        "champion": "its τ may be too high, and the challenger's gain too low",
    }
    return (
        f"What the {side} was trained on is not known in full, for it was imported or started from an imported draft:"
        f" it may have met gate prompts or benchmarks; {effect[side]}."
    )


def unknown(missing: str) -> Reason:
    """The gate, where it cannot be known what a draft was trained on.

    Args:
        missing: the artifact that is gone.
    """
    sentence = f"It is unknown which gate prompts the champion was trained on: {missing} is no longer in the store."
    return Reason(gate=GATE, passed=False, measured=0, required=1, sentence=sentence)
