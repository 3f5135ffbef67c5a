"""The card of a registered draft: what it is, what it was trained on and under which terms, and how good it is.

Markdown, from what stages recorded; nothing in it is measured or decided here. It lies with the draft's files as
README.md, and is the version's description. A bundle's card says besides what a model hub and an operator want to know:
front matter, lineage, figures, what engines find there, and what was not measured.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from deepspec.drafts.files.public_files import Origin
from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.results import Evaluation, GateResult, MeanResult, Rates
from deepspec.yaml import dumps

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

NO_LICENCE = "unknown"
"""The hub's word for a licence that is not stated."""

_MARKED = re.compile(r"([\\`*_{}\[\]<>#|~])")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


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


@dataclass(frozen=True)
class CardBundle:
    """What only a bundle's card says.

    Attributes:
        format: of the weights and config.json.
        kind: of the draft, as the table of what engines load calls it.
        checked: how that cell of the table was checked; None: no engine loads the format.
        base_model: the target's name at a hub; None: not known.
        revision: of the target there; None: not known.
        licence: that the target or an imported draft states; None: none is known.
        lineage: (kind, key or "", digest) of everything that the draft was made from or measured by.
        figures: (file, words for those who cannot see it).
        files: file -> what it is.
        left_out: file -> why it is not there.
        code: versions of deepspec and libraries that made the draft.
    """

    format: str
    kind: str
    checked: str | None
    base_model: str | None
    revision: str | None
    licence: str | None
    lineage: Sequence[tuple[str, str, str]]
    figures: Sequence[tuple[str, str]]
    files: Mapping[str, str]
    left_out: Mapping[str, str]
    code: Mapping[str, object]


def model_card(
    *,
    name: str,
    recipe: str | None,
    draft: CardDraft,
    target: str,
    digests: Mapping[str, str],
    sources: Sequence[CardSource],
    evaluation: Evaluation | None,
    calibration: CalibrationResult | None = None,
    origin: Origin | None = None,
    started_outside: bool = False,
    bundle: CardBundle | None = None,
) -> str:
    """The card as Markdown.

    Args:
        name: of the registered model.
        recipe: its name; None: not known.
        draft: its shape.
        target: what the target is called.
        digests: what it was made from: name -> digest.
        sources: of the conversations.
        evaluation, calibration: of the draft; None: it has none.
        origin: where an imported draft came from; None: it was trained here.
        started_outside: whether training started from a draft that was not trained here.
        bundle: what only a bundle's card says; None: it is no bundle's.
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
    parts = [
        *((_front_matter(bundle, draft),) if bundle is not None else ()),
        f"# {_plain(name)}",
        purpose,
        _table(("", ""), [(what, value) for what, value in facts if value is not None]),
        "## Training data",
        *(_training_data(sources, started_outside=started_outside) if origin is None else (NOT_TRAINED_HERE,)),
        "## Evaluation",
        *_evaluated(evaluation),
        *(_calibrated(calibration) if calibration is not None else ()),
        *(_bundled(bundle, evaluation) if bundle is not None else ()),
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


def _front_matter(bundle: CardBundle, draft: CardDraft) -> str:
    """What model hubs read: fields of the hub, in YAML."""
    fields: dict[str, object] = {"license": NO_LICENCE}
    if bundle.licence is not None:
        known = _LICENCE.fullmatch(bundle.licence) is not None
        fields = {"license": bundle.licence} if known else {"license": "other", "license_name": bundle.licence}
    if bundle.base_model is not None and _REPOSITORY.fullmatch(bundle.base_model):
        fields["base_model"] = bundle.base_model
    fields["library_name"] = bundle.format
    fields["tags"] = ["speculative-decoding", "draft-model", draft.algorithm, "deepspec"]
    return f"---\n{dumps(fields).strip()}\n---"


def _evaluated(evaluation: Evaluation | None) -> list[str]:
    if evaluation is None:
        return ["Not measured."]
    measures = (
        "τ: tokens a round, bonus included, with a 95 % interval over prompts. Speedup: over plain decoding of the same"
        " prompts in the same run; it depends on the machine."
    )
    return [measures, _table(("benchmark", "τ", "95 %", "prompts", "rounds", "speedup"), _results(evaluation))]


def _calibrated(calibration: CalibrationResult) -> list[str]:
    """Temperatures by position with the calibration error before and after."""
    if not calibration.applicable:
        return ["## Calibration", f"None: {_plain(calibration.reason or 'the draft has no confidences.')}"]
    found = calibration.without_nulls()
    says = (
        "Calibration error of P(the first k tokens all survive), on prompts that the temperatures were not fitted on;"
        f" means: {_number(found.mean_ece_before, 4) or NOT_SAID} before,"
        f" {_number(found.mean_ece_after, 4) or NOT_SAID} after."
    )
    rows = [
        (
            place + 1,
            _number(temperature, 3),
            *(_number(_at(rates, place), 4) for rates in (found.ece_before, found.ece_after)),
        )
        for place, temperature in enumerate(found.temperatures)
    ]
    return ["## Calibration", says, _table(("position", "temperature", "error before", "error after"), rows)]


def _bundled(bundle: CardBundle, evaluation: Evaluation | None) -> list[str]:
    """What only a bundle's card says."""
    files = [(name, what) for name, what in bundle.files.items()]
    files += [(name, f"not there: {reason}.") for name, reason in bundle.left_out.items()]
    made_by = ", ".join(f"{name} {value}" for name, value in sorted(bundle.code.items()) if isinstance(value, str))
    return [
        *(f"![{_plain(words)}]({file})" for file, words in bundle.figures),
        "## Files",
        f"Weights and config.json are in the format `{bundle.format}`; `bundle.json` has the SHA-256 of every file.",
        _table(("file", "what"), files),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(bundle, evaluation)),
        "## Lineage",
        _table(("kind", "key", "digest"), [(kind, key or None, digest) for kind, key, digest in bundle.lineage]),
        *((f"Made by {_plain(made_by)}.",) if made_by else ()),
    ]


