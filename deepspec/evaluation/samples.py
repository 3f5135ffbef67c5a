"""A few answers as a person can read them: which round each token came from, and who said it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from deepspec.evaluation.answering import Answer
from deepspec.evaluation.results import AnswerPiece, Sample

if TYPE_CHECKING:
    from deepspec.data.chat.renderer import Renderer

Kind: TypeAlias = Literal["prefill", "accepted", "bonus"]

PER_BENCHMARK = 2
_MOST_TOKENS = 400  # of an answer: enough to be read on a page


def samples(answers: Mapping[str, Sequence[Answer]], renderer: "Renderer") -> list[Sample]:
    """The first answers of each benchmark."""
    return [
        Sample(benchmark=name, prompt=renderer.text(answer.turn.prompt_ids), answer=tuple(_pieces(answer, renderer)))
        for name, of_benchmark in answers.items()
        for answer in of_benchmark[:PER_BENCHMARK]
    ]


def _pieces(answer: Answer, renderer: "Renderer") -> Iterator[AnswerPiece]:
    """The answer's text, token by token; a character that several tokens make up belongs to its last one."""
    ids = answer.completion.output_ids[:_MOST_TOKENS]
    spoken = ""
    for place, (number, kind) in enumerate(_origins(answer)):
        if place >= len(ids):
            return
        text = renderer.text(ids[: place + 1])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and place + 1 < len(ids):
            continue
        yield AnswerPiece(text=text[len(spoken) :], round=number, kind=kind)
        spoken = text


def _origins(answer: Answer) -> Iterator[tuple[int, Kind]]:
    """Round and kind of each committed token, those beyond the answer's limit included."""
    yield 0, "prefill"
    for number, one in enumerate(answer.completion.rounds, start=1):
        yield from ((number, "accepted") for _ in range(min(one.accepted, one.committed)))
        yield from ((number, "bonus") for _ in range(one.committed - one.accepted))
