"""The report: self-contained, escaped, honest about what is missing; and its table in the terminal."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from deepspec.evaluation.calibration.results import CalibrationResult, ReliabilityBin
from deepspec.evaluation.results import BenchmarkResult, Evaluation, MeanResult
from deepspec.record import Cost, RecordedVerdict, RunRecord
from deepspec.reports.formatting import interval, number, quantity, signed, signed_interval, times
from deepspec.reports.overview_page import write_overview
from deepspec.reports.plots import acceptance as plots
from deepspec.reports.plots import drawing
from deepspec.reports.run_page import Ancestor, Champion, RunReport, TrainingMetric, write_report
from deepspec.reports.run_terminal import summary_table
from tests.fixtures import results
from tests.fixtures.reports import (
    HOSTILE,
    Page,
    benchmark,
    evaluation,
    everything,
    figures_once,
    model,
    one_page,
    record,
    report,
    stage,
    verdict,
)
from tests.fixtures.verdicts import judged

__all__ = ["figures_once"]

K = 3
TIMES = "\N{MULTIPLICATION SIGN}"
SECTIONS = (
    "verdict", "results", "positions", "calibration", "threshold", "load", "samples", "training", "cost", "lineage",
    "recipe",
)  # fmt: skip
FIGURES = {
    "acceptance-length", "conditional-acceptance", "prefix-acceptance", "reliability-before", "reliability-after",
    "threshold-rates", "threshold-lengths", "load-throughput", "load-trade-off",
    "training-loss", "training-tau", "training-acceptance",
}  # fmt: skip


@pytest.fixture
def data() -> RunReport:
    return everything()


@dataclass(frozen=True)
class Written:
    """A report with every part, written once for all tests that only look at it."""

    folder: Path
    data: RunReport
    text: str
    page: Page


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder, data = tmp_path_factory.mktemp("report"), everything(1000)
    return Written(folder, data, *one_page(folder, data))


def test_the_page_is_self_contained(written: Written) -> None:
    text, page = written.text, written.page
    assert not [ref for ref in page.references() if "//" in ref or ("url(" in ref and "url(#" not in ref)]
    assert not re.search(r"@import|url\((?!#)", text)
    assert {"script", "link", "iframe", "object", "embed", "form"}.isdisjoint(tag for tag, _ in page.tags)
    policy = [
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "width=device-width" in text
    assert "prefers-color-scheme: dark" in text


def test_it_says_what_was_measured_and_on_how_much(written: Written) -> None:
    said = re.sub(r"\s+", " ", written.page.text)
    for text in (
        "3.100", "2.85 to 3.35", f"2.25{TIMES}", "0.432", "over 2400 rounds of 96 prompts", "of 1090",  # results
        "2.750", "1 skipped of 49 prompts", "τ 2.900 (2.65 to 3.15) over 1 200 rounds of 48 prompts",
        "Accepted", "τ 2.900 against the champion's 2.600 on the gate split: +0.300",
            "gate split2.6002.900+0.300+0.300 to +0.3008", "tiny version 6",  # verdict
        "0.0571", "0.0191", "1.100", "rounds behind k = 1: 445, 2: 445",  # calibration
        "one point in 3 is drawn", "train.lr changed 0.0006 -> 0.0003",  # training, stages
        "3.1 MB", "301.3 s", "k" * 64, "d" * 64, "lr: 0.0006", "models:/tiny/7",
    ):  # fmt: skip
        assert text in said, text
    assert "is missing" not in said


def test_figures_stand_in_the_page_and_beside_it(written: Written) -> None:
    text, page = written.text, written.page
    assert {path.stem for path in (written.folder / "plots").glob("*.svg")} == FIGURES
    assert {path.stem for path in (written.folder / "plots").glob("*.png")} == FIGURES
    assert sum(tag == "svg" for tag, _ in page.tags) == len(FIGURES)
    for path in (written.folder / "plots").glob("*.svg"):
        ET.fromstring(path.read_bytes())  # noqa: S314  our own file
    for path in (written.folder / "plots").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | {ref[1:] for ref in page.references() if ref.startswith("#")}
    assert used
    assert used <= set(ids)
    assert text.count("currentColor") > len(FIGURES)


def test_equal_data_give_equal_bytes(written: Written, tmp_path: Path, figures_once: dict[Any, Any]) -> None:
    figures_once.clear()
    write_report(tmp_path, written.data)
    paths = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(paths) == 3 + 2 * len(FIGURES)
    assert [path for path in paths if (tmp_path / path).read_bytes() != (written.folder / path).read_bytes()] == []


def test_figures_are_drawn_again_only_where_they_would_differ(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], drawing.Drawing.rendered
    monkeypatch.setattr(drawing.Drawing, "rendered", lambda self: drawn.append(self.name) or draw(self))
    page = write_report(tmp_path / "equal", written.data, earlier=written.folder)
    assert not drawn
    assert page.read_text() == written.text

    metrics = tuple(
        metric.model_copy(update={"value": metric.value / 2}) if metric.name == "loss" else metric
        for metric in written.data.training_metrics or ()
    )
    changed = written.data.model_copy(update={"training_metrics": metrics})
    other = write_report(tmp_path / "other", changed, earlier=page.parent)
    assert drawn == ["training-loss"]
    assert other.read_text() != written.text

    (page.parent / "plots" / "load-trade-off.svg").write_text("<svg><script>alert(1)</script></svg>")
    (page.parent / "plots" / "training-tau.png").unlink()
    again = write_report(tmp_path / "again", written.data, earlier=page.parent)
    assert drawn[1:] == ["load-trade-off", "training-tau"]
    assert again.read_text() == written.text


def test_hostile_text_stays_text(tmp_path: Path, data: RunReport) -> None:
    measured = Evaluation(benchmarks={HOSTILE: benchmark(2.0, HOSTILE)})
    reason = {"gate": HOSTILE, "passed": True, "measured": 1.0, "sentence": HOSTILE}
    told = stage(HOSTILE, HOSTILE)
    hostile = data.model_copy(
        update={
            "run_id": HOSTILE,
            "recipe_name": HOSTILE,
            "recipe": {HOSTILE: [HOSTILE]},
            "evaluation": measured,
            "verdict": RecordedVerdict.model_validate({"accepted": True, "reasons": [reason]}),
            "champion": Champion(name=HOSTILE, version=HOSTILE, digest=HOSTILE),
            "model": model(HOSTILE, HOSTILE).model_copy(update={"aliases": (HOSTILE,)}),
            "training_metrics": (TrainingMetric(step=0, name=f"loss {HOSTILE}", value=1.0, unit=HOSTILE),),
            "stages": (told,),
            "lineage": (Ancestor(stage=HOSTILE, key=HOSTILE, digest=HOSTILE),),
            "cost": Cost.model_validate({"cpu_seconds": 1.0, HOSTILE: 1}),
        }
    )
    text, page = one_page(tmp_path, hostile)
    assert "<script" not in text
    assert "<img" not in text
    assert not [tag for tag, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert page.text.count(HOSTILE) > 15
    for path in (tmp_path / "plots").glob("*.svg"):
        assert "script" not in {element.tag.rpartition("}")[2] for element in ET.parse(path).iter()}  # noqa: S314


def test_every_missing_part_is_said_to_be_missing(tmp_path: Path) -> None:
    text, page = one_page(tmp_path, report())
    assert [a["id"] for tag, a in page.tags if tag == "section"] == list(SECTIONS)
    assert text.count("is missing from this report") == len(SECTIONS) + 1  # stages and cost stand in one section
    assert "not registered" in page.text
    assert "None" not in page.text


@pytest.mark.parametrize(("part", "times_said"), [("evaluation", 5), ("calibration", 2), ("verdict", 2)])
def test_one_missing_part_leaves_the_others(tmp_path: Path, data: RunReport, part: str, times_said: int) -> None:
    _, page = one_page(tmp_path, data.model_copy(update={"training_metrics": None, part: None}))
    assert page.text.count("is missing from this report") == times_said


def test_a_draft_without_a_confidence_head_is_not_called_missing(tmp_path: Path) -> None:
    reason = "The draft has no confidence head."
    calibration = CalibrationResult(applicable=False, reason=reason, skipped=())
    _, page = one_page(tmp_path, report(calibration=calibration))
    assert f"Not applicable: {reason}" in page.text
    assert "The calibration is missing" not in page.text


def test_a_benchmark_without_rounds_has_dashes(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("tau_ci95", "verify_rate", "mean_proposed", "speedup", "speedup_ci95"))
    rates = {"conditional_acceptance": (None,) * K, "prefix_acceptance": (None,) * K, "rounds": 0, "prompts": 3}
    measured = Evaluation(
        benchmarks={"empty": results.benchmark(None, **nothing, **rates)},
        macro=MeanResult(tau=None, speedup=None),
        gate=None,
    )
    _, page = one_page(tmp_path, report(evaluation=measured))
    assert "—" in page.text
    assert "Conditional acceptance by draft position is missing" in page.text
    assert "—" in shown(record(evaluation=measured.to_json()))


def test_without_a_champion_nothing_is_shown_to_be_compared(tmp_path: Path) -> None:
    first = RecordedVerdict.from_json(judged(2.9, challenger_digest="a" * 64).to_json())
    _, page = one_page(tmp_path, report(verdict=first))
    assert "challengerprompts gate split2.9008" in re.sub(r"\s+", " ", page.text)
    assert "difference" not in page.text
    assert "challenger" not in shown(record(status="promoted", verdict=first.to_json()))


def test_the_data_is_kept_as_json(written: Written) -> None:
    assert json.loads((written.folder / "report.json").read_text()) == written.data.to_json()


def shown(record: RunRecord, width: int = 80, **arguments: Any) -> str:
    console = Console(width=width, no_color=True, force_terminal=False, record=True, file=io.StringIO())
    console.print(summary_table(record, **arguments))
    return console.export_text()


def test_the_terminal_table_reads_at_80_columns(data: RunReport) -> None:
    assert data.evaluation is not None
    assert data.verdict is not None
    told = record(
        status="promoted",
        report=".deepspec/runs/x/report/report.html",
        evaluation=data.evaluation.to_json(),
        verdict=data.verdict.to_json(),
        model=model().to_json(),
    )
    text = shown(told, ui_command="mlflow ui --backend-store-uri sqlite:///.deepspec/mlflow.db")
    lines = text.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    row = next(line for line in lines if line.startswith("arithmetic"))
    assert row.split() == ["arithmetic", "3.10", "[2.85,", "3.35]", "91", "82", "—", f"2.25{TIMES}", "0.43"]
    assert next(line for line in lines if line.startswith("macro")).split() == [
        "macro",
        "average",
        "2.75",
        "[2.60,",
        "2.90]",
        f"2.25{TIMES}",
        "—",
    ]
    assert "accepted at 1…3, %" in text
    assert "Promoted: τ 2.900 against the champion's 2.600 on the gate split: +0.300" in text
    beside = next(line for line in lines if line.startswith("gate split"))
    assert beside.split() == ["gate", "split", "2.60", "2.90", "+0.30", "[+0.30,", "+0.30]", "8"]
    assert "tiny version 7 (champion)  models:/tiny/7" in text
    assert ".deepspec/runs/x/report/report.html" in text
    assert "mlflow ui --backend-store-uri sqlite:///.deepspec/mlflow.db" in text


def side_by_side(algorithms: Sequence[str] = ("eagle3", "dspark"), **rates: Any) -> RunRecord:
    """The record of a run of several algorithms."""
    measured = evaluation()
    for name, part in measured.benchmarks.items():
        measured.benchmarks[name] = part.model_copy(update=rates)
    one = {"evaluation": measured.to_json(), "verdict": verdict().to_json(), "model": model().to_json()}
    parts = {name: [{**content, "algorithm": algorithm} for algorithm in algorithms] for name, content in one.items()}
    return record(recipe="demo", status="promoted", **parts)


def test_one_table_has_a_row_per_algorithm_and_benchmark() -> None:
    lines = shown(side_by_side(conditional_acceptance=(0.8,) * 7)).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    rows = [line.split()[:2] for line in lines if line.startswith(("eagle3 ", "dspark "))]
    assert rows == [[name, row] for name in ("eagle3", "dspark") for row in ("arithmetic", "chat", "average")]
    assert [line.split(":")[0] for line in lines if "against the champion's" in line] == ["eagle3", "dspark"]
    assert sum(line.startswith("Model") for line in lines) == 2


def test_the_overview_leads_to_every_report(tmp_path: Path) -> None:
    pages = {"eagle3": "eagle3/report.html", HOSTILE: "other/report.html"}
    text = write_overview(tmp_path, side_by_side(("eagle3", HOSTILE)), pages).read_text(encoding="utf-8")
    assert re.findall(r'href="([^"]*)"', text) == list(pages.values())
    assert "<script" not in text
    assert "<img" not in text
    assert text.count(">2.750<") == 2


def alone(name: str, part: BenchmarkResult) -> RunRecord:
    """The record of a run that was evaluated on one benchmark."""
    measured = Evaluation(benchmarks={name: part}, macro=MeanResult(tau=None, speedup=None))
    return record(evaluation=measured.to_json())


def test_many_positions_stand_below_the_table() -> None:
    long = results.benchmark(3.0, conditional_acceptance=(0.9,) * 15)
    text = shown(alone("code", long))
    assert "code: " + " ".join(["90"] * 15) in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_the_terminal_says_what_is_missing_and_takes_names_as_text() -> None:
    text = shown(record(status="no_change"))
    assert "Nothing was evaluated in this run." in text
    assert "No change" in text
    assert "nothing was registered" in text
    assert "none was written" in text
    assert "[bold]x[/bold]" in shown(alone("[bold]x[/bold]", benchmark(2.0)), width=120)


def test_numbers_read_well() -> None:
    assert [number(v, 2) for v in (1234567.891, None, "x", True)] == ["1\u2009234\u2009567.89", "—", "—", "—"]
    assert (times(2.0), times(None)) == (f"2.00{TIMES}", "—")
    assert (interval([1, 2]), interval(None)) == ("1.00 to 2.00", "—")
    minus = "\N{MINUS SIGN}"
    assert [signed(value, 1) for value in (-0.25, 0, 0.25, None)] == [f"{minus}0.2", "0.0", "+0.2", "—"]
    assert (signed_interval([-1, 1]), signed_interval(None)) == (f"{minus}1.00 to +1.00", "—")
    assert quantity("bytes_written", 1536) == "1.5 kB"
    assert quantity("cpu_seconds", 2.0) == "2.0 s"
    assert quantity("tokens", 70123) == "70\u2009123"


def test_of_many_positions_a_few_are_drawn() -> None:
    one = [ReliabilityBin(confidence=0.5, observed=0.5, rounds=1)]
    assert plots.shown_positions([one] * 7) == [1, 3, 5, 7]
    assert plots.shown_positions([one, [], one]) == [1, 3]
    assert plots.shown_positions([one] * 15)[::3] == [1, 15]
    assert plots.shown_positions([]) == []


def test_nothing_heavy_is_imported_before_something_is_drawn() -> None:
    import subprocess
    import sys

    script = (
        "import sys, deepspec.reports.run_page, deepspec.reports.run_terminal\n"
        "print([m for m in ('matplotlib', 'torch', 'jinja2', 'mlflow', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
