"""States in object storage: read by range, ahead of what uses them, kept on a bounded disk, dealt to any ranks."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.errors import TransientError
from deepspec.states.order import DataOrder, pack
from deepspec.states.prefetch import ReadAhead
from deepspec.states.reader import StateReader
from deepspec.store import Artifact
from deepspec.store.reading.piece_cache import PieceCache
from tests.fixtures.faulty_proxy import Faults, FaultyProxy
from tests.fixtures.refused import refused
from tests.fixtures.s3 import S3Server
from tests.fixtures.states import read
from tests.fixtures.store import PLACES, ingredients
from tests.unit.test_states_files import LENGTHS, capture, target

__all__ = ["target"]  # a fixture

DOCUMENTS = [7, 4, 0, 11, 9, 1, 10, 2]


@pytest.fixture(params=["moto", pytest.param("radosgw", marks=pytest.mark.full)])
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    """States in a bucket, as another machine finds them."""
    place = PLACES[request.param](request)
    capture(tmp_path / "states", request.getfixturevalue("target"))
    with place.store().write("states", ingredients()) as writing:
        for path in (tmp_path / "states").iterdir():
            (writing.directory / path.name).write_bytes(path.read_bytes())
    return place.store().get("states", writing.artifact.key)


def equal(a: StateReader, b: StateReader, documents: list[int]) -> bool:
    ours, theirs = read(a, documents), read(b, documents)
    same = [
        torch.equal(ours.input_ids_T, theirs.input_ids_T),
        torch.equal(ours.loss_mask_T, theirs.loss_mask_T),
        # As bits: where nothing is supervised there is no final state, and no number equals that.
        torch.equal(ours.states_TLD.view(torch.int16), theirs.states_TLD.view(torch.int16)),
        torch.equal(ours.final_TD.view(torch.int16), theirs.final_TD.view(torch.int16)),
    ]
    return all(same)


@pytest.mark.parametrize("ahead", [False, True], ids=["when-needed", "ahead"])
def test_streamed_states_are_those_of_the_folder(artifact: Artifact, tmp_path: Path, ahead: bool) -> None:
    streamed, local = StateReader(artifact.location(), cache_bytes=0), StateReader(tmp_path / "states")
    for documents in (DOCUMENTS, [3, 5], DOCUMENTS[::-1]):
        if ahead:
            streamed.read_ahead([*documents, 6, 8])
        assert equal(streamed, local, documents)


def test_a_second_reader_finds_everything_on_the_disk(
    artifact: Artifact, tmp_path: Path, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another epoch or another rank asks for the manifest, and for nothing else."""
    local, everything = StateReader(tmp_path / "states"), list(range(len(LENGTHS)))
    gone = "AWS_ENDPOINT_URL"
    host, _, port = os.environ[gone].removeprefix("http://").partition(":")
    with FaultyProxy((host, int(port)), Faults(rate=0)) as proxy:
        monkeypatch.setenv(gone, proxy.endpoint)
        asked = []
        for _ in range(2):
            before = proxy.requests
            reader = StateReader(artifact.location(), disk=PieceCache(tmp_path / "pieces", 10**9))
            opened = proxy.requests
            assert equal(reader, local, everything)
            asked.append((opened - before, proxy.requests - opened))
    assert asked[0][1] > 0
    assert asked[1] < asked[0]
    assert asked[1][1] == 0


def test_a_piece_that_changed_on_the_disk_is_fetched_again(artifact: Artifact, tmp_path: Path) -> None:
    local, disk = StateReader(tmp_path / "states"), PieceCache(tmp_path / "pieces", 10**9)
    assert equal(StateReader(artifact.location(), disk=disk), local, DOCUMENTS)
    for path in (tmp_path / "pieces").glob("*.block"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert equal(StateReader(artifact.location(), disk=disk), local, DOCUMENTS)


def test_a_small_disk_is_never_exceeded(artifact: Artifact, tmp_path: Path) -> None:
    local, folder = StateReader(tmp_path / "states"), tmp_path / "pieces"
    largest = max(path.stat().st_size for path in (tmp_path / "states").iterdir())
    reader = StateReader(artifact.location(), cache_bytes=0, disk=PieceCache(folder, largest))
    for _ in range(2):
        for number in DOCUMENTS:
            assert equal(reader, local, [number])
            assert sum(path.stat().st_size for path in folder.glob("*.block")) <= largest


def test_what_cannot_be_fetched_ahead_is_told_when_it_is_needed(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepspec.store.reading.files._ATTEMPTS", 1)
    host, _, port = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").partition(":")
    with FaultyProxy((host, int(port)), Faults(rate=1, kinds=("reset_before",), only=r"states-0000[1-9]")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        reader = StateReader(artifact.location())
        reader.read_ahead(DOCUMENTS)
        assert equal(reader, StateReader(tmp_path / "states"), [0, 1])
        with refused(TransientError, "object storage", where="states-0000"):
            read(reader, [11])


def test_only_so_much_is_fetched_ahead_and_in_the_order_of_the_wishes() -> None:
    begun: list[int] = []
    go = threading.Event()

    def fetch(key: int) -> int:
        begun.append(key)
        assert go.wait(20)
        return key * key

    ahead = ReadAhead(fetch, ahead=2)
    ahead.want([3, 1, 4, 1, 5])
    ahead.want([9, 3])
    go.set()
    assert [ahead.take(key) for key in (3, 1, 7, 4, 5, 9)] == [9, 1, 49, 16, 25, 81]
    assert sorted(begun) == [1, 3, 4, 5, 7, 9]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    size=st.integers(1, 12),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 5),
    split=st.integers(0, 20),
)
@settings(max_examples=60, deadline=None)
def test_each_document_once_an_epoch_whatever_the_ranks(
    lengths: list[int], size: int, worlds: tuple[int, int], seed: int, split: int
) -> None:
    """A training that goes on from a step with another number of ranks, as `DraftObjective` deals the documents."""
    order = DataOrder(np.arange(len(lengths)) // 3, seed=seed, window_row_groups=2)
    seen: list[int] = []
    steps = -(-2 * len(lengths) // size)
    for step in range(steps):
        world = worlds[step >= split]
        documents = order.documents(step * size, (step + 1) * size).tolist()
        batches = pack([lengths[number] for number in documents], 64)
        dealt = [batches[rank::world] for rank in range(world)]
        assert sorted(place for rank in dealt for places in rank for place in places) == list(range(len(documents)))
        seen += documents
    for epoch in range(2):
        assert sorted(seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))
