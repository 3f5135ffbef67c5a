"""Fits and judges the confidence temperatures of a draft by decoding the calibration split, which nothing else uses.

The mathematics is in fit.py; here prompts are decoded, and dealt into the half that is fitted on and the half
that is measured on. Files: `calibration.json` (what is returned) and `rounds.parquet`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.data.tables import TableWriter
from deepspec.decoding.completion import Round
from deepspec.decoding.engine import Engine
from deepspec.drafts.algorithm import Drafter
from deepspec.errors import DataError
from deepspec.evaluation.answering import requests_for
from deepspec.evaluation.calibration.fit import Observations, conditional_auc, fit, judge
from deepspec.evaluation.calibration.results import CalibrationResult, Halves, calibration_text
from deepspec.evaluation.config import Config
from deepspec.evaluation.metrics import mean
from deepspec.evaluation.prompts.selection import EncodedPrompts, by_rank, encode, select_split
from deepspec.evaluation.rounds import ROUNDS_SCHEMA, round_row
from deepspec.progress import SILENT, Progress
from deepspec.targets.model import Target

if TYPE_CHECKING:
    from deepspec.data.chat.renderer import Renderer

SPLIT = "calibration"


def calibrate(
    config: Config,
    *,
    target: Target,
    drafter: Drafter,
    renderer: "Renderer",
    conversations: Path,
    out: Path,
    progress: Progress = SILENT,
) -> CalibrationResult:
    """Calibrate a draft on the calibration split.

    Args:
        config: the recipe's section `evaluate`.
        target: captures the drafter's layers.
        drafter: the draft.
        renderer: the target's tokenizer and chat format.
        conversations: folder with `calibration.parquet` of the conversations (or responses) stage.
        out: existing folder for the two files.
        progress: advances by prompts.

    Raises:
        DataError: the split is empty or too small, or too many of its prompts don't fit into the context.
    """
    file = conversations / f"{SPLIT}.parquet"
    selected = select_split(file, num_prompts=config.num_calibration_prompts, seed=config.seed, thinks=renderer.thinks)
    context = target.spec.max_position_embeddings
    prompts = encode(SPLIT, selected, renderer, context=context, max_skipped_share=config.max_skipped_share)
    return calibrate_prompts(config, target=target, drafter=drafter, prompts=prompts, out=out, progress=progress)


def calibrate_prompts(
    config: Config,
    *,
    target: Target,
    drafter: Drafter,
    prompts: EncodedPrompts,
    out: Path,
    progress: Progress = SILENT,
) -> CalibrationResult:
    """`calibrate` for prompts that are at hand already."""
    rounds = _collect(config, target, drafter, prompts, progress)
    with TableWriter(out / "rounds.parquet", ROUNDS_SCHEMA) as file:
        for name, of_prompt in sorted((rounds or {}).items()):
            for index, one in enumerate(of_prompt):
                file.write(round_row(SPLIT, name, 0, index, one))
    if rounds is None:
        result = CalibrationResult(
            applicable=False, reason="The draft has no confidence head.", skipped=prompts.skipped
        )
    else:
        result = _calibration(config, rounds, prompts, drafter.num_draft_tokens)
    (out / "calibration.json").write_text(calibration_text(result), encoding="utf-8", newline="\n")
    return result


def _collect(
    config: Config, target: Target, drafter: Drafter, prompts: EncodedPrompts, progress: Progress
) -> dict[str, tuple[Round, ...]] | None:
    """Rounds by prompt; None for a draft that says nothing about its confidence."""
    engine = Engine(target, drafter, rows=config.calibration.num_rows, sampling=config.sampling)
    progress.start(len(prompts.prompts), "prompts")
    rounds: dict[str, tuple[Round, ...]] = {}
    for completion in engine.run(requests_for(config, prompts.prompts)):
        rounds[completion.id] = completion.rounds
        progress.advance()
        if completion.rounds and not completion.rounds[0].confidence:
            return None
    if sum(map(bool, rounds.values())) < 2:
        raise DataError(
            "Calibration needs two prompts with answers of several tokens: one to fit on and one to measure on.",
            where="data.splits.calibration",
            remedy="Give more conversations.",
        )
    return rounds


def _calibration(
    config: Config, rounds: Mapping[str, Sequence[Round]], prompts: EncodedPrompts, num_draft_tokens: int
) -> CalibrationResult:
    order = list(by_rank((name for name, of_prompt in rounds.items() if of_prompt), config.seed, "halves"))
    halves = (order[0::2], order[1::2])
    fitted, measured = (_observations([rounds[name] for name in half], num_draft_tokens) for half in halves)
    temperatures = fit(fitted, config.calibration)
    before = judge(measured, [1.0] * num_draft_tokens, config.calibration)
    after = judge(measured, temperatures, config.calibration)
    return CalibrationResult(
        applicable=True,
        temperatures=tuple(temperatures),
        ece_before=before.ece,
        ece_after=after.ece,
        ece_mass_before=before.ece_mass,
        ece_mass_after=after.ece_mass,
        brier_before=before.brier,
        brier_after=after.brier,
        auc_before=before.auc,
        auc_after=after.auc,
        auc=after.auc,
        conditional_auc=tuple(conditional_auc(measured)),
        reliability_before=before.reliability,
        reliability_after=after.reliability,
        trials=after.trials,
        mean_ece_before=mean(before.ece),
        mean_ece_after=mean(after.ece),
        prompts=Halves(fitted=len(halves[0]), measured=len(halves[1])),
        rounds=Halves(fitted=len(fitted.proposed_N), measured=len(measured.proposed_N)),
        skipped=prompts.skipped,
    ).without_nulls()


def _observations(rounds: Sequence[Sequence[Round]], num_draft_tokens: int) -> Observations:
    return Observations.of(
        [(one.proposed, one.accepted, one.confidence) for of_prompt in rounds for one in of_prompt], num_draft_tokens
    )
