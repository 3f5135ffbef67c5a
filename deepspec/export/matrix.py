"""What loads which draft: the one table of algorithm × family × format, with the reason where the answer is no.

`export` and `export --check` ask it, `export --matrix` prints it. Tests hold every cell against the engines' registries
and sources, as their wheels have them: what is loaded and what is refused. Source: vLLM 0.32.0 and 0.33.0, SGLang
0.5.23, speculators 0.9.0 as they are on PyPI; spec page "Engines".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from deepspec.errors import IncompatibleDraft
from deepspec.targets import gemma4, qwen3

ENGINES = MappingProxyType(
    {
        "vllm": "vLLM's own configuration of a draft",
        "sglang": "SGLang",
        "speculators": "the speculators package, which vLLM reads, too",
        "deepspec": "the public DeepSpec checkpoints",
    }
)
"""Format -> whose it is."""

ROWS = (
    "eagle3",
    "dflash, in_place",
    "dflash, next_token",
    "dspark, no head",
    "dspark, vanilla head",
    "dspark, gated head",
    "dspark, rnn head",
    "eagle3, several layers",
)
"""Kinds of drafts, as `Algorithm.export_row` calls them."""

IN_PLACE = ROWS[1]
HEADLESS = ("dflash, next_token", "dspark, no head")
"""What other engines load only with a sequential head: it gets one that adds zero to every logit."""

VLLM, SGLANG, SPECULATORS, DEEPSPEC = ENGINES
READS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        VLLM: (VLLM, SPECULATORS, DEEPSPEC),
        SGLANG: (SGLANG, DEEPSPEC),
        SPECULATORS: (SPECULATORS,),
        DEEPSPEC: (DEEPSPEC,),
    }
)
"""Engine -> the formats that it reads, its own first; of the public layout only what has its own architecture there."""

QWEN3, GEMMA4 = qwen3.FAMILY.name, gemma4.FAMILY.name


class Layout(Enum):
    """How an engine makes a round's tokens: what its configuration has to say follows from it."""

    UNROLLED = "one after the other"
    IN_PLACE = "a block, each in its own place"
    CHAINED = "a block, each after its place, with a sequential head"


@dataclass(frozen=True)
class Cell:
    """One answer of the table.

    Attributes:
        architecture: the draft's in config.json; None: it is not loaded.
        method: what the engine calls the algorithm.
        layout: how it makes a round's tokens; None: as the draft was trained.
        reason: why it is not loaded, in a sentence.
        nearest: what works instead.
        checked: how this cell was checked: an engine's run, its own classes, its source.
    """

    architecture: str | None = None
    method: str = ""
    layout: Layout | None = None
    reason: str = ""
    nearest: str = ""
    checked: str = "source"


def _unrolled(architecture: str, checked: str = "source") -> Cell:
    return Cell(architecture, "eagle3", Layout.UNROLLED, checked=checked)


def _in_place(architecture: str, method: str, checked: str = "source") -> Cell:
    return Cell(architecture, method, Layout.IN_PLACE, checked=checked)


def _next_token(architecture: str, method: str, checked: str = "source") -> Cell:
    return Cell(architecture, method, Layout.CHAINED, checked=checked)


def _refuses(reason: str, nearest: str) -> Cell:
    return Cell(reason=reason, nearest=nearest)


_NO_GEMMA_EAGLE = _refuses(
    "no Eagle3 class there has a Gemma 4 body", "train algorithm dspark, and export with --format vllm"
)
_NO_GEMMA_DFLASH = _refuses(
    "its DFlash class has a Qwen3 body", "train with draft.slots next_token, and export with --format vllm"
)
_NO_GEMMA_AT_SGLANG = _refuses("SGLang registers no DSpark class with a Gemma 4 body", "export with --format vllm")
_ONE_LAYER = _refuses(
    "there only the first layer of an Eagle3 draft reads the embedding, here every layer does",
    "train with draft.num_layers 1; export with --format deepspec keeps this one",
)
_ONLY_VANILLA = _refuses(
    "vLLM's class has the vanilla head only", "train with draft.markov_head vanilla; on Qwen3 SGLang loads this one"
)
_NO_NORMS = "SGLang's Eagle3 class normalises no queries and keys"
_RUN, _OWN_CLASSES = "engine run", "own classes"

