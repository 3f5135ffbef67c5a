"""Acceptance from two readings of counters, and how they are read."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tenacity.nap

from deepspec.errors import DataError, MeasurementError, TransientError
from deepspec.evaluation.metrics import RoundTable, summary
from deepspec.evaluation.server.counters import (
    Counted,
    Reading,
    ServerMetrics,
    acceptance,
    difference,
    idle_reading,
    not_measured,
    parse,
)
from tests.fixtures.refused import refused

# As a server of vLLM with two engines shows it, shortened.
VLLM = """\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.7e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 0.0
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="tiny"} 100.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="tiny"} 50.0
# HELP vllm:spec_decode_num_drafts_created Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_created gauge
vllm:spec_decode_num_drafts_created{engine="0",model_name="tiny"} 1.7e+09
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="tiny"} 300.0
vllm:spec_decode_num_draft_tokens_total{engine="1",model_name="tiny"} 150.0
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="tiny"} 90.0
vllm:spec_decode_num_accepted_tokens_total{engine="1",model_name="tiny"} 10.0
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="tiny",position="0"} 60.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="tiny",position="1"} 20.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="tiny",position="2"} 10.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",model_name="tiny",position="0"} 10.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="tiny"} 1000.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 8.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 2.0
"""

SGLANG = """\
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{engine_type="unified",model_name="tiny"} 500.0
# TYPE sglang:num_requests_total counter
sglang:num_requests_total{engine_type="unified",model_name="tiny"} 20.0
# TYPE sglang:spec_accept_length gauge
sglang:spec_accept_length{engine_type="unified",model_name="tiny"} 3.5
"""
SGLANG_CALLS = """\
# TYPE sglang:spec_verify_calls_total counter
sglang:spec_verify_calls_total{engine_type="unified",model_name="tiny"} 200.0
"""


def after(reading: Reading, **moved: int) -> Reading:
    counts = {name: count + moved.get(name, 0) for name, count in reading.counts.items()}
    return Reading(counts, reading.started, reading.reason)


def test_engines_are_summed_and_gauges_left_out() -> None:
    reading = parse(VLLM)
    assert reading.counts == {
        "rounds": 150,
        "proposed": 450,
        "accepted": 100,
        "accepted_at_0": 70,
        "accepted_at_1": 20,
        "accepted_at_2": 10,
        "tokens": 1000,
        "answers": 10,
    }
    assert reading.reason is None


def test_names_with_and_without_total_are_the_same() -> None:
    older = VLLM.replace("_total{", "{").replace("_total counter", " counter").replace("_total ", " ")
    untyped = "\n".join(line for line in older.splitlines() if not line.startswith("#")) + "\n"
    assert parse(older).counts == parse(untyped).counts == parse(VLLM).counts


def test_acceptance_is_that_of_the_difference() -> None:
    before = parse(VLLM)
    moved = {"rounds": 4, "proposed": 12, "accepted": 6, "accepted_at_0": 3, "accepted_at_1": 2, "accepted_at_2": 1}
    found = acceptance(difference(before, after(before, **moved, tokens=12, answers=2)))
    # The same four rounds, as evaluation in process has them.
    rounds = RoundTable.of([[(3, 3, 4), (3, 2, 3)], [(3, 1, 2), (3, 0, 1)]])
    expected = summary(rounds, 3)
    for name in (
        "tau",
        "prefix_acceptance",
        "prefix_trials",
        "conditional_acceptance",
        "conditional_trials",
        "verify_rate",
        "mean_proposed",
        "rounds",
    ):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.tau == 2.5
    assert found.tau != acceptance(difference(Reading({}), before)).tau  # counted from the server's start
    assert (found.tau_from_tokens, found.tau_ci95, found.not_measured) == (2.5, None, None)


def test_what_follows_an_answers_end_is_told_by_the_tokens() -> None:
    # Five rounds accept three each; the last one's first token ended the answer, and the engine counted on.
    counted = Counted(rounds=5, proposed=15, accepted=15, accepted_at=(5, 5, 5), tokens=1 + 4 * 4 + 1, answers=1)
    found = acceptance(counted)
    in_process = (4 * 4 + 1) / 5
    assert found.tau_from_tokens == in_process < found.tau == 4


def test_sglang_counts_rounds_tokens_and_answers() -> None:
    before = parse(SGLANG + SGLANG_CALLS)
    found = acceptance(difference(before, after(before, rounds=10, tokens=26, answers=1)))
    assert found.tau == found.tau_from_tokens == 2.5
    assert found.prefix_acceptance == found.conditional_acceptance == ()
    assert found.mean_proposed is found.verify_rate is None


def test_averages_are_no_measurement() -> None:
    reading = parse(SGLANG)
    assert reading.reason is not None
    assert "averages" in reading.reason
    found = not_measured(reading.reason)
    assert found.tau is found.rounds is None
    assert found.to_json().keys() == acceptance(Counted(1, 3, 2, (1, 1, 0), 4, 1)).to_json().keys()


def test_a_server_without_speculation_says_why_there_is_nothing() -> None:
    plain = parse("# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total 5.0\n")
    assert plain.reason is not None
    assert "without a draft" in plain.reason
    declared = parse("# TYPE sglang:spec_verify_calls_total counter\n")  # SGLang always declares it
    assert declared.reason is None
    found = acceptance(difference(declared, declared))
    assert found.not_measured == "the server counted no round of speculative decoding"


def test_a_counter_that_appears_stood_at_zero() -> None:
    before, then = parse(SGLANG), parse(SGLANG + SGLANG_CALLS)
    assert difference(before, then).rounds == 200


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("vllm:spec_decode_num_drafts_total{engine=", "vllm:forgotten_total{engine=", "rounds"),
        ('num_drafts_total{engine="0",model_name="tiny"} 100.0', 'num_drafts_total{engine="0"} 49.0', "rounds"),
        ("process_start_time_seconds 1.7e+09", "process_start_time_seconds 1.8e+09", "process_start_time_seconds"),
        ('created{engine="0",model_name="tiny"} 1.7e', 'created{engine="0",model_name="tiny"} 1.8e', "drafts_created"),
    ],
)
def test_counters_that_began_anew_are_refused(old: str, new: str, word: str) -> None:
    assert old in VLLM
    with refused(MeasurementError, "counters", word, "restarted"):
        difference(parse(VLLM), parse(VLLM.replace(old, new)))


@pytest.mark.parametrize("text", ["<html>hello</html>", '{"a": 3}', VLLM.replace(" 50.0", " NaN")])
def test_what_are_no_metrics_is_refused(text: str) -> None:
    with refused(DataError, "Prometheus"):
        parse(text)


def test_readings_are_taken_once_counters_stand_still() -> None:
    readings: Iterator[Reading] = iter([Reading({"rounds": n}) for n in (1, 2, 2)])
    assert idle_reading(lambda: next(readings), idle_seconds=0.001, limit_seconds=5).counts == {"rounds": 2}
    with pytest.raises(StopIteration):
        next(readings)


def test_counters_that_move_by_themselves_are_somebody_elses() -> None:
    number = iter(range(1000))
    with refused(MeasurementError, "(rounds)", "change"):
        idle_reading(lambda: Reading({"rounds": next(number)}), idle_seconds=0.001, limit_seconds=0.01)


@contextmanager
def serving(*answers: tuple[int, str]) -> Iterator[str]:
    """A server whose /metrics gives these answers in turn, the last of them for ever."""
    left = list(answers)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)


@pytest.mark.usefixtures("impatient")
def test_a_lost_answer_ends_no_measurement() -> None:
    with serving((503, ""), (500, ""), (200, VLLM)) as url, ServerMetrics(url) as metrics:
        assert metrics.read() == parse(VLLM)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_goes_on_failing_is_named() -> None:
    with serving((503, "")) as url, ServerMetrics(url) as metrics, refused(TransientError, "HTTP 503", where=url):
        metrics.read()
