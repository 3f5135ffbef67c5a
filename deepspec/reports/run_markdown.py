"""What became of a run, as Markdown: for pages of others (a flow run's in Prefect, a run's in MLflow)."""

import os

from deepspec.gates.verdict_text import verdict_lines
from deepspec.record import Cost, RunRecord
from deepspec.reports.formatting import number, times
from deepspec.store.backends.s3_location import shown


def sentence(record: RunRecord) -> str:
    """A run's draft and how the run ended, in a few words."""
    version = next((f"{model.name} version {model.version}" for model in record.models), record.recipe)
    return f"{version}: {record.status.replace('_', ' ')}"


def summary(record: RunRecord, experiment: str | None = None) -> str:
    """The record's essentials as Markdown: the verdict with both drafts, cost, acceptance, stages, where to look.

    Args:
        record: the run's.
        experiment: id of the MLflow experiment that its runs there are in; None: not known.
    """
    lines = [f"# {sentence(record)}", "", *(f"{note}\n" for note in record.notes)]
    if record.error is not None:
        lines += [record.failure.sentence if record.failure is not None else record.error, ""]
    for verdict in record.verdicts:
        lines += verdict_lines(verdict)
    lines += [f"Cost: {cost_of(record.cost)}, {duration(record.seconds)}.", ""]
    if record.evaluations:
        lines += ["## Acceptance and speed", "", "| benchmark | τ | speedup |", "|---|---|---|"]
    for evaluation in record.evaluations:
        domains = {f"domain {name}": part for name, part in evaluation.domains.items()}
        measured = {**evaluation.benchmarks, **domains, "mean": evaluation.macro}
        rows = ((name, part) for name, part in measured.items() if part is not None)
        lines += [f"| {name} | {number(part.tau, 2)} | {times(part.speedup)} |" for name, part in rows]
    lines += ["", "## Stages", "", "| stage | status | seconds | why |", "|---|---|---|---|"]
    lines += [f"| {s.name} | {s.status} | {s.seconds:.1f} | {s.why} |" for s in record.stages]
    return "\n".join([*lines, "", *_links(record, experiment)])


def cost_of(cost: Cost) -> str:
    """What was used: money, where there are prices, and GPU hours, or processor time where there was no GPU."""
    used = (
        f"{number(cost.gpu_seconds / 3600, 2)} GPU hours"
        if cost.gpu_seconds
        else f"{number(cost.cpu_seconds, 0)} s of processor time"
    )
    return used if cost.amount is None else f"{number(cost.amount, 2)} {cost.currency} ({used})"


def duration(seconds: float) -> str:
    """How long, in minutes; in seconds below two of them."""
    return f"{number(seconds, 0)} s" if seconds < 120 else f"{number(seconds / 60, 0)} min"


def model_link(name: str, version: str | None = None) -> str | None:
    """The address of a model's page in MLflow, or of a version's; None: there is no server."""
    return mlflow_page(f"models/{name}" + (f"/versions/{version}" if version else ""))


def mlflow_page(path: str) -> str | None:
    """The address of a page of MLflow's server, among those of training; None: there is no server."""
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    return f"{shown(server).rstrip('/')}/#/{path}?workflowType=machine_learning" if server.startswith("http") else None


def _links(record: RunRecord, experiment: str | None) -> list[str]:
    lines = []
    for model in record.models:
        link = model_link(model.name, model.version)
        lines.append(f"* `{model.uri}`" + (f" — [in MLflow]({link})" if link else ""))
    place = f"experiments/{experiment}/runs" if experiment is not None else "runs"
    runs = [link for run in record.tracking_runs if (link := mlflow_page(f"{place}/{run}"))]
    lines += [f"* [its run in MLflow]({link})" for link in runs]
    if record.report:
        lines.append(f"* report: `{record.report}`" + ("; with its run in MLflow, among the artifacts" if runs else ""))
    return lines
