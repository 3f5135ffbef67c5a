"""Capturing a target's states: tokens in, a folder of states out.

Documents run through the target in batches of similar length: on a CPU one by one, so that their states depend on
nothing else; on a GPU together and right-padded: attention is causal, so padding behind a document changes nothing in
it but rounding. Batches are formed within a stretch of consecutive documents of one shard, which is then written in
document order. Which documents are in which shard follows from their lengths alone, and what is in a shard from its own
documents: so shards can be made in any order, by any number of processes, and made again one by one.

A finished shard lies in the work folder under its own name, with a record of its checksum; a capture that was
interrupted goes on with the shards that are missing there or do not match their record.

Shapes: T tokens of a document or of a packed batch, N documents, L captured layers, D hidden.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from deepspec.atomic_write import replacing
from deepspec.errors import DataError, StoreFull
from deepspec.file_system import is_out_of_room, link
from deepspec.progress import SILENT, Progress
from deepspec.states.capture.finished_shards import Finished, is_finished
from deepspec.states.capture.survey import Survey
from deepspec.states.config import Config
from deepspec.states.format.layout import Layout
from deepspec.states.format.shards import EncodedStates, ShardWriter, encode, write_index
from deepspec.states.token_documents import Document, read_documents
from deepspec.store.reading.pieces import sha256_of
from deepspec.targets.capture import capture, length_batches
from deepspec.targets.model import Target

_STRETCH_BATCHES = 8


class StateOrigin(Protocol):
    """Where states come from: a target that is run, or what something else has captured."""

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Captured decoder layers, in the order of the states."""

    @property
    def hidden_size(self) -> int:
        """Numbers per state."""

    @property
    def stretch_tokens(self) -> int:
        """About how many tokens are asked for at once."""

    def states(self, documents: Sequence[Document]) -> Iterator[tuple[list[Document], Tensor, Tensor]]:
        """Batches of the documents, in any order: (documents, states_TLD, final_TD), packed, in bfloat16.

        Raises:
            DataError: states are not finite or not there.
        """


class RunTarget:
    """States of a target that is run here.

    Args:
        target: captures the layers that are wanted (`layer_ids`).
        batch_tokens: tokens per batch, padding included; a longer document is alone.
    """

    def __init__(self, target: Target, batch_tokens: int = 4096) -> None:
        self._target = target
        self._batch_tokens = batch_tokens

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Captured decoder layers, in the order of the states."""
        return self._target.layer_ids

    @property
    def hidden_size(self) -> int:
        """Numbers per state."""
        return self._target.spec.hidden_size

    @property
    def stretch_tokens(self) -> int:
        """Enough for batches of similar lengths."""
        return _STRETCH_BATCHES * self._batch_tokens

    def states(self, documents: Sequence[Document]) -> Iterator[tuple[list[Document], Tensor, Tensor]]:
        """See `StateOrigin.states`; batches are of similar lengths."""
        for indices in length_batches([len(document.input_ids_T) for document in documents], self._batch_tokens):
            batch = [documents[index] for index in indices]
            states_TLD, final_TD = capture(self._target, [document.input_ids_T for document in batch])
            yield batch, states_TLD.to(torch.bfloat16), final_TD.to(torch.bfloat16)


def write_states(
    tokens_file: Path,
    out: Path,
    *,
    origin: StateOrigin,
    config: Config,
    work: Path | None = None,
    fingerprint: str = "",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Keep the states of every document of a tokens file.

    Args:
        tokens_file: what `write_tokens` wrote for a split.
        out: existing folder that is written to.
        origin: where the states come from: `RunTarget`, or `captured.CapturedFiles`.
        config: codec and sizes of the files.
        work: folder of finished shards, created; what an earlier capture of the same left there is used. None: shards
            are made in `out`.
        fingerprint: of the target, noted in `states.json`.
        progress: counts tokens.

    Returns:
        counts: documents, tokens, supervised_tokens, bytes, bytes_per_token, shards, blocks (row groups).

    Raises:
        DataError: states are infinite or undefined (names layer and row) or not there, or there are no documents.
        StoreFull: there is no room left; finished shards stay in `work`.
    """
    survey = Survey.of(tokens_file, config)
    progress.start(survey.num_tokens, "tokens")
    write_shards(survey, work or out, range(survey.places.num_shards), origin=origin, config=config, progress=progress)
    return gather_shards(
        survey,
        work or out,
        out,
        layer_ids=origin.layer_ids,
        hidden_size=origin.hidden_size,
        config=config,
        fingerprint=fingerprint,
    )


def write_shards(
    survey: Survey,
    work: Path,
    numbers: Sequence[int],
    *,
    origin: StateOrigin,
    config: Config,
    progress: Progress = SILENT,
) -> None:
    """Write some of the shards of a tokens file to `work`, but for those that are there.

    Every shard is visible once it is whole. Several processes may write different shards to one folder.

    Args:
        survey: of the tokens file.
        work: created if it is missing; belongs to one capture (tokens, target, layers, codec, sizes).
        numbers: shards in 0 … num_shards-1.
        origin: where the states come from.
        config: codec and sizes of the files.
        progress: counts tokens.

    Raises:
        DataError: states are infinite or undefined (names layer and row) or not there.
        StoreFull: there is no room left; finished shards stay.
    """
    with _room(work):
        work.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            if is_finished(work, survey.shard(number)):
                progress.advance(survey.shard(number).num_tokens)
            else:
                _write_shard(survey, work, number, origin, config, progress)


