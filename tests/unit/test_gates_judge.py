"""The gates: a test per branch, for a gate that reads inverted would promote every bad draft."""

import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from deepspec.errors import ArtifactError
from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.compare.drafts import gain
from deepspec.evaluation.results import DifferingAnswer, Evaluation, GateResult, LosslessProbe, MeanResult
from deepspec.gates.config import Config
from deepspec.gates.evidence import Evidence, Served
from deepspec.gates.judge import GATES, judge
from deepspec.gates.looks import error_of
from deepspec.gates.verdict import Reason, Verdict
from tests.fixtures import results
from tests.fixtures.refused import refused
from tests.fixtures.verdicts import IDS, evidence, judged

PLAIN = Config()
A, B = "a" * 64, "b" * 64


def answer(verdict: Verdict, gate: str) -> Reason | None:
    return next((reason for reason in verdict.reasons if reason.gate == gate), None)


def asked(config: Config = PLAIN, champion: float | None = None, **parts: Any) -> Verdict:
    digest = None if champion is None else B
    return judge(evidence(4.0, champion, **parts), config, champion_digest=digest)


def noisy(
    challenger: Mapping[str, tuple[int, int]], champion: Mapping[str, tuple[int, int]], look: int = 1
) -> Evidence:
    """Evidence with these counts on the gate split."""
    sides = [
        results.gate(sum(one for one, _ in counts.values()) / sum(many for _, many in counts.values())).model_copy(
            update={"per_prompt": dict(counts)}
        )
        for counts in (challenger, champion)
    ]
    return replace(evidence(4.0, look=look), challenger=sides[0], champion=sides[1])


def test_without_a_champion_a_sound_challenger_passes() -> None:
    verdict = judged(1.5, challenger_digest=A)
    assert verdict.accepted
    assert (verdict.challenger, verdict.champion) == (A, None)
    assert (verdict.look, verdict.alpha) == (None, None)
    found = answer(verdict, "tau_gain")
    assert found is not None
    assert (found.passed, found.measured, found.required) == (True, 1.5, None)


@pytest.mark.parametrize(
    ("challenger", "champion", "margin", "accepted"),
    [
        (4.2, 4.1, 0.0, True),  # better
        (4.1, 4.1, 0.0, False),  # a tie refuses
        (4.0, 4.1, 0.0, False),  # worse
        (4.2, 4.1, 0.2, False),  # better, within the margin
        (4.4, 4.1, 0.2, True),  # better by more than the margin
        (5.2, 5.1, 0.1, False),  # exactly the margin: 5.2 - 5.1 is above 0.1 in floating point, and yet a tie
        (5.1, 5.0, 0.1, False),  # exactly the margin, rounded to the other side
        (4.101, 4.1, 0.0, True),  # better by little, and on every prompt, is better
    ],
)
def test_a_champion_must_be_beaten_by_more_than_the_margin(
    challenger: float, champion: float, margin: float, *, accepted: bool
) -> None:
    verdict = judged(challenger, champion, Config(min_tau_gain=margin), challenger_digest=A, champion_digest=B)
    assert verdict.accepted is accepted
    assert verdict.champion == B
    found = answer(verdict, "tau_gain")
    assert found is not None
    assert found.measured == pytest.approx(challenger - champion)
    assert found.required == margin
    assert f"{challenger:.3f}" in found.sentence
    assert f"{champion:.3f}" in found.sentence


CHAMPION = dict.fromkeys(IDS, (100, 40))
BETTER = {name: (100 + more, 40) for name, more in zip(IDS, (1, 30, -6, 4, 18, 0, 26, -2), strict=True)}
"""By 0.22 on average, and on some prompts worse."""


def test_a_gain_that_may_be_luck_is_refused_and_the_more_surely_it_has_to_be_there_the_sooner() -> None:
    found = gain(BETTER, CHAMPION)
    assert found is not None
    for confidence, passes in ((0.5, True), (0.9, False), (0.95, False)):
        verdict = judge(noisy(BETTER, CHAMPION), Config(confidence=confidence), champion_digest=B)
        assert verdict.accepted is passes
        reason = answer(verdict, "tau_gain")
        assert reason is not None
        assert reason.measured == pytest.approx(found.at_least(1 - error_of(1, confidence)))
        assert (reason.measured > 0) is passes