def _limits(bundle: CardBundle, evaluation: Evaluation | None) -> list[str]:
    """What the numbers do not say."""
    limits = [
        "It is of use with the target of the fingerprint above only; another revision of it is another target."
        if bundle.revision is None
        else f"It is of use with revision {_plain(bundle.revision)} of the target only.",
    ]
    if bundle.checked is None:
        limits.append("No engine is named that loads this format; it was not served.")
    else:
        how = (
            "by running the engine on drafts of this kind" if bundle.checked == "engine run" else f"by {bundle.checked}"
        )
        limits.append(f"That the engine loads this kind of draft ({_plain(bundle.kind)}) was checked {_plain(how)}.")
    if evaluation is None:
        return [*limits, "Nothing was measured of it."]
    probe, under_load = evaluation.lossless, evaluation.load
    if probe is None:
        limits.append("Whether answers are the same with and without the draft was not measured.")
    else:
        same = probe.answers - probe.ties - len(probe.differing)
        limits.append(f"{same} of {probe.answers} greedy answers were the same with and without it; {probe.ties} ties.")
    if under_load is None:
        limits.append(
            "Speed was measured one request at a time, on one machine, by deepspec's own decoder; not under load."
        )
    else:
        where = f"{_plain(under_load.device)}, {under_load.threads} threads"
        limits.append(
            f"Speed under load and costs of steps were measured on one machine ({where}), by deepspec's decoder."
        )
    if bundle.licence is None:
        limits.append("The licence of the target is not known here: look it up before this is passed on.")
    return limits


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


def _number(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _at(rates: Rates, place: int) -> float | None:
    return rates[place] if place < len(rates) else None


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(NOT_SAID if cell is None else _plain(str(cell)) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text with Markdown's characters escaped: names come from outside."""
    return _MARKED.sub(r"\\\1", " ".join(text.split()))
