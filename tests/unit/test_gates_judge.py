"""The gates: a test per branch, for a gate that reads inverted would promote every bad draft."""

import pickle

import pytest
from pydantic import ValidationError

from deepspec.errors import ArtifactError
from deepspec.evaluation.results import GateResult
from deepspec.gates import GATES, Config, Verdict, judge
from tests.fixtures import results
from tests.fixtures.refused import refused

PLAIN = Config()
A, B = "a" * 64, "b" * 64


def measured(tau: float | None, prompts: tuple[str, ...] = ("p1", "p2")) -> GateResult:
    return results.gate(tau, prompts)


def test_without_a_champion_any_challenger_passes() -> None:
    verdict = judge(measured(1.0), None, PLAIN, challenger_digest=A)
    assert verdict.accepted
    assert (verdict.challenger, verdict.champion) == (A, None)
    assert [(r.gate, r.passed, r.measured, r.required) for r in verdict.reasons] == [("tau_gain", True, 1.0, None)]


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
        (4.1 + 1e-6, 4.1, 0.0, True),  # better by little is better
    ],
)
def test_a_champion_must_be_beaten_by_more_than_the_margin(
    challenger: float, champion: float, margin: float, *, accepted: bool
) -> None:
    verdict = judge(
        measured(challenger), measured(champion), Config(min_tau_gain=margin), challenger_digest=A, champion_digest=B
    )
    assert verdict.accepted is accepted
    assert verdict.champion == B
    (reason,) = verdict.reasons
    assert reason.measured == challenger
    assert reason.required == pytest.approx(champion + margin)
    assert f"{challenger:.3f}" in reason.sentence
    assert f"{champion:.3f}" in reason.sentence
    assert ("does not exceed" in reason.sentence) is not accepted


@pytest.mark.parametrize(("tau", "accepted"), [(3.1, True), (3.0, True), (2.9, False)])
def test_the_floor_holds_without_a_champion(tau: float, *, accepted: bool) -> None:
    verdict = judge(measured(tau), None, Config(min_tau=3.0))
    assert verdict.accepted is accepted
    assert [(r.gate, r.passed) for r in verdict.reasons] == [("tau_gain", True), ("tau_floor", accepted)]
    assert verdict.reasons[1].required == 3.0


def test_one_refusing_gate_refuses() -> None:
    better_but_low = judge(measured(2.5), measured(2.0), Config(min_tau=3.0), champion_digest=B)
    high_but_worse = judge(measured(3.5), measured(4.0), Config(min_tau=3.0), champion_digest=B)
    assert [r.passed for r in better_but_low.reasons] == [True, False]
    assert [r.passed for r in high_but_worse.reasons] == [False, True]
    assert not better_but_low.accepted
    assert not high_but_worse.accepted
    assert better_but_low.sentence == "Refused: τ 2.500 is below the floor of 3."
    assert "floor" not in high_but_worse.sentence


def test_no_floor_asks_nothing() -> None:
    assert [r.gate for r in judge(measured(2.0), None, PLAIN).reasons] == ["tau_gain"]


@pytest.mark.parametrize("tau", [None, float("nan"), float("inf"), 0.5])
def test_an_unusable_measurement_is_an_error_not_an_answer(tau: float | None) -> None:
    with refused(ArtifactError, "challenger", where="gate.tau"):
        judge(measured(tau), None, PLAIN)
    with refused(ArtifactError, "champion", where="gate.tau"):
        judge(measured(4.0), measured(tau), PLAIN, champion_digest=B)


@pytest.mark.parametrize("tau", ["4.2", True, [4.2], {}])
def test_what_is_no_number_is_not_read_as_one(tau: object) -> None:
    content = measured(4.2).to_json()
    assert GateResult.from_json(content, where="evaluate/1") == measured(4.2)
    with refused(ArtifactError, "at tau", where="evaluate/1"):
        GateResult.from_json({**content, "tau": tau}, where="evaluate/1")
    del content["tau"]
    with refused(ArtifactError, "at tau", where="evaluate/1"):
        GateResult.from_json(content, where="evaluate/1")


def test_measurements_on_different_prompts_are_not_compared() -> None:
    with refused(ArtifactError, "1 in common, 1 ", "2 only", where="gate.per_prompt"):
        judge(measured(4.0), measured(3.0, ("p2", "p3", "p4")), PLAIN, champion_digest=B)


@pytest.mark.parametrize(("champion", "digest"), [(None, B), (measured(3.0), None)])
def test_a_verdict_is_bound_to_the_champion_it_was_measured_against(
    champion: GateResult | None, digest: str | None
) -> None:
    with pytest.raises(ValueError, match="together"):
        judge(measured(4.0), champion, PLAIN, champion_digest=digest)


def test_a_verdict_survives_json_and_pickle() -> None:
    verdict = judge(measured(2.5), measured(2.0), Config(min_tau=3.0), challenger_digest=A, champion_digest=B)
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert pickle.loads(pickle.dumps(verdict)) == verdict  # noqa: S301  our own bytes


@pytest.mark.parametrize(
    "change", [{"accepted": True}, {"reasons": []}, {"reasons": [{"gate": "tau_gain"}]}, {"accepted": "perhaps"}]
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    record = judge(measured(2.0), measured(2.5), PLAIN, champion_digest=B).to_json() | change
    with refused(ArtifactError, "verdict", where="gate/verdict.json"):
        Verdict.from_json(record, where="gate/verdict.json")


@pytest.mark.parametrize("fields", [{"min_tau_gain": -0.1}, {"min_tau": 0.9}, {"min_gain": 0.1}])
def test_thresholds_are_validated(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(fields)


def test_every_gate_of_the_table_is_asked() -> None:
    everything = Config(min_tau_gain=0.1, min_tau=1.5)
    assert len(judge(measured(4.0), measured(3.0), everything, champion_digest=B).reasons) == len(GATES)


def test_a_verdict_of_a_newer_deepspec_is_refused() -> None:
    record = judge(measured(2.0), None, PLAIN, challenger_digest=A).to_json()
    assert Verdict.from_json(record | {"format": 1}) == Verdict.from_json(record)
    with refused(ArtifactError, "verdict", "format 2", where="gate/1"):
        Verdict.from_json({"format": 2}, where="gate/1")


def test_prompts_that_a_draft_has_met_do_not_count() -> None:
    ours = measured(4.0).model_copy(update={"per_prompt": {"p1": (30, 5), "p2": (10, 5)}})
    theirs = measured(3.0).model_copy(update={"per_prompt": {"p1": (10, 5), "p2": (20, 5)}})
    assert judge(ours, theirs, PLAIN, challenger_digest=A, champion_digest=B).accepted
    verdict = judge(ours, theirs, PLAIN, challenger_digest=A, champion_digest=B, seen={"p1", "p9"})
    assert not verdict.accepted
    assert [(r.gate, r.passed, r.measured) for r in verdict.reasons] == [
        ("tau_gain", False, 2.0),
        ("unseen_prompts", True, 1),
    ]


@pytest.mark.parametrize(("seen", "missing"), [({"p1", "p2"}, None), (set(), "responses/0a1b")])
def test_without_a_prompt_that_is_known_to_be_new_nothing_is_judged(seen: set[str], missing: str | None) -> None:
    for champion, digest in ((measured(1.0), B), (None, None)):
        verdict = judge(measured(9.0), champion, PLAIN, champion_digest=digest, seen=seen, missing=missing)
        assert not verdict.accepted
        assert [reason.gate for reason in verdict.reasons] == ["unseen_prompts"]
        assert missing is None or missing in verdict.sentence