def test_a_later_look_has_to_be_surer() -> None:
    config = Config(confidence=0.8)
    bounds = []
    for look in (1, 2, 5):
        verdict = judge(noisy(BETTER, CHAMPION, look), config, champion_digest=B)
        reason = answer(verdict, "tau_gain")
        assert reason is not None
        assert (verdict.look, verdict.alpha) == (look, pytest.approx(0.2 / (look * (look + 1))))
        bounds.append((reason.measured, verdict.accepted))
    assert [accepted for _, accepted in bounds] == [True, False, False]
    assert bounds[0] > bounds[1] > bounds[2]


def test_all_looks_together_spend_no_more_than_alpha() -> None:
    assert sum(error_of(look, 0.95) for look in range(1, 10_000)) == pytest.approx(0.05, abs=1e-5)


def test_too_few_prompts_show_nothing() -> None:
    verdict = judge(evidence(9.0, 2.0, ids=IDS[:3]), PLAIN, champion_digest=B)
    found = answer(verdict, "tau_gain")
    assert found is not None
    assert (found.passed, found.measured) == (False, None)
    assert verdict.detectable is not None
    assert verdict.detectable.gain is None


@pytest.mark.parametrize(("tau", "accepted"), [(3.1, True), (3.0, True), (2.9, False)])
def test_the_floor_holds_without_a_champion(tau: float, *, accepted: bool) -> None:
    verdict = judged(tau, config=Config(min_tau=3.0))
    assert verdict.accepted is accepted
    found = answer(verdict, "tau_floor")
    assert found is not None
    assert (found.passed, found.required) == (accepted, 3.0)


def test_one_refusing_gate_refuses() -> None:
    better_but_low = judged(2.5, 2.0, Config(min_tau=3.0), champion_digest=B)
    high_but_worse = judged(3.5, 4.0, Config(min_tau=3.0), champion_digest=B)
    assert not better_but_low.accepted
    assert not high_but_worse.accepted
    assert [reason.gate for reason in better_but_low.reasons if not reason.passed] == ["tau_floor"]
    assert [reason.gate for reason in high_but_worse.reasons if not reason.passed] == ["tau_gain"]
    assert "floor" in better_but_low.sentence
    assert "floor" not in high_but_worse.sentence


@pytest.mark.parametrize(
    ("floors", "passes"),
    [({"arithmetic": 3.9}, True), ({"arithmetic": 4.0}, True), ({"arithmetic": 4.1}, False), ({"code": 1.0}, False)],
)
def test_each_benchmark_has_its_floor_and_one_that_was_not_measured_is_below_it(
    floors: dict[str, float], *, passes: bool
) -> None:
    found = answer(asked(Config(min_benchmark_tau=floors)), "benchmark_floors")
    assert found is not None
    assert found.passed is passes
    assert next(iter(floors)) in found.sentence or passes
    assert answer(asked(), "benchmark_floors") is None


def counts(tau: float, num_prompts: int = 8) -> dict[str, tuple[int, int]]:
    """Prompts that differ a little."""
    return {f"q{place}": (round(100 * tau) + place % 3, 100) for place in range(num_prompts)}


@pytest.mark.parametrize(
    ("code", "num_prompts", "passes", "said"),
    [
        (3.0, 8, True, "No domain"),  # equal
        (2.95, 8, True, "No domain"),  # worse within what may be
        (2.5, 8, False, "code is worse"),
        (2.5, 1, True, "Too few prompts to see whether code"),
    ],
)
def test_no_domain_may_be_clearly_worse(code: float, num_prompts: int, said: str, *, passes: bool) -> None:
    parts = {
        "domains": {"math": ["arithmetic"], "code": ["python"]},
        "benchmarks": {"arithmetic": counts(3.4), "python": counts(code, num_prompts)},
        "champion_benchmarks": {"arithmetic": counts(3.0), "python": counts(3.0, num_prompts)},
    }
    found = answer(asked(champion=3.0, **parts), "domains")
    assert found is not None
    assert found.passed is passes
    assert said in found.sentence
    assert answer(asked(Config(max_domain_loss=None), champion=3.0, **parts), "domains") is None
    assert answer(asked(**parts), "domains") is None  # there is nobody to be worse than
    assert answer(asked(champion=3.0), "domains") is None


