"""Evaluation and calibration end to end on a tiny target with stub drafts."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from decoding_stubs import VOCAB_SIZE, Ask, StubDrafter, next_logits, save_tiny_target

from deepspec.data.sources.rows import Message
from deepspec.decoding.engine import Engine
from deepspec.decoding.random import derive_seed
from deepspec.drafts.algorithm import Proposal
from deepspec.errors import DataError, IncompatibleDraft
from deepspec.evaluation.calibration.run import calibrate
from deepspec.evaluation.config import Config
from deepspec.evaluation.evaluate import evaluate, evaluate_acceptance
from deepspec.evaluation.results import Evaluation
from deepspec.targets.model import Target, TargetOutput
from tests.fixtures.refused import refused

TIMES = ("seconds", "per_second", "speedup", "speedup_ci95")


class Letters:
    """Renders one token per character."""

    def prompt_ids(self, messages: Sequence[Message], **_: Any) -> tuple[int, ...]:
        return tuple(ord(letter) % VOCAB_SIZE for message in messages for letter in message["content"])

    def thinks(self, messages: Sequence[Message]) -> bool:
        return False

    def text(self, ids: Sequence[int]) -> str:
        return "".join(chr(97 + token) for token in ids)


class Confident(StubDrafter):
    """Says how sure it is: the probability that its token is accepted, exaggerated."""

    def propose(self, rows: Any, anchor_ids_R: Any, positions_R: Any, sample: Any) -> Proposal:
        texts = [[*self._texts[row], anchor] for row, anchor in zip(rows, anchor_ids_R.tolist(), strict=True)]
        proposal = super().propose(rows, anchor_ids_R, positions_R, sample)
        overlaps = []
        for position in range(self.num_draft_tokens):
            p_RV = torch.softmax(next_logits(self._target, texts), -1)
            overlaps.append(torch.minimum(p_RV, proposal.probs_RKV[:, position]).sum(-1).clamp(max=1))
            for text, token in zip(texts, proposal.tokens_RK[:, position].tolist(), strict=True):
                text.append(token)
        return Proposal(proposal.tokens_RK, proposal.probs_RKV, torch.logit(torch.stack(overlaps, 1)).mul(3).sigmoid())


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.load(save_tiny_target(tmp_path_factory.mktemp("target")), layer_ids=(0,))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Two benchmarks, and splits with a gate and a calibration file."""
    for name, count in (("math", 4), ("chat", 5)):
        rows = [{"turns": [f"{name} question {index}"]} for index in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, count in (("gate", 4), ("calibration", 30)):
        asked = [{"messages": [{"role": "user", "content": f"{name} {index}"}]} for index in range(count)]
        pq.write_table(pa.Table.from_pylist(asked), tmp_path / f"{name}.parquet")
    return tmp_path


def config_for(inputs: Path, **fields: Any) -> Config:
    benchmarks = {name: str(inputs / f"{name}.jsonl") for name in ("math", "chat")}
    small = {"max_new_tokens": 12, "thresholds": (), "load": {"concurrency": ()}}
    return Config(**{"benchmarks": benchmarks, **small, **fields})


def run(
    config: Config,
    target: Target,
    drafter: StubDrafter,
    inputs: Path,
    name: str = "out",
    *,
    measure: Any = evaluate,
    **options: Any,
) -> Any:
    out = inputs / name
    out.mkdir()
    return measure(
        config,
        target=target,
        drafter=drafter,
        renderer=Letters(),
        conversations=inputs,
        out=out,
        **options,
    )


def without_times(value: Any) -> Any:
    if isinstance(value, Evaluation):
        return without_times(value.to_json())
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if not key.endswith(TIMES)}
    return value


