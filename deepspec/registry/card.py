"""The card of a registered draft: what it is, what it was trained on and under which terms, and how good it is.

Markdown, from what stages recorded; nothing in it is measured or decided here. It lies with the draft's files as
README.md, and is the version's description.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from deepspec.drafts.files.public_files import Origin
from deepspec.evaluation.results import Evaluation, GateResult, MeanResult

CARD_FILE = "README.md"
CALIBRATION_FILE = "calibration.json"
"""Temperatures of the draft's confidences and their quality, next to its weights: the prefix scheduler needs them."""
NOT_SAID = "—"
NOT_TRAINED_HERE = (
    "Not known: the draft was imported. It may have been trained on prompts that it is evaluated on, and its τ may be"
    " too high."
)
STARTED_OUTSIDE = (
    "Training started from a draft that was not trained here: the training data of that draft are not known."
)

_MARKED = re.compile(r"([\\`*_{}\[\]<>#|~])")


@dataclass(frozen=True)
class CardDraft:
    """What the card says of the draft's shape; None: not known.

    Attributes:
        algorithm: its name.
        num_draft_tokens: proposed in a round.
        num_hidden_layers: of the draft.
        target_layer_ids: the target's layers that it reads.
        dtype: of its weights.
    """

    algorithm: str
    num_draft_tokens: int
    num_hidden_layers: int | None
    target_layer_ids: tuple[int, ...]
    dtype: str | None


class CardSource(BaseModel):
    """A source of the conversations; None: not known.

    Attributes:
        name, domain, licence, retention: as the recipe has them.
        conversations: kept and split.
        rows: read.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    domain: str | None = None
    licence: str | None = None
    retention: str | None = None
    conversations: int | None = None
    rows: int | None = None


def model_card(
    *,
    name: str,
    recipe: str,
    draft: CardDraft,
    target: str,
    digests: Mapping[str, str],
    sources: Sequence[CardSource],
    evaluation: Evaluation,
    origin: Origin | None = None,
    started_outside: bool = False,
) -> str:
    """The card as Markdown.

    Args:
        name: of the registered model.
        recipe: its name.
        draft: its shape.
        target: what the target is called.
        digests: what it was made from: name -> digest.
        sources: of the conversations.
        evaluation: of the draft.
        origin: where an imported draft came from; None: it was trained here.
        started_outside: whether training started from a draft that was not trained here.
    """
    layers = ", ".join(str(layer) for layer in draft.target_layer_ids)
    facts = [
        ("target", target),
        ("algorithm", draft.algorithm),
        ("tokens proposed a round", draft.num_draft_tokens),
        ("layers", draft.num_hidden_layers),
        ("target layers read", layers or None),
        ("weights", draft.dtype),
        ("recipe", recipe),
        *(_origin_facts(origin) if origin is not None else ()),
        *((f"digest of {what}", digest) for what, digest in sorted(digests.items())),
    ]
    purpose = (
        f"A draft model for speculative decoding with {_plain(target)}: it proposes tokens, the target verifies them,"
        " and the output is the target's own. It is of no use without that target."
    )
    measures = (
        "τ: tokens a round, bonus included, with a 95 % interval over prompts. Speedup: over plain decoding of the same"
        " prompts in the same run; it depends on the machine."
    )
    parts = [
        f"# {_plain(name)}",
        purpose,
        _table(("", ""), [(what, value) for what, value in facts if value is not None]),
        "## Training data",
        *(_training_data(sources, started_outside=started_outside) if origin is None else (NOT_TRAINED_HERE,)),
        "## Evaluation",
        measures,
        _table(("benchmark", "τ", "95 %", "prompts", "rounds", "speedup"), _results(evaluation)),
    ]
    return "\n\n".join(parts) + "\n"


def _origin_facts(origin: Origin) -> list[tuple[str, str | None]]:
    return [
        ("imported from", origin.path),
        ("name in its config.json", origin.name),
        ("target in its config.json", origin.target),
        ("licence in its README.md", origin.licence),
    ]


def _training_data(sources: Sequence[CardSource], *, started_outside: bool) -> list[str]:
    parts = [
        "The conversations' prompts are from these sources. `rows` were read, `conversations` kept and split.",
        _table(tuple(CardSource.model_fields), [[value for _, value in source] for source in sources]),
    ]
    return [*parts, STARTED_OUTSIDE] if started_outside else parts


def _results(evaluation: Evaluation) -> list[Sequence[object]]:
    labels = {"macro": "macro average", "gate": "gate split"}
    rows: list[Sequence[object]] = []
    for name, part in evaluation.parts():
        rows.append(
            (
                name if name in evaluation.benchmarks else labels[name],
                _number(part.tau),
                f"{part.tau_ci95[0]:.2f} … {part.tau_ci95[1]:.2f}" if part.tau_ci95 is not None else None,
                None if isinstance(part, MeanResult) else part.prompts,
                None if isinstance(part, MeanResult) else part.rounds,
                None if isinstance(part, GateResult) else _number(part.speedup),
            )
        )
    return rows


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(NOT_SAID if cell is None else _plain(str(cell)) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text with Markdown's characters escaped: names come from outside."""
    return _MARKED.sub(r"\\\1", " ".join(text.split()))
