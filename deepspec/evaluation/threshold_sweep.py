"""What a static confidence threshold trades: the paper's Figure 5.

Every threshold decodes the same prompts again, because what is not verified moves every later round.
Source: the DSpark paper (arXiv 2607.05147).
"""

from collections.abc import Iterable, Sequence

from deepspec.decoding.completion import Completion
from deepspec.decoding.engine import Engine
from deepspec.decoding.scheduler import StaticThreshold
from deepspec.drafts.algorithm import Drafter
from deepspec.errors import NoConfidence
from deepspec.evaluation.answering import decoded, requests_for
from deepspec.evaluation.config import Config
from deepspec.evaluation.metrics import RoundTable, summary
from deepspec.evaluation.prompts.selection import EncodedPrompt
from deepspec.evaluation.results import ThresholdPoint, ThresholdSweep
from deepspec.progress import SILENT, Progress
from deepspec.targets.model import Target


def threshold_sweep(
    config: Config,
    *,
    target: Target,
    drafter: Drafter,
    prompts: Sequence[EncodedPrompt],
    rows: int,
    progress: Progress = SILENT,
) -> ThresholdSweep | None:
    """Decode prompts at each of `config.thresholds`.

    Args:
        config: thresholds, sampling, limits.
        target, drafter: what decodes.
        prompts: of any benchmarks.
        rows: decoded at once.
        progress: advances by prompts.

    Returns:
        None where the recipe asks for no threshold, or there is no prompt.
    """
    if not config.thresholds or not prompts:
        return None
    points: list[ThresholdPoint] = []
    for threshold in config.thresholds:
        engine = Engine(target, drafter, scheduler=StaticThreshold(threshold), rows=rows, sampling=config.sampling)
        try:
            found, _ = decoded(engine, requests_for(config, prompts))
        except NoConfidence:
            return ThresholdSweep(applicable=False, reason="The draft has no confidence head.")
        progress.advance(len(prompts))
        points.append(_point(threshold, found.values(), drafter.num_draft_tokens))
    return ThresholdSweep(applicable=True, prompts=len(prompts), points=tuple(points))


def _point(threshold: float, completions: Iterable[Completion], num_draft_tokens: int) -> ThresholdPoint:
    table = RoundTable.of(
        [[(one.proposed, one.accepted, one.committed) for one in completion.rounds] for completion in completions]
    )
    measured = summary(table, num_draft_tokens)
    proposed = int(table.proposed_N.sum())
    return ThresholdPoint(
        threshold=threshold,
        tau=measured.tau,
        tau_ci95=measured.tau_ci95,
        mean_proposed=measured.mean_proposed,
        verify_rate=measured.verify_rate,
        rounds=measured.rounds,
        draft_acceptance=int(table.accepted_N.sum()) / proposed if proposed else None,
    )
