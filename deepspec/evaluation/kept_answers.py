"""Reads back what an evaluation decoded: every answer with its rounds, from `answers.parquet` and `rounds.parquet`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deepspec.decoding.completion import FinishReason
from deepspec.evaluation.config import GATE
from deepspec.evaluation.from_tokens import FromTokens
from deepspec.evaluation.metrics import mean


@dataclass(frozen=True)
class KeptAnswer:
    """One answer.

    Attributes:
        benchmark, prompt, turn: what was asked.
        prompt_ids, output_ids: tokens.
        finish_reason: how it ended.
        rounds: (proposed, accepted, committed) of each.
    """

    benchmark: str
    prompt: str
    turn: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    finish_reason: FinishReason
    rounds: tuple[tuple[int, int, int], ...]

    @property
    def place(self) -> str:
        """What was asked, for people."""
        return f"{self.benchmark}/{self.prompt}" + (f", turn {self.turn + 1}" if self.turn else "")


def kept_answers(folder: Path) -> list[KeptAnswer]:
    """All answers of an evaluation whose files are in `folder`, in their order there."""
    import pyarrow.parquet as pq

    names = ["benchmark", "prompt", "turn"]
    rounds: dict[tuple[str, str, int], list[tuple[int, int, int]]] = {}
    columns = [*names, "proposed", "accepted", "committed"]
    for row in pq.read_table(folder / "rounds.parquet", columns=columns).to_pylist():
        place = (row["benchmark"], row["prompt"], row["turn"])
        rounds.setdefault(place, []).append((row["proposed"], row["accepted"], row["committed"]))
    columns = [*names, "prompt_ids", "output_ids", "finish_reason"]
    return [
        KeptAnswer(
            row["benchmark"],
            row["prompt"],
            row["turn"],
            tuple(row["prompt_ids"]),
            tuple(row["output_ids"]),
            row["finish_reason"],
            tuple(rounds.get((row["benchmark"], row["prompt"], row["turn"]), ())),
        )
        for row in pq.read_table(folder / "answers.parquet", columns=columns).to_pylist()
    ]


def from_tokens(answers: Iterable[KeptAnswer]) -> dict[str, FromTokens]:
    """τ from tokens of each benchmark, and of the gate split."""
    found: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for answer in answers:
        of_prompt = found.setdefault(answer.benchmark, {}).setdefault(answer.prompt, [])
        if answer.finish_reason == "stop":
            of_prompt.append((len(answer.output_ids) - 1, len(answer.rounds)))
    return {benchmark: FromTokens.of(prompts) for benchmark, prompts in found.items()}


def tau_from_tokens(answers: Iterable[KeptAnswer]) -> dict[str, float | None]:
    """The number itself of each benchmark, and of `macro`, their plain mean."""
    taus = {name: found.tau for name, found in from_tokens(answers).items() if name != GATE}
    return {**taus, "macro": mean(list(taus.values()))}
