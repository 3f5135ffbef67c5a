"""Acceptance by what replies say of their rounds.

`tests/fixtures/engines/replies.json` has replies of vLLM 0.32.0 on a CPU, started with
`--per-request-spec-decode-metrics detailed`, to greedy requests in fp32 with a trained Eagle3 draft; and the rounds
(proposed, accepted, committed) of our own decoding of the same prompts.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from deepspec.data.responses.reported_rounds import ReportedRounds, reported_rounds
from deepspec.data.responses.requests import GenerationResult
from deepspec.evaluation.metrics import RoundTable, summary
from deepspec.evaluation.server.replies import acceptance, answer_rounds

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "engines" / "replies.json").read_text())


def answer(reply: dict[str, Any], **fields: Any) -> GenerationResult:
    (choice,) = reply["choices"]
    reported = reported_rounds(reply, choice)
    return GenerationResult("1", tuple(choice["token_ids"]), choice["finish_reason"], reported=reported, **fields)


def with_sums(reply: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The reply with other numbers."""
    said = {**reply["metrics"]["speculative_decoding"], **fields}
    return {**reply, "metrics": {**reply["metrics"], "speculative_decoding": said}}


def as_sglang(reply: dict[str, Any]) -> dict[str, Any]:
    """The same numbers in SGLang's words (0.5.23, entrypoints/openai/protocol.SpecTokensDetails)."""
    said = reply["metrics"]["speculative_decoding"]
    details = {
        "spec_verify_ct": said["num_spec_steps"],
        "spec_num_proposed_drafts": said["num_draft_tokens"],
        "spec_num_correct_drafts": said["num_accepted_draft_tokens"],
        "spec_correct_drafts_histogram": said["acceptance_histogram"],
    }
    return {"choices": reply["choices"], "sglext": {"spec_tokens_details": details}}


def test_vllms_rounds_are_put_right_to_those_in_process() -> None:
    assert len(RECORDED) == 6
    for one in RECORDED:
        found = answer_rounds(answer(one["reply"]))
        assert found is not None
        assert (found.flaw, found.undrafted) == ("", 0)
        assert found.listed == tuple(map(tuple, one["rounds"]))


def test_acceptance_of_recorded_replies_is_that_in_process() -> None:
    answers = [[found] for one in RECORDED if (found := answer_rounds(answer(one["reply"])))]
    measured = acceptance(answers).acceptance
    expected = summary(RoundTable.of([[tuple(counts) for counts in one["rounds"]] for one in RECORDED]), 5)
    for name in ("tau", "tau_ci95", "prefix_acceptance", "prefix_trials", "conditional_acceptance", "rounds"):
        assert getattr(measured, name) == getattr(expected, name), name
    assert measured.tau_from_tokens == expected.tau
    assert measured.tau_from_tokens_ci95 == expected.tau_ci95
    assert (measured.tau_from_tokens_answers, measured.counted_by) == (6, "round")
    assert 1 + measured.accepted / measured.rounds > expected.tau  # what the engine itself would say


def test_sums_alone_give_the_same_tau_from_tokens() -> None:
    answers = [[found] for one in RECORDED if (found := answer_rounds(answer(as_sglang(one["reply"]))))]
    summed = acceptance(answers).acceptance
    listed = acceptance([[found] for one in RECORDED if (found := answer_rounds(answer(one["reply"])))]).acceptance
    assert summed.counted_by == "answer"
    for name in ("tau_from_tokens", "tau_from_tokens_ci95", "rounds", "proposed", "accepted"):
        assert getattr(summed, name) == getattr(listed, name), name
    assert summed.tau == 1 + summed.accepted / summed.rounds


