"""The page about several drafts, and its table in the terminal."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deepspec.evaluation.compare.results import Comparison, Difference, Differences, MeanDifference, PairedDifference
from deepspec.reports.comparison_page import compared_differences, tendency, write_comparison
from deepspec.reports.comparison_terminal import comparison_table
from tests.fixtures.reports import HOSTILE, Page, benchmark, comparison, evaluation, figures_once

__all__ = ["figures_once"]

MINUS = "\N{MINUS SIGN}"


def written(folder: Path, data: dict[str, Any]) -> tuple[str, Page]:
    text = write_comparison(folder, Comparison.model_validate(data)).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Page]:
    folder = tmp_path_factory.mktemp("comparison")
    return folder, *written(folder, comparison("models:/tiny/1", "models:/tiny@champion", "train/0123"))


def test_the_page_says_who_is_better_where_and_how_surely(page: tuple[Path, str, Page]) -> None:
    said = re.sub(r"\s+", " ", page[2].text)
    for text in (
        "3 drafts on the same prompts", "Against models:/tiny/1", "+0.200 higher+0.100 to +0.300, 48 prompts",
        f"{MINUS}0.100 lower", "no clear difference", "gate split", "macro average",
    ):  # fmt: skip
        assert text in said, text
    assert "is missing" not in said
    sections = [attributes.get("id") for tag, attributes in page[2].tags if tag == "section"]
    assert sections[:5] == ["drafts", "differences", "results", "speed", "positions"]
    assert {"draft-1", "draft-2", "draft-3", "draft-3-samples", "recipe"} <= set(sections)
    linked = [attributes["href"] for tag, attributes in page[2].tags if tag == "a"]
    assert linked == ["#draft-1", "#draft-2", "#draft-3"]


def test_it_is_self_contained_and_its_figures_have_names_of_their_own(page: tuple[Path, str, Page]) -> None:
    folder, text, read = page
    assert not [ref for ref in read.references() if "//" in ref or ("url(" in ref and "url(#" not in ref)]
    assert {"script", "link", "iframe", "object", "embed", "form"}.isdisjoint(tag for tag, _ in read.tags)
    ids = [attributes["id"] for _, attributes in read.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    drawn = {path.stem for path in (folder / "plots").glob("*.svg")}
    assert {"differences", "positions-1", "positions-2", "draft-1-acceptance-length", "draft-3-load-trade-off"} <= drawn
    assert len(drawn) == 3 + 3 * 9
    assert {path.stem for path in (folder / "plots").glob("*.png")} == drawn


def test_its_data_are_kept_as_json(page: tuple[Path, str, Page]) -> None:
    data = comparison("models:/tiny/1", "models:/tiny@champion", "train/0123")
    assert json.loads((page[0] / "report.json").read_text()) == data


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    data = comparison(HOSTILE, f"other {HOSTILE}")
    for draft in data["drafts"]:
        draft.update(kind=HOSTILE, key=HOSTILE, digest=HOSTILE)
        draft["evaluation"]["benchmarks"][HOSTILE] = benchmark(2.0, HOSTILE).to_json()
        draft["samples"] = [
            {"benchmark": HOSTILE, "prompt": HOSTILE, "answer": [{"text": HOSTILE, "round": 1, "kind": "bonus"}]}
        ]
    part = {"difference": 0.1, "ci95": [0.0, 0.2], "prompts": 3}
    data["differences"][0]["benchmarks"][HOSTILE] = part
    mean = {"difference": 0.1, "ci95": [0.0, 0.2], "benchmarks": [HOSTILE, "chat"]}
    data["differences"][0]["domains"] = {HOSTILE: mean}
    text, page = written(
        tmp_path, {**data, "comparison_id": HOSTILE, "recipe_name": HOSTILE, "recipe": {HOSTILE: HOSTILE}}
    )
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("</style>") == text.count("<style")
    assert not [tag for tag, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert page.text.count(HOSTILE) > 20
    assert HOSTILE in shown(data, width=400)


def test_one_draft_has_a_page_without_differences(tmp_path: Path) -> None:
    data = comparison("models:/tiny/1")
    assert data["differences"] == []
    _, page = written(tmp_path, data)
    assert "Against" not in page.text
    assert "against 1" not in shown(data)


def test_drafts_of_different_benchmarks_have_dashes(tmp_path: Path) -> None:
    data = comparison("a", "b")
    del data["drafts"][0]["evaluation"]["benchmarks"]["chat"]
    del data["differences"][0]["benchmarks"]["chat"]
    data["drafts"][1]["evaluation"]["gate"] = None
    text, _ = written(tmp_path, data)
    row = text.split('<th scope="row">chat</th>')[2].split("</tr>")[0]
    assert row.count("<td") == 2
    assert "—" in row


def test_an_older_evaluation_and_no_calibration_can_be_shown(tmp_path: Path) -> None:
    data = comparison("a", "b")
    data["drafts"][0] |= {"calibration": None, "samples": None}
    for name in ("domains", "load", "threshold_sweep"):
        del data["drafts"][0]["evaluation"][name]
    _, page = written(tmp_path, data)
    assert page.text.count("is missing from this report") == 4


def test_intervals_decide_what_is_said() -> None:
    said = [
        tendency(Difference(difference=0.1, ci95=bounds))
        for bounds in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1), None)
    ]
    assert said == ["higher", "lower", "no clear difference", "no clear difference", "—"]


def test_differences_have_the_rows_of_the_lengths() -> None:
    part = PairedDifference(difference=0.1, ci95=(0.0, 0.2), prompts=3)
    means = {
        name: MeanDifference(difference=0.1, ci95=(0.0, 0.2), benchmarks=names)
        for name, names in (("math", ("a", "b")), ("chat", ("c",)), ("macro", ("a", "b", "c")))
    }
    several = Differences(
        benchmarks={"a": part, "b": part, "c": part},
        domains={"math": means["math"], "chat": means["chat"]},
        macro=means["macro"],
        gate=part,
    )
    assert list(compared_differences(several)) == ["a", "b", "c", "math (2)", "macro average", "gate split"]
    one = Differences(benchmarks={"a": part}, domains={}, macro=means["macro"], gate=None)
    assert list(compared_differences(one)) == ["a"]


def shown(data: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, no_color=True, force_terminal=False, record=True, file=io.StringIO())
    console.print(comparison_table(Comparison.model_validate(data)))
    return console.export_text()


def test_the_terminal_table_reads_at_80_columns() -> None:
    data = comparison("models:/tiny/1", "models:/tiny@champion", "[bold]c[/bold]")
    data["drafts"][0]["evaluation"] = evaluation(4.0).to_json()
    lines = shown(data).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert lines[:3] == [" 1  models:/tiny/1", " 2  models:/tiny@champion", " 3  [bold]c[/bold]"]
    start = next(place for place, line in enumerate(lines) if line.startswith("arithmetic"))
    rows = [line.split() for line in lines[start : start + 3]]
    times = "2.25\N{MULTIPLICATION SIGN}"
    assert rows[0] == ["arithmetic", "1", "7.10", "[6.85,", "7.35]", times]
    assert rows[1] == ["2", "3.30", "[3.05,", "3.55]", times, "+0.20", "[+0.10,", "+0.30]", ">"]
    assert rows[2] == ["3", "3.00", "[2.75,", "3.25]", times, f"{MINUS}0.10", f"[{MINUS}0.20,", f"{MINUS}0.05]", "<"]
    assert lines[-1].endswith("> and <: clearly higher, lower.")
