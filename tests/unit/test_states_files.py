"""Folders of states: written, read back, damaged, and captured from a real tiny target."""

import errno
import functools
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from deepspec.bench.states import RandomFiles, Sizes
from deepspec.data.tokens.encode import mask_to_runs
from deepspec.errors import ArtifactError, DataError, StoreFull
from deepspec.states.capture.survey import Survey
from deepspec.states.capture.writer import RunTarget, gather_shards, write_shards, write_states
from deepspec.states.config import Config
from deepspec.states.format.layout import has_final
from deepspec.states.live import LiveStates
from deepspec.states.reader import StateReader
from deepspec.store import Ingredients, open_store
from deepspec.targets.model import Target
from tests.fixtures.refused import refused
from tests.fixtures.s3 import S3Server
from tests.fixtures.states import read
from tests.fixtures.targets import tiny_qwen3

torch.set_num_threads(1)

VOCAB = 61
LENGTHS = (5, 40, 3, 17, 90, 1, 22, 8, 31, 64, 12, 12)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    path = tiny_qwen3(tmp_path_factory.mktemp("target"), vocab_size=VOCAB)
    return Target.load(path, layer_ids=(-1, 1, 2))


def write_tokens_file(path: Path, lengths: tuple[int, ...] = LENGTHS) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    rows = [(random.integers(0, VOCAB, size=n, dtype=np.int32), np.arange(n) >= min(n // 2, n - 1)) for n in lengths]
    table = pa.table(
        {
            "id": [f"id{number}" for number in range(len(rows))],
            "input_ids": pa.array([ids for ids, _ in rows], pa.list_(pa.int32())),
            "mask_runs": pa.array([mask_to_runs(mask) for _, mask in rows], pa.list_(pa.int32())),
        }
    )
    pq.write_table(table, path, write_page_checksum=True)
    return rows


def capture(folder: Path, target: Any, lengths: tuple[int, ...] = LENGTHS, **config: Any) -> dict[str, Any]:
    folder.mkdir()
    write_tokens_file(folder.parent / "train.parquet", lengths)
    settings = Config(**{"shard_tokens": 128, "row_group_tokens": 48, **config})
    return write_states(folder.parent / "train.parquet", folder, origin=RunTarget(target, 100), config=settings)


@functools.cache
def hugging_faces(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def alone(target: Target, ids_T: np.ndarray) -> tuple[Tensor, Tensor]:
    """What Hugging Face's own forward gives for one document: states and final, float32."""
    model = hugging_faces(target.spec.path)
    with torch.inference_mode():
        output = model(torch.from_numpy(ids_T).long()[None], output_hidden_states=True)
    hidden = output.hidden_states
    return torch.stack([hidden[layer + 1][0] for layer in target.layer_ids], dim=1), hidden[-1][0]


def test_states_are_those_of_each_document_alone(tmp_path: Path, target: Target) -> None:
    counts = capture(tmp_path / "states", target)
    rows = write_tokens_file(tmp_path / "train.parquet")
    reader = StateReader(tmp_path / "states")
    assert (reader.num_documents, reader.num_tokens) == (len(LENGTHS), sum(LENGTHS))
    assert counts["documents"] == len(LENGTHS)
    assert counts["tokens"] == sum(LENGTHS)
    assert counts["supervised_tokens"] == sum(int(mask.sum()) for _, mask in rows)
    assert counts["shards"] > 2
    assert reader.layer_ids == (-1, 1, 2)
    order = [4, 0, 11, 7, 2]
    batch = read(reader, order)
    assert batch.document_ids == tuple(order)
    assert batch.lengths == tuple(LENGTHS[number] for number in order)
    start = 0
    for number in order:
        ids, mask = rows[number]
        piece = slice(start, start := start + len(ids))
        assert batch.input_ids_T[piece].tolist() == ids.tolist()
        assert batch.loss_mask_T[piece].tolist() == mask.tolist()
        states_TLD, final_TD = alone(target, ids)
        # Stored as bfloat16: 8 bits of mantissa; padding and batching add float32 rounding only.
        torch.testing.assert_close(batch.states_TLD[piece].float(), states_TLD, rtol=2**-8, atol=1e-4)
        kept = torch.from_numpy(has_final(mask))
        torch.testing.assert_close(batch.final_TD[piece][kept].float(), final_TD[kept], rtol=2**-8, atol=1e-4)
        assert batch.final_TD[piece][~kept].isnan().all()


def test_bytes_are_a_function_of_content(tmp_path: Path, target: Target) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        capture(tmp_path / name / "states", target)
    files = sorted(path.name for path in (tmp_path / "one/states").iterdir())
    assert files[0] == "documents.parquet"
    assert files[-1] == "states.json"
    for name in files:
        assert (tmp_path / "one/states" / name).read_bytes() == (tmp_path / "two/states" / name).read_bytes()


def test_the_batch_budget_decides_no_byte(tmp_path: Path, target: Target) -> None:
    capture(tmp_path / "states", target)
    config = Config(shard_tokens=128, row_group_tokens=48)
    for name, batch_tokens in (("small", 3), ("large", 4096)):
        (tmp_path / name).mkdir()
        origin = RunTarget(target, batch_tokens)
        write_states(tmp_path / "train.parquet", tmp_path / name, origin=origin, config=config)
        for path in (tmp_path / "states").iterdir():
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes(), path.name


def test_any_parquet_reader_can_read_them(tmp_path: Path, target: Target) -> None:
    capture(tmp_path / "states", target)
    table = pq.read_table(tmp_path / "states/states-00000.parquet")
    assert table.schema.names == ["document", "input_id", "supervised", "states", "final"]
    documents = table.column("document").to_pylist()
    assert documents[:6] == [0] * 5 + [1]
    found = table.column("final").to_pylist()[:5]
    assert found[:2] == [None, None]  # not supervised
    final_TD = torch.frombuffer(bytearray(b"".join(found[2:])), dtype=torch.bfloat16).view(3, 32)
    assert torch.equal(final_TD, read(StateReader(tmp_path / "states"), [0]).final_TD[2:])


def test_row_groups_hold_whole_documents_and_shards_whole_row_groups(tmp_path: Path, target: Target) -> None:
    capture(tmp_path / "states", target)
    seen: list[int] = []
    for path in sorted((tmp_path / "states").glob("states-*.parquet")):
        file = pq.ParquetFile(path)
        assert file.metadata.num_rows <= 128
        for group in range(file.num_row_groups):
            documents = file.read_row_group(group, columns=["document"]).column(0).to_pylist()
            whole = list(dict.fromkeys(documents))
            assert len(documents) == sum(LENGTHS[number] for number in whole)
            assert len(documents) <= 48 or len(whole) == 1
            seen += whole
    assert seen == list(range(len(LENGTHS)))


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_smaller_codecs_come_close(tmp_path: Path, target: Target, codec: str) -> None:
    capture(tmp_path / "states", target, codec=codec)
    (tmp_path / "exact").mkdir()
    capture(tmp_path / "exact/states", target)
    ours = read(StateReader(tmp_path / "states"), [1, 9])
    exact = read(StateReader(tmp_path / "exact/states"), [1, 9])
    for name in ("states_TLD", "final_TD"):
        # NaN where there is no final state, in both.
        difference = (getattr(ours, name).float() - getattr(exact, name).float()).nan_to_num()
        norm = getattr(exact, name).float().nan_to_num().norm()
        assert difference.norm() / norm < {"int8": 0.006, "int4": 0.1}[codec]
    assert torch.equal(ours.final_TD.isnan(), exact.final_TD.isnan())
    assert torch.equal(ours.input_ids_T, exact.input_ids_T)


def test_tokens_are_packed_once(tmp_path: Path, target: Target) -> None:
    capture(tmp_path / "states", target)
    config = Config(shard_tokens=128, row_group_tokens=48)
    for source in (StateReader(tmp_path / "states"), LiveStates(tmp_path / "train.parquet", target, config)):
        tokens = source.tokens([3, 8])
        full = source.with_states(tokens)
        assert full.input_ids_T is tokens.input_ids_T
        assert full.loss_mask_T is tokens.loss_mask_T
        assert full.states_TLD.shape == (LENGTHS[3] + LENGTHS[8], 3, 32)


def test_a_small_cache_reads_the_same(tmp_path: Path, target: Target) -> None:
    capture(tmp_path / "states", target, lengths=tuple([9] * 60), row_group_tokens=9)
    small, large = StateReader(tmp_path / "states", cache_bytes=0), StateReader(tmp_path / "states")
    for _ in range(2):
        order = [7 * i % 60 for i in range(60)]
        assert torch.equal(read(small, order).states_TLD, read(large, order).states_TLD)


@pytest.mark.parametrize("name", ["states-00001.parquet", "documents.parquet"])
def test_a_flipped_bit_is_found(tmp_path: Path, target: Target, name: str) -> None:
    capture(tmp_path / "states", target)
    path = tmp_path / "states" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    with refused(ArtifactError, where=name):
        read(StateReader(tmp_path / "states"), range(len(LENGTHS)))


@pytest.mark.parametrize("damage", ["truncated", "missing", "newer", "other"])
def test_an_incomplete_folder_is_refused(tmp_path: Path, target: Target, damage: str) -> None:
    capture(tmp_path / "states", target)
    shard, description = tmp_path / "states/states-00001.parquet", tmp_path / "states/states.json"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "missing":
        description.unlink()
    elif damage == "newer":
        description.write_text(description.read_text().replace('"format": 2', '"format": 3'))
    else:
        description.write_text(description.read_text().replace('"hidden_size": 32', '"hidden_size": 64'))
    named = ("format 3", "up to 2") if damage == "newer" else ()
    with refused(ArtifactError, *named, where="states"):
        read(StateReader(tmp_path / "states"), range(len(LENGTHS)))


def test_states_that_are_no_numbers_name_layer_and_row(tmp_path: Path, target: Target) -> None:
    class Broken:
        """The real target, but for one number."""

        spec, layer_ids, device = target.spec, target.layer_ids, target.device

        def forward(self, input_ids_BQ: Tensor) -> Any:
            output = target.forward(input_ids_BQ)
            if input_ids_BQ.shape[1] == 17:  # document 3
                output.states_BQLD[0, 6, 1, 3] = float("nan")
            return output

    with refused(DataError, "layer 1", "position 6", where="row 3"):
        capture(tmp_path / "states", Broken(), lengths=(5, 40, 3, 17))


def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path, target: Target) -> None:
    table = pa.table({"input_ids": [[1, 2, 3]], "mask_runs": [[1, 1]]})
    pq.write_table(table, tmp_path / "train.parquet")
    with refused(DataError, "mask", "2 of 3", where="train.parquet:0"):
        write_states(tmp_path / "train.parquet", tmp_path, origin=RunTarget(target), config=Config())


def test_a_full_disk_is_named(tmp_path: Path, target: Target) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, hard))  # writing beyond it fails like a full disk
    try:
        with refused(StoreFull, where="states"):
            capture(tmp_path / "states", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("sizes", [(200, 60), (90, 90), (10, 10), (10_000, 64)], ids=str)
def test_live_states_are_those_of_files_in_the_same_order(
    tmp_path: Path, target: Target, sizes: tuple[int, int]
) -> None:
    shard_tokens, row_group_tokens = sizes
    config = Config(shard_tokens=shard_tokens, row_group_tokens=row_group_tokens)
    write_tokens_file(tmp_path / "train.parquet", LENGTHS)
    (tmp_path / "states").mkdir()
    write_states(tmp_path / "train.parquet", tmp_path / "states", origin=RunTarget(target, 100), config=config)
    reader = StateReader(tmp_path / "states")
    live = LiveStates(tmp_path / "train.parquet", target, config, batch_tokens=100)
    for seed in (0, 1):
        assert live.order(seed).documents(0, 30).tolist() == reader.order(seed).documents(0, 30).tolist()
    documents = [3, 0, 2]
    found, expected = read(live, documents), read(reader, documents)
    assert (found.lengths, found.document_ids) == (expected.lengths, expected.document_ids)
    assert torch.equal(found.input_ids_T, expected.input_ids_T)
    assert torch.equal(found.loss_mask_T, expected.loss_mask_T)
    assert torch.equal(found.states_TLD, expected.states_TLD)
    kept = ~expected.final_TD.isnan()
    assert torch.equal(found.final_TD[kept], expected.final_TD[kept])


class Counting:
    """The real target, which counts its forwards and may fail at one of them."""

    def __init__(self, target: Target, fails_at: int | None = None) -> None:
        self.spec, self.layer_ids, self.device = target.spec, target.layer_ids, target.device
        self.forwards = 0
        self._target = target
        self._fails_at = fails_at

    def forward(self, input_ids_BQ: Tensor) -> Any:
        self.forwards += 1
        if self.forwards == self._fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._target.forward(input_ids_BQ)


def resumable(folder: Path, target: Any) -> dict[str, Any]:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return write_states(
        folder.parent / "train.parquet",
        folder / "out",
        origin=RunTarget(target, 100),
        config=Config(shard_tokens=128, row_group_tokens=48),
        work=folder / "work",
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_capture_goes_on_with_unfinished_shards(tmp_path: Path, target: Target) -> None:
    write_tokens_file(tmp_path / "train.parquet")
    whole = Counting(target)
    counts = resumable(tmp_path / "whole", whole)
    with refused(StoreFull, where="cut") as caught:
        resumable(tmp_path / "cut", Counting(target, fails_at=whole.forwards - 1))
    assert "finished shards" in str(caught.value.remedy)
    kept = sorted(path.name for path in (tmp_path / "cut/work").glob("*.parquet"))
    assert 0 < len(kept) < counts["shards"]
    assert not list((tmp_path / "cut/work").glob(".*"))  # nothing half-written
    rest = Counting(target)
    assert resumable(tmp_path / "cut", rest) == counts
    assert rest.forwards < whole.forwards
    assert content(tmp_path / "cut/out") == content(tmp_path / "whole/out")
    # Once more: nothing is left to be captured.
    (tmp_path / "cut/out").rename(tmp_path / "cut/before")
    nothing = Counting(target)
    assert resumable(tmp_path / "cut", nothing) == counts
    assert nothing.forwards == 0


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no record"])
def test_a_finished_shard_that_is_damaged_is_made_again(tmp_path: Path, target: Target, damage: str) -> None:
    write_tokens_file(tmp_path / "train.parquet")
    counts = resumable(tmp_path / "states", target)
    expected = content(tmp_path / "states/out")
    shard = tmp_path / "states/work/states-00001.parquet"
    (tmp_path / "states/out").rename(tmp_path / "before")
    data = bytearray(shard.read_bytes())
    shard.unlink()  # it is the same file as in `before`
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    shard.write_bytes(data[:-1] if damage == "truncated" else data)
    if damage == "no record":
        (tmp_path / "states/work/states-00001.parquet.json").unlink()
    again = Counting(target)
    assert resumable(tmp_path / "states", again) == counts
    assert again.forwards > 0
    assert content(tmp_path / "states/out") == expected


def test_shards_can_be_made_in_any_order(tmp_path: Path, target: Target) -> None:
    write_tokens_file(tmp_path / "train.parquet")
    resumable(tmp_path / "whole", target)
    config = Config(shard_tokens=128, row_group_tokens=48)
    survey = Survey.of(tmp_path / "train.parquet", config)
    origin = RunTarget(target, 100)
    numbers = list(range(survey.places.num_shards))
    for number in numbers[::-1]:
        write_shards(survey, tmp_path / "work", [number], origin=origin, config=config)
    (tmp_path / "out").mkdir()
    gather_shards(survey, tmp_path / "work", tmp_path / "out", layer_ids=(-1, 1, 2), hidden_size=32, config=config)
    assert content(tmp_path / "out") == content(tmp_path / "whole/out")


READ = """
import sys
from pathlib import Path
from deepspec.states.order import pack
from deepspec.states.reader import StateReader

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def read(folder):
    reader = StateReader(folder, cache_bytes=1 << 20)
    documents = reader.order(0).documents(0, reader.num_documents).tolist()
    for places in pack([int(reader.num_tokens_of[number]) for number in documents], 512):
        reader.with_states(reader.tokens([documents[place] for place in places]))
    return reader.num_tokens

small = read(sys.argv[1]), peak()
large = read(sys.argv[2]), peak()
print(large[0] / small[0], (large[1] - small[1]) / 1024)
"""


@pytest.mark.parametrize("codec", ["bf16", pytest.param("int4", marks=pytest.mark.full)])
def test_memory_is_flat_in_the_data(tmp_path: Path, codec: str) -> None:
    """Fifty times more is read within 64 MiB of the same peak; all of it would be 92 MiB more."""
    folders = []
    for name, tokens in (("small", 3000), ("large", 150_000)):
        sizes = Sizes(tokens, 64, 4, 1, "random", "cpu", str(tmp_path / name))
        folders.append(str(RandomFiles(sizes, codec, row_group_tokens=512).folder))
    done = subprocess.run(
        [sys.executable, "-c", READ, *folders],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    times, grown_mib = map(float, done.stdout.split())
    assert times == 50
    assert grown_mib < 64


def test_states_in_a_bucket_are_read_by_range_and_checked(
    tmp_path: Path, target: Target, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto.enter(monkeypatch)
    store = open_store(f"s3://{moto.bucket}/{tmp_path.name}", cache=tmp_path / "cache")
    with store.write("states", Ingredients("states", 1, {}, {}), {}) as writing:
        write_tokens_file(tmp_path / "train.parquet")
        config = Config(shard_tokens=128, row_group_tokens=48, codec="int8")
        write_states(tmp_path / "train.parquet", writing.directory, origin=RunTarget(target, 100), config=config)
    local = StateReader(writing.artifact.directory())
    streamed = StateReader(writing.artifact.location(), cache_bytes=0)
    order = [4, 0, 11, 7, 2, 9]
    found, expected = read(streamed, order), read(local, order)
    assert torch.equal(found.loss_mask_T, expected.loss_mask_T)
    assert torch.equal(found.states_TLD, expected.states_TLD)
    assert torch.equal(found.final_TD.isnan(), expected.final_TD.isnan())
    assert torch.equal(found.final_TD.nan_to_num(), expected.final_TD.nan_to_num())


def test_a_batch_that_is_held_is_never_written_over(tmp_path: Path, target: Target) -> None:
    capture(tmp_path / "states", target)
    reader = StateReader(tmp_path / "states")
    held = [read(reader, [number]) for number in range(len(LENGTHS))]
    views = [batch.states_TLD[1:] for batch in held]
    expected = [batch.states_TLD.clone() for batch in held]
    del held
    for number in (*range(len(LENGTHS)), *range(len(LENGTHS))):
        assert torch.equal(read(reader, [number]).states_TLD, expected[number])
    for view, tensor in zip(views, expected, strict=True):
        assert torch.equal(view, tensor[1:])
    place = read(reader, [4]).states_TLD.data_ptr()
    assert place in [
        read(reader, [4]).states_TLD.data_ptr() for _ in range(4)
    ]  # and one that is not held is used again


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_the_page_is_followed_with_pyarrow_alone(tmp_path: Path, target: Target, codec: str) -> None:
    """As the docstring of `states.layout` says, without our code."""
    capture(tmp_path / "states", target, codec=codec)
    layout = json.loads((tmp_path / "states/states.json").read_text())
    assert set(layout["shards"][0]) == {"file", "num_documents", "num_tokens", "num_blocks"}
    layers, size = len(layout["layer_ids"]), layout["hidden_size"]
    documents = pq.read_table(tmp_path / "states/documents.parquet").to_pylist()
    number, at = 7, 2
    place = documents[number]
    file = pq.ParquetFile(
        tmp_path / "states" / layout["shards"][place["shard"]]["file"], page_checksum_verification=True
    )
    row = file.read_row_group(place["block"]).slice(place["first_row"] + at, 1)
    assert row["document"][0].as_py() == place["document"] == number

    def bfloat16(column: pa.ChunkedArray) -> np.ndarray:
        return (np.frombuffer(column[0].as_py(), dtype="<u2").astype("<u4") << 16).view("<f4")

    if codec == "bf16":
        values = bfloat16(row["states"]).reshape(layers, size)
    else:
        levels = np.frombuffer(row["states"][0].as_py(), dtype="i1").reshape(-1, 32)  # no larger group divides 32
        values = levels * bfloat16(row["states_scale"])[:, None]
        index = np.frombuffer(row["states_peak_index"][0].as_py(), dtype="u1").astype(np.int64)
        np.put_along_axis(values, index.reshape(-1, 2), bfloat16(row["states_peak"]).reshape(-1, 2), axis=1)
        values = values.reshape(layers, size)
    expected = read(StateReader(tmp_path / "states"), [number]).states_TLD[at].float().numpy()
    # The product of a level and a scale is rounded to bfloat16 by ours.
    np.testing.assert_allclose(values, expected, rtol={"bf16": 0, "int8": 2**-8}[codec])
    supervised = file.read_row_group(place["block"], ["supervised"]).column(0).to_numpy()
    finals = file.read_row_group(place["block"], ["final"]).column(0).is_valid().to_numpy()
    own = slice(place["first_row"], place["first_row"] + place["num_tokens"])
    behind = np.concatenate([[False], supervised[own][:-1]])
    assert finals[own].tolist() == (supervised[own] | behind).tolist()
