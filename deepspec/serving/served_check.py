"""Whether a server serves a draft of the store, or of a directory, as it was measured: `deepspec serve-check`.

    evaluation whose prompts are asked ──► expected here ──► the server ──► the rule (deepspec.evaluation.server.judged)

The prompts are those of the draft's own evaluation; where it has none, of the newest one in the store. What is expected
is decoded here, greedily, with the target and the draft: most evaluations are sampled. One that was greedy, in the
dtype of the server, has kept its answers; and with `sampled` they are compared as they were drawn, without any weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepspec.data.responses.endpoint_protocol import Vocabulary
from deepspec.errors import BadArgument, DeepspecError, TransientError
from deepspec.evaluation.kept_answers import KeptAnswer, kept_answers
from deepspec.evaluation.server.asked import Pace, Server
from deepspec.evaluation.server.check import check
from deepspec.evaluation.server.check_results import ServedCheck
from deepspec.evaluation.server.expected import GREEDY, Dtype, Expected, How, Pair, Variant, chosen, decoded, variants
from deepspec.evaluation.server.judged import Subject
from deepspec.progress import SILENT, Progress
from deepspec.serving.live import CLIENTS
from deepspec.store import Artifact, Store

NUM_PROMPTS = 64
"""That are asked, unless the caller knows better."""


@dataclass(frozen=True)
class Wanted:
    """What a server is to serve.

    Attributes:
        name: of the draft, for people.
        digest: of its content; None: it lies in no store.
        draft, target: their directories.
        evaluation: whose prompts are asked.
        device: that decodes here.
    """

    name: str
    digest: str | None
    draft: Path
    target: Path
    evaluation: Artifact
    device: str = "cpu"


def evaluation_for(digest: str | None, store: Store) -> Artifact:
    """The newest evaluation of a draft; where it has none, the newest of any: its prompts do as well.

    Args:
        digest: of the draft; None: it lies in no store.

    Raises:
        BadArgument: the store has none.
    """
    made = store.newest_first("evaluate")
    own = [one for one in made if one.manifest.parents["draft"].digest == digest]
    if not made:
        raise BadArgument(
            "no evaluation is in the store, so there are no prompts to ask.",
            where=store.backend.location,
            remedy="Run a recipe first; `deepspec serve-check` asks the prompts of its evaluation.",
        )
    return (own or made)[0]


def served_check(
    wanted: Wanted,
    server: Server,
    vocabulary: Vocabulary,
    *,
    dtype: Dtype | None = None,
    sampled: bool = False,
    num_prompts: int = NUM_PROMPTS,
    pace: Pace | None = None,
    progress: Progress = SILENT,
) -> ServedCheck:
    """Ask a server for known answers.

    Args:
        wanted: what it is to serve.
        server: where.
        vocabulary: the target's.
        dtype: what it computes in; None: as the evaluation did.
        sampled: ask as the evaluation did, and compare means alone; the weights are not needed here.
        num_prompts: asked at most, of each benchmark in turns.
        pace: of reading counters.
        progress: advances by prompts.

    Raises:
        IncompatibleDraft: the draft does not fit the target.
        DataError: the server serves another model, has too short a context, or refuses the key.
        TransientError: the server cannot be reached, or ended in the middle.
    """
    made = How.read(wanted.evaluation.manifest.ingredients["sections"])
    pair = Pair(wanted.target, wanted.draft, dtype or made.dtype, wanted.device, vocabulary.end_ids)
    answers = chosen(kept_answers(wanted.evaluation.directory()), num_prompts)
    is_kept = made.sampling.greedy and pair.dtype == made.dtype and _is_of(wanted)
    if not is_kept and not sampled:
        answers = decoded(answers, pair, made.max_new_tokens)
    elif sampled and not _is_of(wanted):
        raise BadArgument(
            "this draft has no evaluation whose sampled answers could be compared.",
            where=wanted.name,
            remedy="Leave out --sampled: what is expected is then decoded here.",
        )
    expected = Expected(
        answers=answers,
        sampling=made.sampling if sampled else GREEDY,
        dtype=made.dtype if sampled else pair.dtype,
        max_new_tokens=made.max_new_tokens,
        num_draft_tokens=_num_draft_tokens(wanted.draft),
    )

    def decode(some: Sequence[KeptAnswer], variant: Variant) -> Sequence[KeptAnswer] | None:
        try:
            return decoded(some, pair, made.max_new_tokens, variant.changes)
        except DeepspecError:  # such a draft cannot be read that way here
            return None

    tried = () if sampled else variants(pair)
    subject = Subject(wanted.name, wanted.digest, _says(server), dtype, tried, decode)
    try:
        return check(expected, server, vocabulary, subject, pace=pace, progress=progress)
    except TransientError as error:
        raise TransientError(
            error.what, where=server.url, remedy="Check that the server runs, and its address; then check again."
        ) from error


def _is_of(wanted: Wanted) -> bool:
    return wanted.evaluation.manifest.parents["draft"].digest == wanted.digest


def _num_draft_tokens(draft: Path) -> int:
    from deepspec.drafts import algorithm_of

    algorithm = algorithm_of(draft)
    return algorithm.num_draft_tokens(algorithm.read_config(draft))


def _says(server: Server) -> str | None:
    """What the server says that it serves; None: it does not say, as most do not."""
    for client in CLIENTS.values():
        try:
            return client(server.url, server.api_key).version()
        except DeepspecError:
            continue
    return None
