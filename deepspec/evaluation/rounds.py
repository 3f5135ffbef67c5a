"""The files that keep what was decoded: every round, so that any number can be recomputed, and every answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from deepspec.data.tables import IDS, TableWriter
from deepspec.decoding.completion import Completion, Round
from deepspec.evaluation.answering import Answer
from deepspec.evaluation.metrics import RoundTable

ROUNDS_SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("prompt", pa.string()),
        ("turn", pa.int32()),
        ("round", pa.int32()),
        ("position", pa.int32()),
        ("proposed", pa.int32()),
        ("accepted", pa.int32()),
        ("committed", pa.int32()),
        ("confidence", pa.list_(pa.float32())),
    ]
)
ANSWERS_SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("prompt", pa.string()),
        ("turn", pa.int32()),
        ("prompt_ids", IDS),
        ("output_ids", IDS),
        ("finish_reason", pa.string()),
        ("plain_output_ids", IDS),
        ("plain_finish_reason", pa.string()),
    ]
)


class RoundRow(TypedDict):
    """A row of `ROUNDS_SCHEMA`."""

    benchmark: str
    prompt: str
    turn: int
    round: int
    position: int
    proposed: int
    accepted: int
    committed: int
    confidence: Sequence[float]


def round_row(benchmark: str, prompt: str, turn: int, index: int, one: Round) -> RoundRow:
    """The row of one round."""
    return {
        "benchmark": benchmark,
        "prompt": prompt,
        "turn": turn,
        "round": index,
        "position": one.position,
        "proposed": one.proposed,
        "accepted": one.accepted,
        "committed": one.committed,
        "confidence": one.confidence,
    }


def table_of(answers: Sequence[Answer]) -> RoundTable:
    """Rounds by prompt, all its turns together."""
    rounds: dict[str, list[tuple[int, int, int]]] = {}
    for answer in answers:
        counts = [(one.proposed, one.accepted, one.committed) for one in answer.completion.rounds]
        rounds.setdefault(answer.prompt_id, []).extend(counts)
    return RoundTable.of(list(rounds.values()))


def write_answers(
    out: Path, answers: Mapping[str, Sequence[Answer]], plain: Mapping[tuple[str, str], Completion]
) -> None:
    """Write `rounds.parquet` and `answers.parquet`.

    Args:
        out: existing folder.
        answers: by benchmark or split.
        plain: plain answers to first turns, where there are any, by (benchmark, prompt).
    """
    with (
        TableWriter(out / "rounds.parquet", ROUNDS_SCHEMA) as rounds_file,
        TableWriter(out / "answers.parquet", ANSWERS_SCHEMA) as answers_file,
    ):
        for name, of_benchmark in sorted(answers.items()):
            for answer in of_benchmark:
                turn, completion = answer.turn.turn, answer.completion
                for index, one in enumerate(completion.rounds):
                    rounds_file.write(round_row(name, answer.prompt_id, turn, index, one))
                undrafted = plain.get((name, answer.prompt_id)) if turn == 0 else None
                answers_file.write(
                    {
                        "benchmark": name,
                        "prompt": answer.prompt_id,
                        "turn": turn,
                        "prompt_ids": answer.turn.prompt_ids,
                        "output_ids": completion.output_ids,
                        "finish_reason": completion.finish_reason,
                        "plain_output_ids": undrafted.output_ids if undrafted else None,
                        "plain_finish_reason": undrafted.finish_reason if undrafted else None,
                    }
                )