_TABLE: Mapping[tuple[str, str, str], Cell] = MappingProxyType(
    {
        (VLLM, QWEN3, "eagle3"): _unrolled("Eagle3Qwen3ForCausalLM", _RUN),
        (VLLM, QWEN3, "eagle3, several layers"): _ONE_LAYER,
        (VLLM, QWEN3, "dflash, in_place"): _in_place("DFlashDraftModel", "dflash", _RUN),
        (VLLM, QWEN3, "dflash, next_token"): _next_token("Qwen3DSparkModel", "dspark", _RUN),
        (VLLM, QWEN3, "dspark, no head"): _next_token("Qwen3DSparkModel", "dspark"),
        (VLLM, QWEN3, "dspark, vanilla head"): _next_token("Qwen3DSparkModel", "dspark", _RUN),
        (VLLM, QWEN3, "dspark, gated head"): _ONLY_VANILLA,
        (VLLM, QWEN3, "dspark, rnn head"): _ONLY_VANILLA,
        (VLLM, GEMMA4, "eagle3"): _NO_GEMMA_EAGLE,
        (VLLM, GEMMA4, "eagle3, several layers"): _NO_GEMMA_EAGLE,
        (VLLM, GEMMA4, "dflash, in_place"): _NO_GEMMA_DFLASH,
        (VLLM, GEMMA4, "dflash, next_token"): _next_token("Gemma4DSparkModel", "dspark"),
        (VLLM, GEMMA4, "dspark, no head"): _next_token("Gemma4DSparkModel", "dspark"),
        (VLLM, GEMMA4, "dspark, vanilla head"): _next_token("Gemma4DSparkModel", "dspark", _RUN),
        (VLLM, GEMMA4, "dspark, gated head"): _ONLY_VANILLA,
        (VLLM, GEMMA4, "dspark, rnn head"): _ONLY_VANILLA,
        (SGLANG, QWEN3, "eagle3"): _refuses(_NO_NORMS, "export with --format vllm"),
        (SGLANG, QWEN3, "eagle3, several layers"): _refuses(
            _NO_NORMS, "train with draft.num_layers 1, and export with --format vllm"
        ),
        (SGLANG, QWEN3, "dflash, in_place"): _in_place("DFlashDraftModel", "DFLASH"),
        (SGLANG, QWEN3, "dflash, next_token"): _next_token("Qwen3DSparkModel", "DSPARK"),
        (SGLANG, QWEN3, "dspark, no head"): _next_token("Qwen3DSparkModel", "DSPARK"),
        (SGLANG, QWEN3, "dspark, vanilla head"): _next_token("Qwen3DSparkModel", "DSPARK"),
        (SGLANG, QWEN3, "dspark, gated head"): _next_token("Qwen3DSparkModel", "DSPARK"),
        (SGLANG, QWEN3, "dspark, rnn head"): _next_token("Qwen3DSparkModel", "DSPARK"),
        (SGLANG, GEMMA4, "eagle3"): _NO_GEMMA_EAGLE,
        (SGLANG, GEMMA4, "eagle3, several layers"): _NO_GEMMA_EAGLE,
        (SGLANG, GEMMA4, "dflash, in_place"): _NO_GEMMA_DFLASH,
        (SGLANG, GEMMA4, "dflash, next_token"): _NO_GEMMA_AT_SGLANG,
        (SGLANG, GEMMA4, "dspark, no head"): _NO_GEMMA_AT_SGLANG,
        (SGLANG, GEMMA4, "dspark, vanilla head"): _NO_GEMMA_AT_SGLANG,
        (SGLANG, GEMMA4, "dspark, gated head"): _NO_GEMMA_AT_SGLANG,
        (SGLANG, GEMMA4, "dspark, rnn head"): _NO_GEMMA_AT_SGLANG,
        (SPECULATORS, QWEN3, "eagle3"): _unrolled("Eagle3Speculator", _RUN),
        (SPECULATORS, QWEN3, "eagle3, several layers"): _ONE_LAYER,
        (SPECULATORS, QWEN3, "dflash, in_place"): _in_place("DFlashSpeculator", "dflash", _RUN),
        (SPECULATORS, QWEN3, "dflash, next_token"): _next_token("DSparkSpeculator", "dspark", _RUN),
        (SPECULATORS, QWEN3, "dspark, no head"): _next_token("DSparkSpeculator", "dspark", _OWN_CLASSES),
        (SPECULATORS, QWEN3, "dspark, vanilla head"): _next_token("DSparkSpeculator", "dspark", _RUN),
        (SPECULATORS, QWEN3, "dspark, gated head"): _next_token("DSparkSpeculator", "dspark", _OWN_CLASSES),
        (SPECULATORS, QWEN3, "dspark, rnn head"): _next_token("DSparkSpeculator", "dspark", _OWN_CLASSES),
        **{
            (SPECULATORS, GEMMA4, row): _refuses(
                "the format has bodies of Qwen3 and Llama only", "export with --format vllm"
            )
            for row in ROWS
        },
    }
)


_AS_TRAINED = Cell("as it was trained")
_NOT_IN_PLACE = _refuses(
    "its positions predict in place, which this layout does not have",
    "train with draft.slots next_token; on Qwen3 vLLM and SGLang load this one",
)
_UNKNOWN = _refuses("no engine loads drafts of this algorithm", "export with --format deepspec")


def cell(format_name: str, family: str, row: str) -> Cell:
    """What the table says of a kind of draft; the public layout has every one but for one, engines only those there."""
    if format_name == DEEPSPEC:
        return _NOT_IN_PLACE if row == IN_PLACE else _AS_TRAINED
    return _TABLE.get((format_name, family, row), _UNKNOWN)


def loaded(format_name: str, family: str, row: str, where: str) -> Cell:
    """The same, where the draft is loaded.

    Raises:
        IncompatibleDraft: it is not; says why, and what works.
    """
    found = cell(format_name, family, row)
    if found.architecture is None:
        nearest = f"{found.nearest[0].upper()}{found.nearest[1:]}."
        raise IncompatibleDraft(f"{found.reason} ({row}; {family}).", where=where, remedy=nearest)
    return found


def matrix() -> list[dict[str, str | None]]:
    """The table, a row for each kind of draft, family and format; fields as in `Cell`."""
    rows: list[dict[str, str | None]] = []
    for family in (QWEN3, GEMMA4):
        for row in ROWS:
            for name in ENGINES:
                found = cell(name, family, row)
                place = {"draft": row, "family": family, "format": name}
                said = {"architecture": found.architecture, "method": found.method or None}
                refused = {"reason": found.reason or None, "nearest": found.nearest or None}
                rows.append({**place, **said, **refused, "checked": found.checked if found.architecture else None})
    return rows