def test_answers_that_were_cut_off_do_not_count_for_tau_from_tokens() -> None:
    stopped, cut = (answer_rounds(answer(one["reply"])) for one in RECORDED[:2])
    reply = RECORDED[1]["reply"]
    (choice,) = reply["choices"]
    cut = answer_rounds(answer({**reply, "choices": [{**choice, "finish_reason": "length"}]}))
    assert stopped is not None
    assert cut is not None
    assert cut.listed is not None
    assert cut.listed[-1][2] == cut.listed[-1][1] + 1  # as the engine counts it
    found, alone = acceptance([[stopped], [cut]]).acceptance, acceptance([[stopped]]).acceptance
    assert found.tau_from_tokens == alone.tau_from_tokens
    assert (found.tau_from_tokens_answers, found.tau_from_tokens_ci95) == (1, None)
    assert found.rounds == stopped.rounds + cut.rounds


def test_tokens_from_no_listed_round_are_left_out() -> None:
    """vLLM lists a round only if something was drafted."""
    reply = RECORDED[0]["reply"]
    said = reply["metrics"]["speculative_decoding"]
    kept = list(zip(said["per_step_drafted"], said["per_step_accepted"], strict=True))
    place = next(at for at, (_, accepted) in enumerate(kept) if not accepted)
    del kept[place]
    histogram = [said["acceptance_histogram"][0] - 1, *said["acceptance_histogram"][1:]]
    less = with_sums(
        reply,
        num_spec_steps=len(kept),
        num_draft_tokens=said["num_draft_tokens"] - 5,
        acceptance_histogram=histogram,
        per_step_drafted=[drafted for drafted, _ in kept],
        per_step_accepted=[accepted for _, accepted in kept],
    )
    found = answer_rounds(answer(less))
    assert found is not None
    assert (found.flaw, found.undrafted, found.from_rounds) == ("", 1, found.tokens - 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_spec_steps": 1},
        {"num_accepted_draft_tokens": 500, "num_draft_tokens": 1000},
        {"num_accepted_draft_tokens": 10**40},
        {"num_draft_tokens": -1},
        {"num_spec_steps": True},
        {"acceptance_histogram": [1, 2]},
        {"acceptance_histogram": "many"},
        {"per_step_accepted": [1]},
        {"per_step_drafted": [[5]]},
    ],
)
def test_numbers_that_cannot_be_have_a_flaw(fields: dict[str, Any]) -> None:
    found = answer_rounds(answer(with_sums(RECORDED[0]["reply"], **fields)))
    assert found is not None
    assert 0 < len(found.flaw) < 200


def test_rounds_that_give_more_than_the_answer_have_a_flaw() -> None:
    reply = RECORDED[0]["reply"]
    (choice,) = reply["choices"]
    short = {**reply, "choices": [{**choice, "token_ids": choice["token_ids"][-9:]}]}
    found = answer_rounds(answer(short))
    assert found is not None
    assert "more than its 9 tokens" in found.flaw


def test_a_reply_that_says_nothing_is_none() -> None:
    reply = RECORDED[0]["reply"]
    (choice,) = reply["choices"]
    for silent in ({**reply, "metrics": None}, {**reply, "metrics": {"speculative_decoding": None}}):
        assert answer_rounds(answer(silent)) is None
    assert answer_rounds(answer(reply, ids_from="text")) is None
    one = {"choices": [{**choice, "token_ids": [2]}]}
    found = answer_rounds(answer(one))
    assert found is not None  # its token came with the prompt
    assert (found.rounds, found.listed) == (0, ())


def test_sglang_says_it_in_meta_info_as_well() -> None:
    said = as_sglang(RECORDED[0]["reply"])["sglext"]["spec_tokens_details"]
    for reply, choice in (
        ({"meta_info": said}, {}),
        ({}, {"meta_info": said}),
        ({"sglext": {"spec_tokens_details": [said]}}, {}),
    ):
        found = reported_rounds(reply, choice)
        assert isinstance(found, ReportedRounds)
        assert (found.rounds, found.flaw, found.steps) == (said["spec_verify_ct"], "", None)