@pytest.mark.parametrize(
    ("interval", "passes"), [((1.01, 1.4), True), ((1.0, 1.4), False), ((0.4, 0.6), False), (None, False)]
)
def test_a_draft_must_be_faster_than_none_surely(interval: tuple[float, float] | None, *, passes: bool) -> None:
    measured = Evaluation(benchmarks={}, macro=MeanResult(tau=2.0, speedup=1.2, speedup_ci95=interval))
    for config, expected in ((PLAIN, passes), (Config(min_speedup=0.3), interval is not None)):
        found = answer(asked(config, evaluation=measured), "speed")
        assert found is not None
        assert found.passed is expected
    assert answer(asked(Config(min_speedup=None), evaluation=measured), "speed") is None
    found = answer(asked(evaluation=None), "speed")
    assert found is not None
    assert not found.passed


@pytest.mark.parametrize(
    ("calibration", "passes"),
    [
        (CalibrationResult(applicable=True, mean_ece_after=0.15), True),
        (CalibrationResult(applicable=True, mean_ece_after=0.16), False),
        (CalibrationResult(applicable=True), False),  # not measured
        (None, False),
        (CalibrationResult(applicable=False, reason="It has no confidence head."), None),
    ],
)
def test_confidences_mean_what_they_say(calibration: CalibrationResult | None, passes: bool | None) -> None:
    found = answer(asked(calibration=calibration), "calibration")
    assert (None if found is None else found.passed) is passes
    assert answer(asked(Config(max_calibration_error=None), calibration=calibration), "calibration") is None


def probed(probe: LosslessProbe | None) -> Evaluation:
    return Evaluation(benchmarks={"chat": results.benchmark(2.0)}, lossless=probe)


@pytest.mark.parametrize(
    ("probe", "passes"),
    [
        (LosslessProbe(answers=6, ties=0, differing=()), True),
        (LosslessProbe(answers=6, ties=2, differing=()), True),
        (
            LosslessProbe(answers=6, ties=0, differing=(DifferingAnswer(prompt="p", token=3, gap=1.0, is_tie=False),)),
            False,
        ),
        (LosslessProbe(answers=0, ties=0, differing=()), False),
        (None, False),
    ],
)
def test_answers_are_equal_with_and_without_the_draft(probe: LosslessProbe | None, *, passes: bool) -> None:
    found = answer(asked(evaluation=probed(probe)), "lossless")
    assert found is not None
    assert found.passed is passes
    assert answer(asked(evaluation=Evaluation(benchmarks={})), "lossless") is None


@pytest.mark.parametrize(("flaws", "passes"), [((), True), (("tensor x is missing.",), False), (None, False)])
def test_engines_can_load_it(flaws: tuple[str, ...] | None, *, passes: bool) -> None:
    found = answer(asked(flaws=flaws), "servable")
    assert found is not None
    assert found.passed is passes
    assert not flaws or flaws[0] in found.sentence
    assert answer(asked(Config(servable=False), flaws=flaws), "servable") is None


def test_engines_that_nothing_would_ask_are_refused() -> None:
    with pytest.raises(ValueError, match="servable"):
        Config(servable=False, engines=("vllm",))


