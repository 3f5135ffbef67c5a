"""A few answers as a person can read them: which round each token came from, and who said it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepspec.evaluation.answering import Answer

if TYPE_CHECKING:
    from deepspec.data.chat.renderer import Renderer

PER_BENCHMARK = 2
_MOST_TOKENS = 400  # of an answer: enough to be read on a page


def samples(answers: Mapping[str, Sequence[Answer]], renderer: "Renderer") -> list[dict[str, Any]]:
    """The first answers of each benchmark.

    Returns:
        records with `benchmark`, `prompt` (what the target was given, as text) and `answer`: pieces of `text` with the
        `round` (0: the token that the prefill gave) and `kind` ("prefill", "accepted", "bonus").
    """
    return [
        {
            "benchmark": name,
            "prompt": renderer.text(answer.turn.prompt_ids),
            "answer": list(_pieces(answer, renderer)),
        }
        for name, of_benchmark in answers.items()
        for answer in of_benchmark[:PER_BENCHMARK]
    ]


def _pieces(answer: Answer, renderer: "Renderer") -> Iterator[dict[str, Any]]:
    """The answer's text, token by token; a character that several tokens make up belongs to its last one."""
    ids = answer.completion.output_ids[:_MOST_TOKENS]
    spoken = ""
    for place, (number, kind) in enumerate(_origins(answer)):
        if place >= len(ids):
            return
        text = renderer.text(ids[: place + 1])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and place + 1 < len(ids):
            continue
        yield {"text": text[len(spoken) :], "round": number, "kind": kind}
        spoken = text


def _origins(answer: Answer) -> Iterator[tuple[int, str]]:
    """Round and kind of each committed token, those beyond the answer's limit included."""
    yield 0, "prefill"
    for number, one in enumerate(answer.completion.rounds, start=1):
        yield from ((number, "accepted") for _ in range(min(one.accepted, one.committed)))
        yield from ((number, "bonus") for _ in range(one.committed - one.accepted))