def test_evaluation_has_what_run_json_promises(target: Target, inputs: Path) -> None:
    found = run(config_for(inputs), target, StubDrafter(target, "partly"), inputs)
    assert list(found.benchmarks) == ["chat", "math"]
    assert json.loads((inputs / "out" / "evaluation.json").read_text()) == found.to_json()
    for entry in (*found.benchmarks.values(), found.gate):
        assert entry.skipped == entry.failed == ()
        assert 1 <= entry.tau_ci95[0] <= entry.tau <= entry.tau_ci95[1] <= 4
        assert len(entry.conditional_acceptance) == len(entry.prefix_acceptance) == 3
        assert 0 < entry.verify_rate <= 1
    for entry in found.benchmarks.values():
        assert entry.speedup == pytest.approx(entry.tokens_per_second / entry.plain_tokens_per_second)
        assert 0 < entry.target_entropy_nats < math.log(VOCAB_SIZE)
        assert entry.speedup_ci95[0] <= entry.speedup <= entry.speedup_ci95[1]
        assert entry.speed_prompts == entry.prompts == entry.turns
        assert entry.draft_seconds > 0
    assert found.benchmarks["chat"].prompts == 5
    taus = [entry.tau for entry in found.benchmarks.values()]
    assert found.macro.tau == pytest.approx(sum(taus) / 2)
    gate = found.gate.per_prompt
    assert len(gate) == 4
    assert sum(committed for committed, _ in gate.values()) / sum(rounds for _, rounds in gate.values()) == (
        pytest.approx(found.gate.tau)
    )


def test_a_champion_is_measured_as_the_gate_part_of_a_challenger(target: Target, inputs: Path) -> None:
    config = config_for(inputs)
    whole = run(config, target, StubDrafter(target, "partly"), inputs, "whole")
    gate = run(config, target, StubDrafter(target, "partly"), inputs, "gate", measure=evaluate_acceptance, rows=3)
    assert gate == whole.gate
    written = json.loads((inputs / "gate" / "evaluation.json").read_text())
    assert written == {"benchmarks": {}, "gate": whole.to_json()["gate"]}


@pytest.mark.parametrize("rows", [1, 3])
def test_acceptance_depends_on_no_batch(target: Target, inputs: Path, rows: int) -> None:
    config = config_for(inputs)
    run(config, target, StubDrafter(target, "partly"), inputs, "many", rows=16)
    run(config, target, StubDrafter(target, "partly"), inputs, "few", rows=rows)
    assert (inputs / "many" / "rounds.parquet").read_bytes() == (inputs / "few" / "rounds.parquet").read_bytes()


def test_numbers_can_be_recomputed_from_the_rounds(target: Target, inputs: Path) -> None:
    found = run(config_for(inputs), target, StubDrafter(target, "partly", with_confidence=True), inputs)
    rounds = pq.read_table(inputs / "out" / "rounds.parquet").to_pylist()
    answers = pq.read_table(inputs / "out" / "answers.parquet").to_pylist()
    assert {row["benchmark"] for row in rounds} == {"math", "chat", "gate"}
    for name, entry in found.benchmarks.items():
        own = [row for row in rounds if row["benchmark"] == name]
        assert len(own) == entry.rounds
        assert sum(row["committed"] for row in own) / len(own) == pytest.approx(entry.tau)
        assert sum(len(row["output_ids"]) for row in answers if row["benchmark"] == name) == entry.tokens
        assert all(len(row["confidence"]) == row["proposed"] for row in own)


def test_all_but_the_seconds_is_repeatable(target: Target, inputs: Path) -> None:
    config = config_for(inputs)
    first = run(config, target, StubDrafter(target, "partly"), inputs, "first")
    reordered = config.model_copy(update={"benchmarks": dict(reversed(config.benchmarks.items()))})
    second = run(reordered, target, StubDrafter(target, "partly"), inputs, "second")
    assert without_times(first) == without_times(second)
    for file in ("rounds.parquet", "answers.parquet"):
        assert (inputs / "first" / file).read_bytes() == (inputs / "second" / file).read_bytes()
    other = run(config_for(inputs, sampling={"seed": 1}), target, StubDrafter(target, "partly"), inputs, "other")
    assert without_times(other) != without_times(first)


def test_greedy_answers_are_the_plain_ones(target: Target, inputs: Path) -> None:
    config = config_for(inputs, sampling={"temperature": 0})
    found = run(config, target, StubDrafter(target, "partly"), inputs)
    rows = pq.read_table(inputs / "out" / "answers.parquet").to_pylist()
    assert {row["benchmark"] for row in rows if row["plain_output_ids"]} == {"math", "chat"}
    for row in rows:
        if row["benchmark"] == "gate":
            assert row["plain_output_ids"] is None
        else:
            assert row["output_ids"] == row["plain_output_ids"]
    assert found.benchmarks["math"].stopped <= found.benchmarks["math"].turns