def test_the_recipes_server_has_to_serve_it_as_measured() -> None:
    url = "http://staging:8100"
    well = Served(passed=True, sentence="It does.", rounds=40, expected=40)
    badly = Served(passed=False, sentence="It takes 46 rounds.", rounds=46, expected=40)
    away = Served(passed=False, sentence="It does not answer.")
    for found, passed, counts in (
        (well, True, (40.0, 40.0)),
        (badly, False, (46.0, 40.0)),
        (away, False, (None, None)),
    ):
        reason = answer(asked(Config(endpoint=url), served=found), "served")
        assert reason is not None
        assert (reason.passed, reason.sentence, (reason.measured, reason.required)) == (passed, found.sentence, counts)
    unasked = answer(asked(Config(endpoint=url)), "served")
    assert unasked is not None
    assert not unasked.passed
    assert answer(asked(served=badly), "served") is None


@pytest.mark.parametrize("url", ["staging:8100", "http://user:secret@staging", "http://staging/?key=secret"])
def test_a_gates_endpoint_is_a_plain_url(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as caught:
        Config(endpoint=url)
    assert "it is no http" in str(caught.value) or "DEEPSPEC_ENDPOINT_API_KEY" in str(caught.value)
    assert Config(endpoint="http://staging:8100/v1/").endpoint == "http://staging:8100"


@pytest.mark.parametrize("tau", [None, float("nan"), float("inf"), 0.5])
def test_an_unusable_measurement_is_an_error_not_an_answer(tau: float | None) -> None:
    unusable = results.gate(tau, IDS)
    with refused(ArtifactError, "challenger", where="gate.tau"):
        judge(replace(evidence(4.0), challenger=unusable), PLAIN)
    with refused(ArtifactError, "champion", where="gate.tau"):
        judge(replace(evidence(4.0), champion=unusable), PLAIN, champion_digest=B)


@pytest.mark.parametrize("tau", ["4.2", True, [4.2], {}])
def test_what_is_no_number_is_not_read_as_one(tau: object) -> None:
    measured = results.gate(4.2)
    content = measured.to_json()
    assert GateResult.from_json(content, where="evaluate/1") == measured
    with refused(ArtifactError, "at tau", where="evaluate/1"):
        GateResult.from_json({**content, "tau": tau}, where="evaluate/1")
    del content["tau"]
    with refused(ArtifactError, "at tau", where="evaluate/1"):
        GateResult.from_json(content, where="evaluate/1")


def test_measurements_on_different_prompts_are_not_compared() -> None:
    ours, theirs = results.gate(4.0, ("p1", "p2")), results.gate(3.0, ("p2", "p3", "p4"))
    with refused(ArtifactError, "1 in common, 1 ", "2 only", where="gate.per_prompt"):
        judge(replace(evidence(4.0), challenger=ours, champion=theirs), PLAIN, champion_digest=B)


@pytest.mark.parametrize(("champion", "digest"), [(None, B), (3.0, None)])
def test_a_verdict_is_bound_to_the_champion_it_was_measured_against(champion: float | None, digest: str | None) -> None:
    with pytest.raises(ValueError, match="together"):
        judged(4.0, champion, champion_digest=digest)


def test_both_drafts_stand_side_by_side_in_the_verdict() -> None:
    parts = {"benchmarks": {"code": counts(3.5)}, "champion_benchmarks": {"code": counts(3.0)}}
    gate, code = asked(champion=3.0, **parts).comparison
    assert (gate.name, gate.prompts, gate.challenger, gate.champion) == ("gate", 8, 4.0, 3.0)
    assert (gate.difference, gate.ci95) == (1.0, (1.0, 1.0))
    assert (code.name, code.difference) == ("code", pytest.approx(0.5))
    alone, _ = asked(**parts | {"champion_benchmarks": {}}).comparison
    assert (alone.champion, alone.difference, alone.ci95) == (None, None, None)


def test_a_verdict_survives_json_and_pickle() -> None:
    verdict = judged(2.5, 2.0, Config(min_tau=3.0), challenger_digest=A, champion_digest=B)
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert pickle.loads(pickle.dumps(verdict)) == verdict  # noqa: S301  our own bytes


def test_a_verdict_of_an_earlier_version_has_nothing_to_compare() -> None:
    reason = {"gate": "tau_gain", "passed": True, "measured": 4.2, "required": 4.1, "sentence": "τ exceeds."}
    verdict = Verdict.from_json({"accepted": True, "reasons": [reason], "challenger": A, "champion": B})
    assert (verdict.comparison, verdict.look, verdict.limits) == ((), None, None)


@pytest.mark.parametrize(
    "change", [{"accepted": True}, {"reasons": []}, {"reasons": [{"gate": "tau_gain"}]}, {"accepted": "perhaps"}]
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    record = judged(2.0, 2.5, champion_digest=B).to_json() | change
    with refused(ArtifactError, "verdict", where="gate/verdict.json"):
        Verdict.from_json(record, where="gate/verdict.json")


@pytest.mark.parametrize(
    "fields",
    [
        {"min_tau_gain": -0.1},
        {"min_tau": 0.9},
        {"min_gain": 0.1},
        {"confidence": 1.0},
        {"confidence": 0.4},
        {"min_benchmark_tau": {"code": 0.5}},
        {"max_domain_loss": -0.1},
        {"max_calibration_error": 0.0},
    ],
)
def test_thresholds_are_validated(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(fields)


def test_every_gate_of_the_table_is_asked() -> None:
    everything = Config(min_tau=1.5, min_benchmark_tau={"arithmetic": 1.5}, endpoint="http://staging:8100")
    parts = {"domains": {"math": ["code"]}, "benchmarks": {"code": counts(3.5)}}
    verdict = asked(everything, champion=3.0, champion_benchmarks={"code": counts(3.0)}, **parts)
    assert [reason.gate for reason in verdict.reasons] == [gate.name for gate in GATES]


def test_a_verdict_of_a_newer_deepspec_is_refused() -> None:
    record = judged(2.0, challenger_digest=A).to_json()
    assert Verdict.from_json(record | {"format": 1}) == Verdict.from_json(record)
    with refused(ArtifactError, "verdict", "format 2", where="gate/1"):
        Verdict.from_json({"format": 2}, where="gate/1")


def test_prompts_that_a_draft_has_met_do_not_count() -> None:
    """Only the first prompt, which it has met, speaks for the challenger."""
    ours = {"p0": (90, 5), **dict.fromkeys(IDS[1:], (10, 5))}
    theirs = {"p0": (10, 5), **dict.fromkeys(IDS[1:], (20, 5))}
    assert judge(noisy(ours, theirs), Config(confidence=0.5), champion_digest=B).accepted is False
    verdict = judge(noisy(ours, theirs), PLAIN, champion_digest=B, seen={"p0", "p9"})
    found, fair = answer(verdict, "tau_gain"), answer(verdict, "unseen_prompts")
    assert found is not None
    assert fair is not None
    assert (found.passed, found.measured) == (False, -2.0)
    assert (fair.passed, fair.measured) == (True, 7)
    assert verdict.comparison[0].prompts == 7


@pytest.mark.parametrize(("seen", "missing"), [(set(IDS), None), (set(), "responses/0a1b")])
def test_without_a_prompt_that_is_known_to_be_new_nothing_is_judged(seen: set[str], missing: str | None) -> None:
    for champion, digest in ((1.0, B), (None, None)):
        verdict = judged(9.0, champion, champion_digest=digest, seen=seen, missing=missing)
        assert not verdict.accepted
        assert [reason.gate for reason in verdict.reasons] == ["unseen_prompts"]
        assert missing is None or missing in verdict.sentence


def test_a_verdict_says_what_its_prompts_can_show_and_warns_where_that_is_less_than_is_wanted() -> None:
    verdict = judge(noisy(BETTER, CHAMPION), Config(wanted_tau_gain=0.01), champion_digest=B)
    assert verdict.detectable is not None
    assert verdict.limits is not None
    assert verdict.limits.startswith(f"8 prompts can show a gain of {verdict.detectable.gain:.2f} τ; 500 of")
    assert "evaluate.num_gate_prompts" in verdict.limits
    content = judge(noisy(BETTER, CHAMPION), Config(wanted_tau_gain=50.0), champion_digest=B)
    assert "num_gate_prompts" not in str(content.limits)
