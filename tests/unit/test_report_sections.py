"""What a page says of one draft's evaluation: every section present, absent and not applicable; answers by round."""

import re
from pathlib import Path
from typing import Any

import pytest

from deepspec.evaluation.results import (
    AnswerPiece,
    DomainResult,
    Evaluation,
    LoadPoint,
    LoadRun,
    LoadTest,
    Sample,
    ThresholdPoint,
    ThresholdSweep,
)
from deepspec.reports.rendering import Figures
from deepspec.reports.sections.acceptance import DraftSections, evaluated, means
from deepspec.reports.sections.load import _rule
from deepspec.reports.sections.samples import samples
from tests.fixtures.reports import HOSTILE, benchmark, evaluation, everything, load, one_page, report


def page_text(tmp_path: Path, **parts: Any) -> str:
    _, page = one_page(tmp_path, report(**parts))
    return re.sub(r"\s+", " ", page.text)


def section(tmp_path: Path, name: str, **parts: Any) -> str:
    text, _ = one_page(tmp_path, report(**parts))
    return text.split(f'<section id="{name}">')[1].split("</section>")[0]


def sections(measured: Evaluation) -> DraftSections:
    return evaluated(measured, None, None, Figures())


def with_sweep(sweep: ThresholdSweep) -> Evaluation:
    return evaluation().model_copy(update={"threshold_sweep": sweep})


def with_load(measured: LoadTest) -> Evaluation:
    return evaluation().model_copy(update={"load": measured})


def test_results_say_what_was_proposed_and_verified(tmp_path: Path) -> None:
    said = page_text(tmp_path, evaluation=evaluation())
    for text in ("verify rate", "0.775", "proposed", "2.96", "2.05 to 2.45", "2.60 to 2.90", "math", "turns", "56"):
        assert text in said, text


def test_an_older_evaluation_has_dashes_for_what_it_lacks(tmp_path: Path) -> None:
    old = evaluation().to_json()
    for name in ("domains", "threshold_sweep", "load"):
        del old[name]
    for part in old["benchmarks"].values():
        for name in ("domain", "turns", "speedup_ci95", "speed_prompts"):
            del part[name]
        part |= {"plain_tokens": 51, "plain_stopped": 1}  # as the first version wrote them
    del old["macro"]["tau_ci95"]
    assert Evaluation.from_json(old, where="here").to_json() == old
    said = page_text(tmp_path, evaluation=Evaluation.from_json(old, where="here"))
    assert "The sweep over confidence thresholds is missing" in said
    assert "The measurement under load is missing" in said
    assert "3.100" in said


def test_domains_of_several_benchmarks_have_a_row() -> None:
    found = evaluation()
    assert [name for name, _ in means(found)] == ["macro average"]
    found.benchmarks["algebra"] = benchmark(3.5, domain="math")
    found.domains["math"] = DomainResult(
        tau=3.3, tau_ci95=(3.1, 3.5), speedup=2.2, benchmarks=("arithmetic", "algebra")
    )
    assert [name for name, _ in means(found)] == ["math (2)", "macro average"]
    results = sections(found).results
    assert results is not None
    assert [(row.tau, row.interval) for row in results.means] == [
        ("3.300", "3.10 to 3.50"),
        ("2.750", "2.60 to 2.90"),
    ]
    assert [row.speedup for row in results.mean_speeds] == [
        "2.20\N{MULTIPLICATION SIGN}",
        "2.25\N{MULTIPLICATION SIGN}",
    ]
    del found.benchmarks["arithmetic"], found.benchmarks["chat"]
    assert means(found) == []


def test_the_threshold_sweep_is_drawn_and_tabled(tmp_path: Path) -> None:
    said = section(tmp_path, "threshold", evaluation=evaluation())
    assert said.count("<svg") == 2
    assert said.count("<tr>") == 1 + 10
    for text in ("measured on 48 prompts", "0.952", "1.480", "1.28 to 1.68"):
        assert text in re.sub(r"\s+", " ", said)


def test_a_sweep_that_does_not_apply_says_why(tmp_path: Path) -> None:
    reason = f"The draft has no confidence head {HOSTILE}"
    said = page_text(tmp_path, evaluation=with_sweep(ThresholdSweep(applicable=False, reason=reason)))
    assert f"Not applicable: {reason}" in said
    assert "The sweep over confidence thresholds is missing" not in said


def test_a_sweep_may_lack_values() -> None:
    nothing = dict.fromkeys(("tau", "tau_ci95", "mean_proposed", "verify_rate", "draft_acceptance"))
    points = tuple(ThresholdPoint(threshold=threshold, rounds=0, **nothing) for threshold in (0.5, 0.9))
    found = sections(with_sweep(ThresholdSweep(applicable=True, prompts=3, points=points))).threshold
    assert found is not None
    assert found.figures == []
    assert found.rows[0].tau == "—"
    assert sections(with_sweep(ThresholdSweep(applicable=True, points=()))).threshold is None


