"""What a server has to answer to an evaluation's prompts: what was kept of it, or what we decode here.

    chosen(kept_answers(…), count) ──► decoded(…)     greedily, with the target and the draft on this machine
                                          └── of a `Variant`: with the draft as an engine reads it that is mistaken

An evaluation's own answers are mostly sampled, and of sampled answers only means can be compared; so its prompts are
decoded once more.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from deepspec.data.responses.requests import GenerationRequest
from deepspec.decoding.config import Sampling
from deepspec.drafts.files.config_json import CONFIG_FILE, read_draft_config
from deepspec.evaluation.kept_answers import KeptAnswer

GREEDY = Sampling(temperature=0.0)
Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
_ROWS = 16


@dataclass(frozen=True)
class How:
    """How an evaluation was made.

    Attributes:
        sampling, max_new_tokens: of its answers.
        dtype: that it computed in.
    """

    sampling: Sampling
    max_new_tokens: int
    dtype: Dtype

    @classmethod
    def read(cls, sections: Mapping[str, Any]) -> "How":
        """From what its key was made of."""
        part = sections["evaluate"]
        return cls(Sampling.model_validate(part["sampling"]), int(part["max_new_tokens"]), sections["target.dtype"])


@dataclass(frozen=True)
class Pair:
    """A target and a draft on this machine.

    Attributes:
        target, draft: directories.
        dtype: of both.
        device: "cpu" or "cuda".
        stop_ids: tokens that end an answer; None: the target's.
    """

    target: Path
    draft: Path
    dtype: Dtype = "float32"
    device: str = "cpu"
    stop_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Expected:
    """What a server has to answer.

    Attributes:
        answers: with their rounds.
        sampling: how they were drawn.
        dtype: what they were computed in.
        max_new_tokens: of each.
        num_draft_tokens: proposed per round.
    """

    answers: tuple[KeptAnswer, ...]
    sampling: Sampling
    dtype: str
    max_new_tokens: int
    num_draft_tokens: int


@dataclass(frozen=True)
class Variant:
    """A way in which an engine may read a draft wrongly.

    Attributes:
        cause: the mistake, in a sentence.
        changes: of the draft's config.json, that do the same here.
    """

    cause: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def chosen(answers: Sequence[KeptAnswer], count: int) -> tuple[KeptAnswer, ...]:
    """The first answers of each benchmark in turns, `count` at most."""
    by_benchmark: dict[str, list[KeptAnswer]] = {}
    for answer in answers:
        by_benchmark.setdefault(answer.benchmark, []).append(answer)
    deepest = max(map(len, by_benchmark.values()), default=0)
    turns = [own[at] for at in range(deepest) for own in by_benchmark.values() if at < len(own)]
    return tuple(turns[:count])


def decoded(
    answers: Sequence[KeptAnswer], pair: Pair, max_new_tokens: int, changes: Mapping[str, Any] | None = None
) -> tuple[KeptAnswer, ...]:
    """The same prompts with what the pair answers greedily; costs an evaluation of them.

    Args:
        answers: whose prompts are asked.
        pair: decodes.
        max_new_tokens: of each answer.
        changes: of the draft's config.json.

    Raises:
        IncompatibleDraft: the draft does not fit the target.
    """
    from deepspec.decoding.engine import Engine
    from deepspec.drafts import algorithm_of
    from deepspec.targets.directory import read_spec
    from deepspec.targets.model import Target

    with _as_read(pair.draft, changes or {}) as folder:
        algorithm = algorithm_of(folder)
        draft = algorithm.load(folder, read_spec(pair.target), device=pair.device, dtype=pair.dtype)
        drafter = algorithm.drafter(draft, algorithm.read_config(folder))
    target = Target.load(pair.target, device=pair.device, dtype=pair.dtype, layer_ids=drafter.layer_ids)
    requests = [
        GenerationRequest(str(number), answer.prompt_ids, max_new_tokens, 0) for number, answer in enumerate(answers)
    ]
    engine = Engine(target, drafter, rows=_ROWS, sampling=GREEDY, stop_ids=pair.stop_ids)
    found = {completion.id: completion for completion in engine.run(requests)}
    return tuple(
        replace(
            answer,
            output_ids=found[str(number)].output_ids,
            finish_reason=found[str(number)].finish_reason,
            rounds=tuple((one.proposed, one.accepted, one.committed) for one in found[str(number)].rounds),
        )
        for number, answer in enumerate(answers)
    )


def variants(pair: Pair) -> Iterator[Variant]:
    """The mistakes that a draft of this kind can be read with, the likeliest first."""
    from deepspec.targets.directory import read_spec

    written, spec = read_draft_config(pair.draft), read_spec(pair.target)
    ids = written.get("target_layer_ids", ())
    for shift, direction in ((1, "high"), (-1, "low")):
        shifted = [number + shift for number in ids]
        if ids and min(shifted) >= -1 and max(shifted) < spec.num_layers:
            yield Variant(
                f"The engine reads the target's layers one too {direction}: {_listed(shifted)} in our count, and not"
                f" {_listed(ids)}. Export the draft again in the engine's format: engines count layers differently.",
                {"target_layer_ids": shifted},
            )
    if "block_size" in written:
        anchored = written.get("sample_from_anchor", True)
        names = ("next-token", "in-place") if anchored else ("in-place", "next-token")
        yield Variant(
            f"The engine reads the draft's blocks as {names[1]} slots, and it was trained with {names[0]} ones. Export"
            " it again in the engine's format.",
            {"sample_from_anchor": not anchored, "block_size": written["block_size"] + (1 if anchored else -1)},
        )


@contextmanager
def _as_read(draft: Path, changes: Mapping[str, Any]) -> Iterator[Path]:
    """A draft directory whose config.json says something else; the files are not copied."""
    if not changes:
        yield draft
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in draft.iterdir():
            (Path(folder) / file.name).symlink_to(file.absolute())
        (Path(folder) / CONFIG_FILE).unlink()
        (Path(folder) / CONFIG_FILE).write_text(json.dumps({**read_draft_config(draft), **changes}))
        yield Path(folder)


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
