"""A verdict as Markdown and as metrics: what pages of others (MLflow, Prefect) show of it."""

from deepspec.gates.verdict import Verdict

NOT_MEASURED = "—"
_MARKS = {"passed": "✓", "failed": "✗", "not known": "?"}


def verdict_lines(verdict: Verdict) -> list[str]:
    """Every gate's sentence, and the champion beside the challenger."""
    lines = [f"## {'Accepted' if verdict.accepted else 'Refused'}", ""]
    lines += [f"* {_MARKS[reason.answer]} **{reason.gate}**: {reason.sentence}" for reason in verdict.reasons]
    if verdict.comparison:
        lines += [
            "",
            "| | prompts | challenger τ | champion τ | difference | 95 % interval |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {part.name} | {part.prompts} | {_number(part.challenger)} | {_number(part.champion)} "
            f"| {_number(part.difference, '+')} | {_interval(part.ci95)} |"
            for part in verdict.comparison
        ]
    return [*lines, *([f"\n{verdict.limits}"] if verdict.limits else []), ""]


def verdict_metrics(verdict: Verdict) -> dict[str, float]:
    """What of it can be charted over versions, by name: τ of both drafts, and the gain with its lower end."""
    found = {"accepted": float(verdict.accepted)}
    for part in verdict.comparison:
        values = {
            "tau": part.challenger,
            "champion_tau": part.champion,
            "tau_gain": part.difference,
            "tau_gain_low": None if part.ci95 is None else part.ci95[0],
        }
        found |= {f"{name}/{part.name}": float(value) for name, value in values.items() if value is not None}
    return found


def _number(value: float | None, sign: str = "") -> str:
    return NOT_MEASURED if value is None else f"{value:{sign}.3f}"


def _interval(bounds: tuple[float, float] | None) -> str:
    return NOT_MEASURED if bounds is None else f"{bounds[0]:+.3f} to {bounds[1]:+.3f}"