def test_load_is_drawn_and_tabled_per_way_of_decoding(tmp_path: Path) -> None:
    said = section(tmp_path, "load", evaluation=evaluation())
    assert said.count("<svg") == 2
    text = re.sub(r"\s+", " ", said)
    assert "drafts nothing while more than 12 requests are decoded at once." in text
    assert "at most 128 new tokens. Every point is the mean of 5 runs" in text
    assert "Measured on: cpu with 2 threads." in text
    assert said.count('<th scope="row">scheduled</th>') == 5
    costs = [re.findall(r">([^<]*)</td>", row) for row in said.split("step with a draft")[1].split("<tr>")[1:]]
    assert costs == [
        ["1", "3.00", "2", "4.00"],
        ["1", "", "4", "5.00"],
        ["16", "9.00", "32", "11.00"],
        ["16", "", "64", "16.00"],
    ]


def test_load_without_a_confidence_head_has_no_scheduled_line() -> None:
    whole = load()
    points = tuple(point.model_copy(update={"scheduled": None}) for point in whole.points)
    measured = whole.model_copy(
        update={"modes": ("plain", "fixed"), "points": points, "costs": None, "most_rows": None}
    )
    found = sections(with_load(measured)).load
    assert found is not None
    assert {row.mode for row in found.rows} == {"plain", "fixed"}
    assert "scheduled" not in found.caption
    assert "drafts nothing" not in found.caption
    assert found.costs is None


def test_load_may_lack_points_and_intervals() -> None:
    run = LoadRun(
        tokens_per_second=9.0, ci95=None, request_tokens_per_second=9.0, request_ci95=None, tau=None, mean_proposed=None
    )
    points = (LoadPoint(concurrency=1, plain=run), LoadPoint(concurrency=2, fixed=None))
    measured = load().model_copy(update={"modes": ("plain", "fixed"), "points": points})
    found = sections(with_load(measured)).load
    assert found is not None
    assert [(row.mode, row.speed, row.interval) for row in found.rows] == [("plain", "9", "—")]
    assert len(found.figures) == 2


def test_every_token_stands_in_its_round(tmp_path: Path) -> None:
    answer = [
        {"text": "To", "round": 0, "kind": "prefill"},
        {"text": " be", "round": 1, "kind": "accepted"},
        {"text": " or", "round": 1, "kind": "accepted"},
        {"text": " not", "round": 1, "kind": "bonus"},
        {"text": "\n", "round": 2, "kind": "bonus"},
        {"text": ".", "round": 3, "kind": "accepted"},
    ]
    asked = Sample.model_validate({"benchmark": "chat", "prompt": "Say\nit", "answer": answer})
    (found,) = samples([asked]) or []
    assert [(part.tone, part.title) for part in found.rounds] == [
        ("prefill", "prefill: the answer's first token"),
        ("odd", "round 1: 2 accepted, 1 bonus"),
        ("even", "round 2: 1 bonus"),
        ("odd", "round 3: 1 accepted"),
    ]
    assert found.tally == "6 tokens; 5 of them in 3 rounds, 1.67 per round."
    said = section(tmp_path, "samples", samples=(asked,))
    assert '<b class="t"> not</b>' in said
    assert '<b class="t"><i class="mark">↵</i>\n</b>' in said
    assert ">Say\nit</pre>" in said


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab", [("", "ab")]),
        (" ", [("·", "")]),
        (" a", [("", " a")]),
        ("a  b", [("", "a"), ("··", ""), ("", "b")]),
        ("\r\n", [("↵", "\n")]),
        ("\ta", [("⇥", "\t"), ("", "a")]),
        ("a\u202eb", [("", "a"), ("⟨U+202E⟩", ""), ("", "b")]),
        ("\x00", [("⟨U+0000⟩", "")]),
        ("", []),
    ],
)
def test_what_is_invisible_is_shown(text: str, pieces: list[tuple[str, str]]) -> None:
    (found,) = (
        samples([Sample(benchmark="", prompt="", answer=(AnswerPiece(text=text, round=1, kind="accepted"),))]) or []
    )
    assert [(piece.mark, piece.text) for piece in found.rounds[0].tokens[0].pieces] == pieces


def test_hostile_prompts_and_answers_stay_text(tmp_path: Path) -> None:
    piece = AnswerPiece(text=HOSTILE, round=1, kind="accepted")
    hostile = Sample(benchmark=HOSTILE, prompt=HOSTILE, answer=(piece,))
    text, page = one_page(tmp_path, everything().model_copy(update={"samples": (hostile,)}))
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("</style>") == text.count("<style")
    assert page.text.count(HOSTILE) == 3


def test_an_answer_without_rounds_is_told(tmp_path: Path) -> None:
    answer = (AnswerPiece(text="Yes", round=0, kind="prefill"),)
    said = page_text(tmp_path, samples=(Sample(benchmark="chat", prompt="?", answer=answer),))
    assert "1 token, all of it from the prefill." in said


def test_loads_are_in_the_order_of_their_numbers() -> None:
    said = _rule({"16": "all", "1": "all", "2": "all", "128": "scheduled", "32": "all", "64": "scheduled"})
    assert "1, 2, 16, 32" in said
    assert "64, 128" in said
