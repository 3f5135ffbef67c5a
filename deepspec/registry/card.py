"""The card of a registered draft: what it is, what it was trained on and under which terms, and how good it is.

Markdown, from what stages recorded; nothing in it is measured or decided here. It lies beside the draft's files as
README.md, and is the version's description.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

CARD_FILE = "README.md"
CALIBRATION_FILE = "calibration.json"
"""Temperatures of the draft's confidences and how good they are, beside its weights: what scheduling reckons with."""
NOT_SAID = "—"

_SOURCE_COLUMNS = ("name", "domain", "licence", "retention", "conversations", "rows")
_MARKED = re.compile(r"([\\`*_{}\[\]<>#|~])")


def model_card(
    *,
    name: str,
    recipe: str,
    config: Mapping[str, Any],
    target: str,
    digests: Mapping[str, str],
    sources: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
) -> str:
    """The card as Markdown.

    Args:
        name: of the registered model.
        recipe: its name.
        config: the draft's own `config.json`, with `algorithm` and `num_draft_tokens` beside.
        target: what the target is called.
        digests: what it was made from: name -> digest.
        sources: the conversations' sources: name, domain, licence, retention, rows read, conversations kept.
        evaluation: as the stage wrote it.
    """
    layers = ", ".join(str(layer) for layer in config.get("target_layer_ids", ()))
    facts = [
        ("target", target),
        ("algorithm", config.get("algorithm")),
        ("tokens proposed a round", config.get("num_draft_tokens")),
        ("layers", config.get("num_hidden_layers")),
        ("target layers read", layers or None),
        ("weights", config.get("dtype")),
        ("recipe", recipe),
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
        "The conversations' prompts are from these sources. `rows` were read, `conversations` kept and split.",
        _table(_SOURCE_COLUMNS, [[source.get(column) for column in _SOURCE_COLUMNS] for source in sources]),
        "## Evaluation",
        measures,
        _table(("benchmark", "τ", "95 %", "prompts", "rounds", "speedup"), _results(evaluation)),
    ]
    return "\n\n".join(parts) + "\n"


def _results(evaluation: Mapping[str, Any]) -> list[Sequence[object]]:
    whole = {"macro average": evaluation.get("macro"), "gate split": evaluation.get("gate")}
    parts = {**(evaluation.get("benchmarks") or {}), **{name: part for name, part in whole.items() if part}}
    rows: list[Sequence[object]] = []
    for name, part in parts.items():
        interval = part.get("tau_ci95")
        rows.append(
            (
                name,
                _number(part.get("tau")),
                f"{interval[0]:.2f} … {interval[1]:.2f}" if interval and None not in interval else None,
                part.get("prompts") if isinstance(part.get("prompts"), int) else None,
                part.get("rounds"),
                _number(part.get("speedup")),
            )
        )
    return rows


def _number(value: Any) -> str | None:
    return None if value is None else f"{value:.2f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(NOT_SAID if cell is None else _plain(str(cell)) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that Markdown takes as it is: names come from outside."""
    return _MARKED.sub(r"\\\1", " ".join(text.split()))
