"""What is read of logs and counters, what an alarm means, and what is remembered.

Replies are those of vLLM 0.32.0 (tests/fixtures/engines/replies.json), or made like SGLang 0.5.23's `meta_info`.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepspec.errors import ArtifactError, BadArgument
from deepspec.evaluation.server.counters import Reading
from deepspec.monitoring import memory as memories
from deepspec.monitoring.causes import Change, causes, mix_share
from deepspec.monitoring.counted import LEAST_ROUNDS, RESTARTED, Counters, stretch
from deepspec.monitoring.log import LogReader
from deepspec.monitoring.memory import Memory
from deepspec.monitoring.references import Registered
from deepspec.monitoring.served import NO_ROUNDS, NOT_SAID, UNFINISHED, Says, ServedAnswer, served_answer
from deepspec.monitoring.streams import ALL_TRAFFIC, PILOT, Finding
from deepspec.monitoring.sums import Parts, Sums
from deepspec.monitoring.watch import ANOTHER_TARGET, CLOCK, Watch
from deepspec.store import open_store
from tests.fixtures.refused import refused
from tests.fixtures.simulated_traffic import answers, tilt_for

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "engines" / "replies.json").read_text())
NOW = 1_800_000_000.0
ENGINE = Says(target="target", engine="vllm 0.32.0")


def memory() -> Memory:
    return Memory(model="demo", draft="ab" * 32, version="3")


def sglang(tokens: int, histogram: Sequence[int], reason: str = "stop") -> dict[str, Any]:
    rounds, accepted = sum(histogram), sum(at * count for at, count in enumerate(histogram))
    return {
        "text": "…",
        "meta_info": {
            "finish_reason": {"type": reason},
            "completion_tokens": tokens,
            "spec_verify_ct": rounds,
            "spec_num_proposed_drafts": 7 * rounds,
            "spec_num_correct_drafts": accepted,
            "spec_correct_drafts_histogram": list(histogram),
        },
    }


def write(file: Path, rows: Sequence[object]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def serve(watch: Watch, windows: int, *, tilt: float = 0.0, says: Says = ENGINE, label: str | None = None) -> None:
    """Answers with so many windows."""
    draws = np.random.default_rng(windows)
    for tokens, rounds in answers(draws, 1, 93 * windows, tilt).astype(int):
        watch.take(ServedAnswer(int(tokens), int(rounds), label, NOW, says))


def finding(**fields: Any) -> Finding:
    known: dict[str, Any] = {
        "stream": ALL_TRAFFIC,
        "against": "burn_in",
        "window": 40,
        "since": 35,
        "tau": 3.0,
        "tau_ci95": (2.9, 3.1),
        "reference": 4.0,
        "reference_ci95": (3.9, 4.1),
        "parts": {},
        "reference_parts": {},
    }
    return Finding(**(known | fields))


def parts(**sums: tuple[int, int]) -> Parts:
    return {name: Sums.of([pair]) for name, pair in sums.items()}


@pytest.mark.parametrize("recorded", RECORDED, ids=range(len(RECORDED)))
def test_an_answer_of_a_log_has_the_rounds_that_it_has_in_process(recorded: dict[str, Any]) -> None:
    found = served_answer({"request": {"metadata": {"domain": "math"}}, "response": recorded["reply"]})
    assert isinstance(found, ServedAnswer)
    assert found.rounds == len(recorded["rounds"])
    assert found.tokens == sum(committed for _, _, committed in recorded["rounds"])
    assert (found.label, found.says.target) == ("math", "target")
    assert str(found.says.engine).startswith("vllm-0.32.0")
    assert found.time == recorded["reply"]["created"]


def test_rows_of_sglang_and_json_in_a_text_are_read() -> None:
    found = served_answer({"response": json.dumps(sglang(25, [2, 0, 0, 6])), "domain": "code", "time": "2026-12-01"})
    assert isinstance(found, ServedAnswer)
    assert (found.tokens, found.rounds, found.label) == (24, 8, "code")
    cut = served_answer(sglang(25, [2, 0, 0, 6], "length"))
    assert isinstance(cut, ServedAnswer)
    assert cut.tokens == 26  # as it was counted: how much of it was thrown away is not known


def test_rows_without_acceptance_say_why() -> None:
    plain = copy.deepcopy(RECORDED[0]["reply"])
    plain["metrics"] = None
    aborted = copy.deepcopy(RECORDED[0]["reply"])
    aborted["choices"][0]["finish_reason"] = "abort"
    assert served_answer(plain) == NOT_SAID
    assert served_answer(aborted) == UNFINISHED
    assert served_answer(sglang(1, [0])) == NO_ROUNDS
    assert "no reply" in str(served_answer({"messages": []}))


def test_a_log_is_read_once_and_only_whole_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "log.jsonl", [RECORDED[0]["reply"]])
    whole = json.dumps(RECORDED[1]["reply"]) + "\n"
    with file.open("a") as log:
        log.write(whole[:200])
    reader = LogReader(file, None)
    assert len(list(reader.answers())) == 1
    assert any("no end yet" in sentence for sentence in reader.said)
    with file.open("a") as log:
        log.write(whole[200:] + "no JSON\n")
    again = LogReader(file, reader.position)
    assert len(list(again.answers())) == 1
    assert (again.rows, sum(again.refused.values())) == (2, 1)
    assert list(LogReader(file, again.position).answers()) == []


def test_a_log_that_began_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    file = write(tmp_path / "log.jsonl", [one["reply"] for one in RECORDED[:3]])
    first = LogReader(file, None)
    assert len(list(first.answers())) == 3
    write(file, [RECORDED[4]["reply"]])
    second = LogReader(file, first.position)
    assert len(list(second.answers())) == 1
    assert any("another one" in sentence for sentence in second.said)


def test_logs_with_nothing_in_them_say_so(tmp_path: Path) -> None:
    watch = Watch(memory(), now=NOW)
    (tmp_path / "empty").touch()
    watch.read_log(tmp_path / "empty")
    assert any("empty" in sentence for sentence in watch.report().said)
    watch.read_log(write(tmp_path / "other", [{"messages": []}] * 4))
    report = watch.report()
    assert (report.rows, report.answers, sum(report.not_counted.values())) == (4, 0, 4)
    assert any("None of 4" in sentence for sentence in report.said)
    with refused(BadArgument, "log", where="--log"):
        watch.read_log(tmp_path / "missing")


def test_counters_are_differences_and_a_restart_is_none() -> None:
    def reading(rounds: int, tokens: int, answered: int, since: float = 1.0) -> Reading:
        return Reading({"rounds": rounds, "tokens": tokens, "answers": answered}, {"process_start_time_seconds": since})

    first = stretch("http://a", None, reading(5000, 20_000, 400))
    assert (first.rounds, first.counters is None) == (None, False)
    few = stretch("http://a", first.counters, reading(5000 + LEAST_ROUNDS - 1, 20_300, 401))
    assert (few.rounds, few.counters) == (None, first.counters)
    enough = stretch("http://a", few.counters, reading(5200, 20_810, 410))
    assert (enough.rounds, enough.tokens) == (200, 800)
    restarted = stretch("http://a", enough.counters, reading(300, 1200, 10, since=2.0))
    assert (restarted.rounds, restarted.said) == (None, (RESTARTED,))
    assert stretch("http://a", restarted.counters, reading(500, 2010, 20, since=2.0)).tokens == 800
    without = stretch("http://a", enough.counters, Reading({}, reason="the server has no /metrics"))
    assert (without.rounds, without.counters) == (None, enough.counters)
    drafts = Counters(url="http://a", counts={"rounds": 0, "accepted": 0})
    assert stretch("http://a", drafts, Reading({"rounds": 100, "accepted": 150})).tokens == 250


def test_a_server_that_is_down_is_said_and_makes_no_alarm() -> None:
    watch = Watch(memory(), now=NOW)
    watch.look_at("http://127.0.0.1:1")
    report = watch.report()
    assert any("cannot be reached" in sentence for sentence in report.said)
    assert (report.alarms, report.answers) == ((), 0)


def test_another_targets_answers_are_not_counted(tmp_path: Path) -> None:
    watch = Watch(memory(), now=NOW)
    serve(watch, PILOT + 1)
    before = watch.report().streams[0].windows
    other = [json.loads(json.dumps(one["reply"]).replace('"target"', '"someone-elses"')) for one in RECORDED] * 60
    watch.read_log(write(tmp_path / "log", other))
    report = watch.report()
    assert (report.answers, report.not_counted[ANOTHER_TARGET]) == (0, len(other))
    assert any("--served-model" in sentence for sentence in report.said)
    assert (report.streams[0].windows, report.alarms) == (before, ())


def test_a_clock_that_jumps_is_said_and_its_answers_count() -> None:
    watch = Watch(memory(), now=NOW)
    for time in (NOW - 60, NOW - 90_000, NOW + 999_999, NOW - 30):
        watch.take(ServedAnswer(40, 10, None, time, ENGINE))
    report = watch.report()
    assert (report.answers, report.not_counted) == (4, {CLOCK: 2})
    assert watch.memory().clock == NOW - 30


@pytest.mark.parametrize(
    ("says", "name"),
    [
        (ENGINE, "unexplained"),
        (ENGINE.model_copy(update={"engine": "vllm 0.33.0"}), "engine"),
        (ENGINE.model_copy(update={"revision": "2"}), "target"),
    ],
)
def test_an_alarm_names_what_the_server_says_otherwise(says: Says, name: str) -> None:
    watch = Watch(memory(), now=NOW)
    serve(watch, 26, says=ENGINE.model_copy(update={"revision": "1"}))
    assert watch.report().alarms == ()
    serve(watch, 10, tilt=tilt_for(1, 0.2), says=says.model_copy(update={"revision": says.revision or "1"}))
    [alarm, *_] = watch.report().alarms
    assert alarm.causes[0].name == name
    assert alarm.advice


def test_a_draft_that_accepts_nothing_is_broken() -> None:
    found = causes(finding(tau=1.02), ())
    assert [cause.name for cause in found] == ["draft"]


def test_a_change_long_before_is_no_cause() -> None:
    changes = [Change(what="engine", before="1", after="2", windows={ALL_TRAFFIC: 20})]
    assert causes(finding(), changes)[0].name == "unexplained"
    assert causes(finding(since=22), changes)[0].name == "engine"


def test_traffic_that_moved_is_told_from_text_that_changed() -> None:
    before = parts(math=(500, 100), chat=(200, 100))
    moved, changed = parts(math=(250, 50), chat=(300, 150)), parts(math=(350, 100), chat=(150, 100))
    assert mix_share(before, moved) == pytest.approx(1.0)
    assert mix_share(before, changed) == pytest.approx(0.0)
    assert mix_share(before, before) is None
    assert causes(finding(parts=moved, reference_parts=before), ())[0].name == "traffic"
    assert causes(finding(parts=changed, reference_parts=before), ())[0].name == "unexplained"


def test_without_labels_it_says_all_traffic() -> None:
    watch = Watch(memory(), now=NOW)
    serve(watch, 2)
    report = watch.report()
    assert [stream.name for stream in report.streams] == [ALL_TRAFFIC]
    assert report.streams[0].tau_ci95 is not None
    serve(watch, 2, label="code")
    assert [stream.name for stream in watch.report().streams] == [ALL_TRAFFIC, "code"]


def test_what_is_remembered_is_read_back(tmp_path: Path) -> None:
    backend = open_store(str(tmp_path / "store")).backend
    assert memories.read(backend, "demo", "ab" * 32) is None
    watch = Watch(memory(), now=NOW)
    serve(watch, 24)
    serve(watch, 8, tilt=tilt_for(1, 0.3))
    memories.write(backend, watch.memory())
    found = memories.read(backend, "demo", "ab" * 32)
    assert found is not None
    assert found == watch.memory()
    assert found.alarms
    assert found.registered == Registered()
    [path] = backend.list("monitor")
    assert path == f"monitor/demo/{'ab' * 8}.json"
    file = tmp_path / "store" / path
    file.write_bytes(file.read_bytes().replace(b'"demo"', b'"dem0"'))
    with refused(ArtifactError, "damaged", where=path):
        memories.read(backend, "demo", "ab" * 32)
