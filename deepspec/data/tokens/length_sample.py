"""How long conversations are, from a sample: what an estimate needs to know before a run makes tokens.

A seeded sample of rows is parsed, split and tokenised as a run would do it. Answers that the target will give are
assumed as long as the rows' own, up to the recipe's limit; rows without an answer get `ASSUMED_ANSWER_TOKENS`. Small
sources are read whole, large ones in a few stretches. Not here: anything that a run keeps.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.data.config import Config
from deepspec.errors import DataError

if TYPE_CHECKING:
    from deepspec.data.chat.renderer import Renderer
    from deepspec.data.sources.finding import Source
    from deepspec.data.sources.rows import Message

    Conversation = tuple[list[Message], str | None]

ASSUMED_ANSWER_TOKENS = 700
"""Length of an answer that is still to be generated; public mixtures for drafts have 600 to 900 in the mean."""
ASSUMED_SUPERVISED_SHARE = 0.75
"""Supervised share of a conversation's tokens where only their count is given."""
_MOST_ROWS = 2048
_MOST_TOKENISED = 512
_WHOLE_BYTES = 16 << 20
_NUM_SAMPLED = 64


@dataclass(frozen=True)
class LengthSample:
    """Sampled conversations of the training split.

    Args:
        tokens: of each, cut as a run cuts them.
        supervised: of these, how many the target generates.
        train_share: of all conversations, how many are trained on.
    """

    tokens: tuple[int, ...]
    supervised: tuple[int, ...]
    train_share: float

    @property
    def mean_tokens(self) -> float:
        """Mean of `tokens`."""
        return sum(self.tokens) / len(self.tokens)

    @property
    def supervised_share(self) -> float:
        """Of all tokens, how many are supervised."""
        return sum(self.supervised) / sum(self.tokens)

    @classmethod
    def uniform(cls, config: Config, mean_tokens: float) -> "LengthSample":
        """LengthSample where only the mean is known: every conversation has it."""
        tokens = max(1, round(min(mean_tokens, config.max_length_tokens)))
        return cls((tokens,), (max(1, round(tokens * ASSUMED_SUPERVISED_SHARE)),), nominal_train_share(config))


def nominal_train_share(config: Config) -> float:
    """What `data.splits` leaves for training."""
    return 1.0 - config.splits.validation - config.splits.calibration - config.splits.gate


def sample_lengths(config: Config, renderer: "Renderer") -> LengthSample | None:
    """Lengths of a sample of `data.source`; None if no sampled row can be used, or reading takes `datasets`.

    Args:
        config: the recipe's data section, with local sources.
        renderer: of the target's tokenizer.

    Raises:
        DataError: a source cannot be read; or more of its rows cannot be used than a run would let pass.
    """
    import numpy as np

    from deepspec.data.conversations.splits import split_of
    from deepspec.data.sources.finding import find_sources
    from deepspec.data.sources.parsing import prompt_hash

    sources = find_sources([entry.path for entry in config.source])
    if any(source.kind not in ("jsonl", "parquet") for source in sources):
        return None
    whole = sum(Path(source.path).stat().st_size for source in sources) <= _WHOLE_BYTES
    candidates: list[Conversation] = []
    num_rows = 0
    refused: Counter[str] = Counter()
    for messages, tools in _rows(config, sources, refused, whole=whole):
        num_rows += 1
        if split_of(prompt_hash(messages, tools), config) == "train":
            candidates.append((messages, tools))
    trained = len(candidates)
    if len(candidates) > _MOST_TOKENISED:
        chosen = np.random.default_rng(config.seed).choice(len(candidates), _MOST_TOKENISED, replace=False)
        candidates = [candidates[index] for index in np.sort(chosen)]
    _check(config, refused, num_rows + refused.total())
    found = list(_lengths(config, candidates, renderer, refused := Counter()))
    _check(config, refused, len(candidates))
    kept = [(tokens, supervised) for tokens, supervised in found if supervised >= config.min_supervised_tokens]
    if not kept:
        return None
    # Which rows of a small source are trained on is known; of a large one what the recipe says is more exact.
    share = trained / num_rows if whole and num_rows < _MOST_ROWS else nominal_train_share(config)
    tokens, supervised = zip(*kept, strict=True)
    return LengthSample(tokens, supervised, share * len(kept) / len(found))


