"""What `deepspec measure` puts beside what it measured, and how it is shown."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deepspec.decoding.config import Sampling
from deepspec.errors import RecipeError
from deepspec.evaluation.server.counters import Counted, acceptance, not_measured
from deepspec.evaluation.server.results import InProcess, ServedAcceptance, ServedBenchmark, ServedMean
from deepspec.recipe import load_recipe
from flows.cli.commands.measure import ServedDocument, check_out, last_evaluation, show
from tests.fixtures import reports, results
from tests.fixtures.refused import refused


def leave_run(home: Path, run_id: str, recipe: str, evaluation: Any) -> None:
    folder = home / "runs" / run_id
    folder.mkdir(parents=True)
    record = reports.record(run_id=run_id, recipe=recipe, evaluation=evaluation)
    (folder / "run.json").write_text(json.dumps(record.to_json()))


def evaluated(tau: float, **fields: Any) -> dict[str, Any]:
    return {**results.evaluation(math=tau).to_json(), **fields}


def test_the_last_evaluation_of_the_recipe_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path))
    recipe = load_recipe("tiny")
    assert last_evaluation(recipe, tmp_path) is None
    leave_run(tmp_path, "20260101-1", "tiny", evaluated(2.0))
    leave_run(tmp_path, "20260101-2", "tiny", evaluated(3.0))
    leave_run(tmp_path, "20260101-3", "tiny", None)  # it did not come so far
    leave_run(tmp_path, "20260101-4", "other", evaluated(4.0))
    found = last_evaluation(recipe, tmp_path)
    assert found is not None
    assert (found.run_id, found.macro.tau) == ("20260101-2", 3.0)
    several = [evaluated(5.0, algorithm="eagle3"), evaluated(6.0, algorithm="dspark")]
    leave_run(tmp_path, "20260101-5", "tiny", several)
    found = last_evaluation(recipe, tmp_path)
    assert found is not None
    assert found.macro.tau == 6.0


def shown(part: ServedAcceptance, *, in_process: InProcess | None, problems: Sequence[str], stopped: int = 0) -> str:
    benchmark = ServedBenchmark(
        domain=None,
        prompts=12,
        requests=12,
        tokens=300,
        seconds=3.4,
        tokens_per_second=88.4,
        skipped=(),
        failed=(),
        notes=("a note",),
        stopped=stopped,
        **dict(part),
    )
    found = ServedDocument(
        recipe="tiny",
        sampling=Sampling(),
        max_new_tokens=32,
        endpoint="gpu1:8000",
        engine="vllm",
        engine_version="0.10.2",
        concurrency=8,
        benchmarks={"math": benchmark, "chat": benchmark},
        domains={},
        macro=ServedMean(tau_from_tokens=part.tau_from_tokens, tau_from_tokens_ci95=None, tau=part.tau, tau_ci95=None),
        problems=tuple(problems),
        in_process=in_process,
    )
    console = Console(width=80, file=io.StringIO(), record=True)
    show(found, console)
    return console.export_text()


def test_both_numbers_stand_side_by_side() -> None:
    part = acceptance(Counted(rounds=100, proposed=300, accepted=150, accepted_at=(80, 50, 20), tokens=262, answers=12))
    beside = results.evaluation(math=2.75)
    part_of = {"math": results.benchmark(2.75, prompts=16)}
    assert beside.macro is not None
    taus = {"math": 2.75, "macro": 2.75}
    in_process = InProcess(run_id="20260101-2", tau_from_tokens=taus, benchmarks=part_of, macro=beside.macro)
    text = shown(part, in_process=in_process, problems=[])
    [line] = [line for line in text.splitlines() if line.startswith("math ")]
    assert line.split() == ["math", "2.750", "2.500", "80", "62", "40", "88.4", "12", "of", "16"]
    assert "Served by vllm 0.10.2 at gpu1:8000, 8 at once. In process: run 20260101-2." in text
    assert "math: a note." in text
    assert all(len(line) <= 80 for line in text.splitlines()[:4])


def test_how_rounds_were_counted_and_what_the_engine_counts_is_said() -> None:
    counted = Counted(rounds=100, proposed=300, accepted=150, accepted_at=(80, 50, 20), tokens=262, answers=22)
    text = shown(acceptance(counted), in_process=None, problems=[], stopped=3)
    assert "Counted by the server's counters, of all answers." in text
    assert "behind an answer's end, is math 2.500, chat 2.500." in text
    by_round = acceptance(counted).model_copy(update={"counted_by": "round", "tau_from_tokens_ci95": (2.25, 2.75)})
    text = shown(by_round, in_process=None, problems=[], stopped=3)
    assert "Counted by the rounds that each reply lists." in text
    assert "2.400 [2.25, 2.75]" in text
    counted = Counted(rounds=100, proposed=None, accepted=None, accepted_at=(), tokens=262, answers=22)
    assert "behind an answer's end" not in shown(acceptance(counted), in_process=None, problems=[], stopped=3)


def test_an_evaluation_whose_answers_are_gone_has_no_such_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path))
    leave_run(tmp_path, "20260101-2", "tiny", evaluated(3.0))
    found = last_evaluation(load_recipe("tiny"), tmp_path)
    assert found is not None
    assert found.tau_from_tokens == {}
    assert found.tau_from_tokens_unknown
    part = acceptance(Counted(rounds=100, proposed=300, accepted=150, accepted_at=(), tokens=262, answers=22))
    assert "This τ is not known in process: " in shown(part, in_process=found, problems=[])


def test_what_was_not_measured_is_said() -> None:
    text = shown(not_measured("the server offers averages only"), in_process=None, problems=["benchmark math: oh"])
    assert "no evaluation of this recipe" in text
    assert "math: the server offers averages only." in text
    assert "benchmark math: oh" in text


def test_what_is_wrong_is_said_once() -> None:
    problems = [f"benchmark {name}: counters were reset. Measure again." for name in ("math", "chat")]
    text = shown(not_measured("counters were reset."), in_process=None, problems=problems)
    assert text.count("counters were reset") == 2


def test_a_place_that_cannot_be_written_to_is_refused_first(tmp_path: Path) -> None:
    check_out(None)
    check_out(tmp_path / "new.json")
    for out in (tmp_path, tmp_path / "no" / "file.json"):
        with refused(RecipeError, where=f"--out {out}"):
            check_out(out)