def test_entropy_is_that_of_the_plain_answers(target: Target, inputs: Path) -> None:
    found = run(config_for(inputs), target, StubDrafter(target, "never"), inputs)
    entropies = []
    for row in pq.read_table(inputs / "out" / "answers.parquet").to_pylist():
        if row["benchmark"] != "math":
            continue
        text = list(row["prompt_ids"])
        for token in row["plain_output_ids"]:
            p_V = torch.softmax(next_logits(target, [text])[0].double(), -1)
            entropies.append(float(-(p_V * p_V.log()).sum()))
            text.append(token)
    expected = sum(entropies) / len(entropies)
    assert found.benchmarks["math"].target_entropy_nats == pytest.approx(expected, rel=1e-4)  # fp32 against fp64


def test_a_target_that_fails_on_one_prompt_does_not_lose_the_others(inputs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "target"
    fatal = [
        [ord(letter) % VOCAB_SIZE for letter in f"{name} 3"] for name in ("math question", "chat question", "gate")
    ]

    class Broken(Target):
        def forward(self, input_ids_BQ: torch.Tensor, **options: Any) -> TargetOutput:
            output = super().forward(input_ids_BQ, **options)
            return (
                replace(output, final_BQD=output.final_BQD * float("nan"))
                if any(row[: len(prompt)] == prompt for row in input_ids_BQ.tolist() for prompt in fatal)
                else output
            )

    broken = Broken.load(save_tiny_target(folder), layer_ids=(0,))
    drafter = StubDrafter(broken, "always")
    found = run(config_for(inputs, max_skipped_share=0.5), broken, drafter, inputs, "tolerant")
    assert found.benchmarks["math"].prompts == 3
    [failed] = found.benchmarks["math"].failed
    assert failed.place.endswith("math.jsonl:4")
    assert "NaN" in failed.reason
    with refused(DataError, "1 of 5 prompts", "NaN", where="benchmark chat"):
        run(config_for(inputs), broken, StubDrafter(broken, "always"), inputs, "strict")


class Talking(Letters):
    """Letters that take answers back in: a turn is everything said so far."""

    end_of_turn_ids = (1,)

    def answer(self, output_ids: Sequence[int], **_: Any) -> Message:
        return {"role": "assistant", "content": self.text(output_ids)}


def several_turns(target: Target, inputs: Path, turns: list[str], **fields: Any) -> Evaluation:
    """An evaluation of one benchmark with one short and one long prompt."""
    rows = [{"turns": ["one turn"]}, {"turns": turns}]
    (inputs / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_for(inputs, benchmarks={"talk": str(inputs / "talk.jsonl")}, **fields)
    out = inputs / "talk"
    out.mkdir()
    drafter = StubDrafter(target, "partly")
    return evaluate(config, target=target, drafter=drafter, renderer=Talking(), conversations=inputs, out=out, rows=2)


def test_all_turns_are_played_behind_the_targets_plain_answers(target: Target, inputs: Path) -> None:
    turns = ["first", "second", "third"]
    found = several_turns(target, inputs, turns).benchmarks["talk"]
    assert (found.prompts, found.turns) == (2, 4)
    rows = [row for row in pq.read_table(inputs / "talk" / "answers.parquet").to_pylist() if row["benchmark"] == "talk"]
    [talk] = {row["prompt"] for row in rows if row["turn"] == 2}
    played = [row for row in rows if row["prompt"] == talk]
    assert [row["turn"] for row in played] == [0, 1, 2]
    config = config_for(inputs)
    text = ""
    for turn, row in zip(turns, played, strict=True):
        text += turn
        assert row["prompt_ids"] == list(Letters().prompt_ids([{"role": "user", "content": text}]))
        name = talk if row["turn"] == 0 else f"{talk}-{row['turn']}"
        asked = Ask(name, tuple(row["prompt_ids"]), config.max_new_tokens, derive_seed(config.sampling.seed, name))
        [plain] = Engine(target, sampling=config.sampling).run([asked])
        said = list(plain.output_ids)
        text += Talking().text(said[:-1] if said[-1] == 1 else said)
    rounds = pq.read_table(inputs / "talk" / "rounds.parquet").to_pylist()
    assert {row["turn"] for row in rounds if row["benchmark"] == "talk"} == {0, 1, 2}


def test_a_turn_that_is_too_long_is_counted_and_the_earlier_ones_stay(target: Target, inputs: Path) -> None:
    found = several_turns(target, inputs, ["first", "x" * 90], max_skipped_share=0.5).benchmarks["talk"]
    assert (found.prompts, found.turns) == (2, 2)
    [skipped] = found.skipped
    assert skipped.turn == "1"
    assert "the target's context holds 96" in skipped.reason


def test_too_many_turns_that_are_too_long_are_an_error(target: Target, inputs: Path) -> None:
    with refused(DataError, "1 of 2 prompts", "96", where="talk.jsonl:2"):
        several_turns(target, inputs, ["first", "x" * 90])


def test_a_draft_that_does_not_fit_fails_the_evaluation(target: Target, inputs: Path) -> None:
    drafter = StubDrafter(target, "always")
    drafter.layer_ids = (1,)
    with pytest.raises(IncompatibleDraft):
        run(config_for(inputs), target, drafter, inputs)


def test_a_calibration_that_cannot_say_everything_has_numbers_only(target: Target, inputs: Path) -> None:
    """Serving engines read lists of numbers; of a draft that is always accepted there is no area under a curve."""
    config = config_for(inputs, num_calibration_prompts=10, max_new_tokens=12)
    found = calibrate(
        config, target=target, drafter=Confident(target, "always"), renderer=Letters(), conversations=inputs, out=inputs
    )
    written = json.loads((inputs / "calibration.json").read_text(), parse_constant=pytest.fail)
    assert written == found.to_json()
    assert (written["auc"], len(written["temperatures"]), len(written["ece_after"])) == ([], 3, 3)
    assert None not in [number for value in written.values() if isinstance(value, list) for number in value]


def test_calibration_improves_an_overconfident_draft(target: Target, inputs: Path) -> None:
    config = config_for(inputs, num_calibration_prompts=30, max_new_tokens=24)
    found = calibrate(
        config, target=target, drafter=Confident(target, "partly"), renderer=Letters(), conversations=inputs, out=inputs
    )
    assert found.applicable
    assert json.loads((inputs / "calibration.json").read_text()) == found.to_json()
    assert found.prompts.fitted + found.prompts.measured <= 30
    assert abs(found.prompts.fitted - found.prompts.measured) <= 1
    assert found.temperatures[0] > 1.5
    assert found.mean_ece_after < found.mean_ece_before
    for name in ("ece_before", "ece_after", "auc", "temperatures", "brier_after", "ece_mass_after", "trials"):
        assert len(getattr(found, name)) == 3
    rows = pq.read_table(inputs / "rounds.parquet").to_pylist()
    assert len(rows) == found.rounds.fitted + found.rounds.measured
    again = inputs / "again"
    again.mkdir()
    repeated = calibrate(
        config.model_copy(update={"calibration": config.calibration.model_copy(update={"num_rows": 3})}),
        target=target,
        drafter=Confident(target, "partly"),
        renderer=Letters(),
        conversations=inputs,
        out=again,
    )
    # Another batch gives other roundings of the confidences, and nothing else.
    assert repeated.temperatures == pytest.approx(found.temperatures, rel=0.03)
    assert repeated.trials == found.trials


def test_calibration_is_not_applicable_without_a_confidence_head(target: Target, inputs: Path) -> None:
    drafter = StubDrafter(target, "partly")
    found = calibrate(
        config_for(inputs), target=target, drafter=drafter, renderer=Letters(), conversations=inputs, out=inputs
    )
    assert found.to_json() == {"applicable": False, "reason": "The draft has no confidence head.", "skipped": []}
    assert pq.read_table(inputs / "rounds.parquet").num_rows == 0