def _write_shard(
    survey: Survey, work: Path, number: int, origin: StateOrigin, config: Config, progress: Progress
) -> None:
    expected = survey.shard(number)
    with replacing(work / expected.file) as partial:
        writer = ShardWriter(
            partial,
            codec=config.codec,
            num_layers=len(origin.layer_ids),
            hidden_size=origin.hidden_size,
            row_group_tokens=config.row_group_tokens,
        )
        try:
            for stretch in _stretches(survey, number, origin.stretch_tokens):
                _write_stretch(writer, stretch, origin, config.codec, progress)
        finally:
            writer.close()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        record = Finished(shard=expected, size=partial.stat().st_size, sha256=sha256_of(partial))
    record.write(work)


def _stretches(survey: Survey, number: int, stretch_tokens: int) -> Iterator[list[Document]]:
    """The documents of a shard, cut where together they reach `stretch_tokens`."""
    documents = survey.places.documents(number)
    stretch: list[Document] = []
    total = 0
    for document in read_documents(survey.tokens_file, documents.start, documents.stop):
        stretch.append(document)
        total += len(document.input_ids_T)
        if total >= stretch_tokens:
            yield stretch
            stretch, total = [], 0
    if stretch:
        yield stretch


def _write_stretch(
    writer: ShardWriter, stretch: Sequence[Document], origin: StateOrigin, codec: str, progress: Progress
) -> None:
    encoded: dict[int, EncodedStates] = {}
    for batch, states_TLD, final_TD in origin.states(stretch):
        _check_finite(origin.layer_ids, batch, states_TLD, final_TD)
        columns = encode(states_TLD, final_TD, codec)
        start = 0
        for document in batch:
            rows = slice(start, start := start + len(document.input_ids_T))
            own = {name: data[rows] for name, data in columns.items()}
            encoded[document.index] = EncodedStates(document.index, document.input_ids_T, document.supervised_T, own)
        progress.advance(start)
    for taken in stretch:
        writer.write(encoded.pop(taken.index))


def gather_shards(
    survey: Survey,
    work: Path,
    out: Path,
    *,
    layer_ids: tuple[int, ...],
    hidden_size: int,
    config: Config,
    fingerprint: str = "",
) -> dict[str, Any]:
    """Put finished shards together: the folder `out` is complete afterwards.

    Args:
        survey: of the tokens file.
        work: where `write_shards` has written all of them; they stay there.
        out: existing folder.
        layer_ids, hidden_size: of the states.
        config: codec and sizes of the files.
        fingerprint: of the target, noted in `states.json`.

    Returns:
        counts, see `write_states`.

    Raises:
        StoreFull: there is no room left.
    """
    shards = [survey.shard(number) for number in range(survey.places.num_shards)]
    layout = Layout(
        codec=config.codec,
        layer_ids=layer_ids,
        hidden_size=hidden_size,
        target=fingerprint,
        num_documents=len(survey.num_tokens_N),
        num_tokens=survey.num_tokens,
        num_supervised=int(survey.num_supervised_N.sum()),
        shards=tuple(shards),
    )
    with _room(out):
        for shard in shards:
            if work == out:
                Finished.path(work, shard.file).unlink()
            else:
                _link(work / shard.file, out / shard.file)
        write_index(out, layout, survey.places, survey.num_tokens_N, survey.num_supervised_N)
    size = sum(path.stat().st_size for path in out.iterdir())
    return {
        "documents": layout.num_documents,
        "tokens": layout.num_tokens,
        "supervised_tokens": layout.num_supervised,
        "bytes": size,
        "bytes_per_token": round(size / layout.num_tokens, 1),
        "shards": len(shards),
        "blocks": sum(shard.num_row_groups for shard in shards),
    }


def _link(source: Path, target: Path) -> None:
    """The same file under a second name where that is possible, so that it takes no room twice."""
    if not link(source, target):
        shutil.copyfile(source, target)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """A full disk as a StoreFull."""
    try:
        yield
    except Exception as error:
        if is_out_of_room(error):
            raise StoreFull(
                "there is no room left for the target's states.",
                where=str(folder),
                remedy="Free some space, or choose a smaller states.codec; finished shards are kept for the next run.",
            ) from error
        raise


def _check_finite(layer_ids: tuple[int, ...], batch: Sequence[Document], states_TLD: Tensor, final_TD: Tensor) -> None:
    if bool(states_TLD.isfinite().all()) and bool(final_TD.isfinite().all()):
        return
    names = [*(f"layer {layer}" for layer in layer_ids), "the final state"]
    vectors_TCD = torch.cat([states_TLD, final_TD.unsqueeze(1)], dim=1)
    position, vector = (~vectors_TCD.isfinite().all(-1)).nonzero()[0].tolist()
    for document in batch:
        if position < len(document.input_ids_T):
            raise DataError(
                f"the target's {names[vector]} is not finite at position {position}.",
                where=f"row {document.index}",
                remedy="Check the target's weights, or capture with target.dtype float32.",
            )
        position -= len(document.input_ids_T)