def _check(config: Config, refused: Counter[str], num_rows: int) -> None:
    """Refuse a source that a run would refuse: above the allowed share, and by more than a sample is off by chance."""
    allowed = config.max_quarantined_share
    if refused.total() > allowed * num_rows + 3 * (allowed * (1 - allowed) * num_rows) ** 0.5:
        reasons = sorted(refused.items(), key=lambda item: (-item[1], item[0]))[:3]
        raise DataError(
            f"{refused.total()} of {num_rows} sampled rows cannot be used, but data.max_quarantined_share allows"
            f" {allowed:.2%}. Commonest reasons: {', '.join(f'{reason} ({count})' for reason, count in reasons)}.",
            where="data.source",
            remedy="Correct these rows, or raise data.max_quarantined_share.",
        )


def _rows(
    config: Config, sources: "Sequence[Source]", refused: Counter[str], *, whole: bool
) -> "Iterator[Conversation]":
    """Parsed conversations and their tools: all of them up to the limit, or those of a few stretches of each source.

    Why others cannot be used is counted in `refused`.
    """
    from deepspec.data.sources.parsing import as_supervised, parse_conversation
    from deepspec.data.sources.rows import RowRejected

    private = any(entry.is_private for entry in config.source)
    raw = (row for source in sources for row in _some_rows(config, source, len(sources), whole=whole))
    for value in islice(raw, _MOST_ROWS):
        try:
            if isinstance(value, RowRejected):
                raise value
            messages, tools, _ = parse_conversation(value, config)
            yield as_supervised(messages, config), tools
        except RowRejected as rejection:
            refused[rejection.plain if private else rejection.reason] += 1


def _some_rows(config: Config, source: "Source", num_sources: int, *, whole: bool) -> Iterator[object]:
    from deepspec.data.sources.finding import is_array
    from deepspec.data.sources.opening import head, is_compressed

    in_one_piece = source.kind == "jsonl" and (is_compressed(source.path) or is_array(head(Path(source.path), 4096)))
    if whole or in_one_piece:
        from deepspec.data.sources.readers import read_rows

        rows = read_rows(source, max_row_bytes=config.max_row_bytes)
        yield from (row.value if row.rejection is None else row.rejection for row in rows)
    elif source.kind == "jsonl":
        yield from _lines_at_offsets(config, source.path, max(1, _MOST_ROWS // num_sources))
    else:
        yield from _first_rows_of_groups(config, source.path, max(1, _MOST_ROWS // num_sources))


def _lines_at_offsets(config: Config, path: str, count: int) -> Iterator[object]:
    """Lines behind seeded offsets of a file: reading all of it would take as long as its disk needs."""
    import json

    import numpy as np

    size = Path(path).stat().st_size
    offsets = np.sort(np.random.default_rng(config.seed).integers(0, size, min(_NUM_SAMPLED, count)))
    with Path(path).open("rb") as file:
        for offset in offsets.tolist():
            file.seek(offset)
            file.readline(config.max_row_bytes)
            for _ in range(-(-count // len(offsets))):
                line = file.readline(config.max_row_bytes)
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


def _first_rows_of_groups(config: Config, path: str, count: int) -> Iterator[object]:
    import numpy as np

    from deepspec.data.sources.columnar.process import rows_of_groups, table_size

    num_groups = table_size(path).num_groups
    groups = np.random.default_rng(config.seed).permutation(num_groups)[:_NUM_SAMPLED].tolist()
    yield from rows_of_groups(path, config.max_row_bytes, groups, -(-count // max(len(groups), 1)))


def _lengths(
    config: Config, conversations: "Sequence[Conversation]", renderer: "Renderer", refused: Counter[str]
) -> Iterator[tuple[int, int]]:
    """Tokens and supervised tokens of each conversation, cut as a run does it.

    Why others cannot be rendered is counted in `refused`.
    """
    from deepspec.data.sources.rows import RowRejected

    answered = [one for one in conversations if one[0][-1]["role"] == "assistant"]
    rendered = []
    for messages, tools in answered:
        try:
            rendered.append(renderer.render(messages, mask=config.mask, tools=tools))
        except RowRejected as rejection:
            refused[rejection.reason] += 1
    found = [(len(one.input_ids), int(one.mask.sum())) for one in renderer.encode(rendered)]
    for messages, tools in conversations:
        if messages[-1]["role"] != "assistant":
            answers = sum(message["role"] == "user" for message in messages) * ASSUMED_ANSWER_TOKENS
            try:
                found.append((len(renderer.prompt_ids(messages, tools=tools)) + answers, answers))
            except RowRejected as rejection:
                refused[rejection.reason] += 1
    generated = config.responses.generates
    for tokens, supervised in found:
        limit = config.responses.max_new_tokens if generated else supervised
        kept = min(supervised, limit)
        cut = max(0, tokens - (supervised - kept) - config.max_length_tokens)
        yield tokens - (supervised - kept) - cut, max(0, kept - cut)
