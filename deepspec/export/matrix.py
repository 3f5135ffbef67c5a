"""What loads which draft: the one table of algorithm × family × format, with the reason where the answer is no.

`export` and `export --check` ask it, `export --matrix` prints it, and a test holds every architecture in it against the
registries in the engines' own wheels. Source: vLLM 0.32.0 and 0.33.0, SGLang 0.5.23, speculators 0.9.0 as they are on
PyPI; spec page "Engines".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deepspec.errors import IncompatibleDraft

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
)
"""Kinds of drafts, as `Algorithm.export_row` calls them."""

HEADLESS = ("dflash, next_token", "dspark, no head")
"""What other engines load only with a sequential head: it gets one that adds zero to every logit."""

VLLM, SGLANG, SPECULATORS, DEEPSPEC = ENGINES
QWEN3, GEMMA4 = "qwen3", "gemma4"


@dataclass(frozen=True)
class Cell:
    """One answer of the table.

    Attributes:
        architecture: what config.json has to call the draft; None: it is not loaded.
        method: what the engine calls the algorithm.
        reason: why it is not loaded, in a sentence.
        nearest: what works instead.
        checked: how this cell was checked: an engine's run, its own classes, its source.
    """

    architecture: str | None = None
    method: str = ""
    reason: str = ""
    nearest: str = ""
    checked: str = "source"


def _loads(architecture: str, method: str, checked: str = "source") -> Cell:
    return Cell(architecture=architecture, method=method, checked=checked)


def _refuses(reason: str, nearest: str) -> Cell:
    return Cell(reason=reason, nearest=nearest)


_NO_GEMMA_EAGLE = _refuses(
    "no Eagle3 class there has a Gemma 4 body", "train algorithm dspark, and export with --format vllm"
)
_NO_GEMMA_DFLASH = _refuses(
    "its DFlash class has a Qwen3 body", "train with draft.slots next_token, and export with --format vllm"
)
_NO_GEMMA_AT_SGLANG = _refuses("SGLang registers no DSpark class with a Gemma 4 body", "export with --format vllm")
_ONLY_VANILLA = _refuses(
    "vLLM's class has the vanilla head only", "train with draft.markov_head vanilla; on Qwen3 SGLang loads this one"
)
_RUN = "engine run"

_TABLE: Mapping[tuple[str, str, str], Cell] = MappingProxyType(
    {
        (VLLM, QWEN3, "eagle3"): _loads("Eagle3Qwen3ForCausalLM", "eagle3", _RUN),
        (VLLM, QWEN3, "dflash, in_place"): _loads("DFlashDraftModel", "dflash", _RUN),
        (VLLM, QWEN3, "dflash, next_token"): _loads("Qwen3DSparkModel", "dspark", _RUN),
        (VLLM, QWEN3, "dspark, no head"): _loads("Qwen3DSparkModel", "dspark"),
        (VLLM, QWEN3, "dspark, vanilla head"): _loads("Qwen3DSparkModel", "dspark", _RUN),
        (VLLM, QWEN3, "dspark, gated head"): _ONLY_VANILLA,
        (VLLM, QWEN3, "dspark, rnn head"): _ONLY_VANILLA,
        (VLLM, GEMMA4, "eagle3"): _NO_GEMMA_EAGLE,
        (VLLM, GEMMA4, "dflash, in_place"): _NO_GEMMA_DFLASH,
        (VLLM, GEMMA4, "dflash, next_token"): _loads("Gemma4DSparkModel", "dspark"),
        (VLLM, GEMMA4, "dspark, no head"): _loads("Gemma4DSparkModel", "dspark"),
        (VLLM, GEMMA4, "dspark, vanilla head"): _loads("Gemma4DSparkModel", "dspark"),
        (VLLM, GEMMA4, "dspark, gated head"): _ONLY_VANILLA,
        (VLLM, GEMMA4, "dspark, rnn head"): _ONLY_VANILLA,
        (SGLANG, QWEN3, "eagle3"): _refuses(
            "SGLang's Eagle3 class normalises no queries and keys", "export with --format vllm"
        ),
        (SGLANG, QWEN3, "dflash, in_place"): _loads("DFlashDraftModel", "DFLASH"),
        (SGLANG, QWEN3, "dflash, next_token"): _loads("Qwen3DSparkModel", "DSPARK"),
        (SGLANG, QWEN3, "dspark, no head"): _loads("Qwen3DSparkModel", "DSPARK"),
        (SGLANG, QWEN3, "dspark, vanilla head"): _loads("Qwen3DSparkModel", "DSPARK"),
        (SGLANG, QWEN3, "dspark, gated head"): _loads("Qwen3DSparkModel", "DSPARK"),
        (SGLANG, QWEN3, "dspark, rnn head"): _loads("Qwen3DSparkModel", "DSPARK"),
        (SGLANG, GEMMA4, "eagle3"): _NO_GEMMA_EAGLE,
        (SGLANG, GEMMA4, "dflash, in_place"): _NO_GEMMA_DFLASH,
        (SGLANG, GEMMA4, "dflash, next_token"): _NO_GEMMA_AT_SGLANG,
        (SGLANG, GEMMA4, "dspark, no head"): _NO_GEMMA_AT_SGLANG,
        (SGLANG, GEMMA4, "dspark, vanilla head"): _NO_GEMMA_AT_SGLANG,
        (SGLANG, GEMMA4, "dspark, gated head"): _NO_GEMMA_AT_SGLANG,
        (SGLANG, GEMMA4, "dspark, rnn head"): _NO_GEMMA_AT_SGLANG,
        (SPECULATORS, QWEN3, "eagle3"): _loads("Eagle3Speculator", "eagle3", _RUN),
        (SPECULATORS, QWEN3, "dflash, in_place"): _loads("DFlashSpeculator", "dflash", _RUN),
        (SPECULATORS, QWEN3, "dflash, next_token"): _loads("DSparkSpeculator", "dspark", _RUN),
        (SPECULATORS, QWEN3, "dspark, no head"): _loads("DSparkSpeculator", "dspark"),
        (SPECULATORS, QWEN3, "dspark, vanilla head"): _loads("DSparkSpeculator", "dspark", _RUN),
        (SPECULATORS, QWEN3, "dspark, gated head"): _loads("DSparkSpeculator", "dspark"),
        (SPECULATORS, QWEN3, "dspark, rnn head"): _loads("DSparkSpeculator", "dspark"),
        **{
            (SPECULATORS, GEMMA4, row): _refuses(
                "the format has bodies of Qwen3 and Llama only", "export with --format vllm"
            )
            for row in ROWS
        },
        **{
            (DEEPSPEC, family, row): _loads("as it was trained", "")
            for family in (QWEN3, GEMMA4)
            for row in ROWS
            if row != "dflash, in_place"
        },
        **{
            (DEEPSPEC, family, "dflash, in_place"): _refuses(
                "its positions predict in place, which this layout does not have",
                "train with draft.slots next_token; on Qwen3 vLLM and SGLang load this one",
            )
            for family in (QWEN3, GEMMA4)
        },
    }
)


def cell(format_name: str, family: str, row: str) -> Cell:
    """What the table says of a kind of draft."""
    return _TABLE[format_name, family, row]


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


def matrix() -> list[dict[str, str]]:
    """The table, a row for each kind of draft and family."""
    return [
        {"draft": row, "family": family, **{name: _in_words(cell(name, family, row)) for name in ENGINES}}
        for family in (QWEN3, GEMMA4)
        for row in ROWS
    ]


def _in_words(found: Cell) -> str:
    return f"no: {found.reason}" if found.architecture is None else f"{found.architecture} ({found.checked})"
