"""What others wrote, at five borders: names in a bucket, draft directories, replies of endpoints, metrics, tables.

Whatever comes there ends in a result or in a typed error, within bounds, and nothing outside the store is written or
removed. `make campaign PART=borders` draws many more.
"""

import gzip
import json
import shutil
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.fixtures import borders

FEW = settings(max_examples=40, deadline=None, derandomize=True)
"""A fixed sample; each example of the first two borders writes files."""
MANY = settings(FEW, max_examples=150)


@FEW
@given(names=borders.NAMES)
def test_no_name_in_a_bucket_leads_out_of_the_store(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    borders.check_names(names, tmp_path_factory.mktemp("names"))


@pytest.mark.parametrize(
    "name",
    [
        "registry/../../x",
        "registry/tiny/promotions/../../../../x/1.json",
        f"tokens/{'0' * 64}/{'1' * 32}/../../../../../canary.txt",
        f"tokens/{'0' * 64}/{'1' * 32}/./canary.txt",
        f"../tokens/{'0' * 64}/manifest.1.json",
        "/canary.txt",
        "registry//x",
        "registry/\ud800",
        f"registry/tiny/promotions/{'9' * 40}.json",
        f"tokens/{'0' * 64}/checked.1.{'9' * 400}.json",
    ],
)
def test_a_name_that_was_made_to_lead_out(name: str, tmp_path: Path) -> None:
    borders.check_names([name], tmp_path)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> borders.DraftBorder:
    return borders.DraftBorder(tmp_path_factory.mktemp("border"))


@FEW
@given(change=borders.CONFIG_CHANGES)
def test_a_drafts_config_takes_no_memory_before_the_weights_agree(
    draft: borders.DraftBorder, change: dict[str, Any]
) -> None:
    draft.check_config(json.dumps({**draft.config, **change}).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 20_000},
        {"num_hidden_layers": 10**9},
        {"markov_rank": -5},
        {"markov_rank": 10**15},
        {"markov_rank": 10**8},
        {"markov_rank": "abc"},
        {"markov_rank": 5},
        {"block_size": 10**6},
        {"target_layer_ids": list(range(50_000))},
        {"target_layer_ids": [10**15]},
        {"mask_token_id": 10**9},
        {"num_anchors": 10**12},
        {"hidden_size": 10**12},
        {"vocab_size": -1},
        {"tokenizer_fingerprint": {"vocabulary": [[]]}},
        {"rope_parameters": {"rope_theta": "x"}},
        {"enable_confidence_head": 7},
    ],
    ids=str,
)
def test_a_config_that_is_not_the_weights(draft: borders.DraftBorder, change: dict[str, Any]) -> None:
    assert not draft.check_config(json.dumps({**draft.config, **change}).encode())


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 100_000,
        b'{"num_hidden_layers": 1' + b"0" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'"' + b"x" * (5 << 20) + b'"',
        b"\xff\xfe\x00",
        b"",
        b"null",
    ],
    ids=["deep", "open", "digits", "half a pair", "long", "bytes", "empty", "null"],
)
def test_a_config_that_is_no_config(draft: borders.DraftBorder, text: bytes) -> None:
    assert not draft.check_config(text)


@FEW
@given(change=borders.BYTE_CHANGES)
def test_damaged_weights_are_refused_or_whole(draft: borders.DraftBorder, change: tuple[float, bytes, float]) -> None:
    draft.check_weights(change)


@pytest.mark.parametrize("dtype", ["int64", "complex64", "float8_e4m3fn"])
def test_weights_of_a_kind_that_no_draft_has(draft: borders.DraftBorder, dtype: str) -> None:
    draft.check_dtype(dtype)


@pytest.fixture(scope="module")
def endpoint(tokenizer: Any) -> borders.EndpointBorder:
    return borders.EndpointBorder(tokenizer)


@MANY
@given(body=borders.REPLIES, status=borders.STATUSES, headers=borders.REPLY_HEADERS)
def test_no_reply_of_an_endpoint_is_an_untyped_error(
    endpoint: borders.EndpointBorder, body: bytes, status: int, headers: dict[str, str]
) -> None:
    endpoint.check(body, status, headers)


@cache
def unpacks_to_300_mb(wbits: int) -> bytes:
    packing = zlib.compressobj(1, wbits=wbits)
    parts = [packing.compress(b'{"choices": [{"text": "')]
    parts += [packing.compress(b" " * (1 << 20)) for _ in range(300)]
    return b"".join([*parts, packing.compress(b'"}]}'), packing.flush()])


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (lambda: unpacks_to_300_mb(31), "gzip"),
        (lambda: unpacks_to_300_mb(15), "deflate"),
        (lambda: gzip.compress(b"{}")[:-4], "gzip"),
        (lambda: b"no gzip", "gzip"),
        (lambda: b"anything", "br"),
        (lambda: b"[" * 100_000, "identity"),
        (lambda: b'{"error":' * 100_000, ""),
        (lambda: b"x" * (8 << 20), ""),
    ],
    ids=["gzip", "deflate", "cut", "not gzip", "brotli", "deep", "deep error", "long"],
)
@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_reply_that_was_made_to_be_too_much(
    endpoint: borders.EndpointBorder, body: Any, encoding: str, status: int
) -> None:
    endpoint.check(body(), status, {"Content-Encoding": encoding}, most_bytes=40 << 20)


def test_why_an_answer_ended_is_short_and_without_the_key(endpoint: borders.EndpointBorder) -> None:
    said = json.dumps({"choices": [{"finish_reason": {"sk-canary": ["\U00018cd6"] * 200}}]})
    endpoint.check(said.encode(), 200, {})


def test_a_reply_that_never_ends_is_given_up(endpoint: borders.EndpointBorder) -> None:
    endpoint.check_endless()


@MANY
@given(text=borders.METRICS)
def test_no_metrics_of_a_server_are_an_untyped_error(text: str) -> None:
    borders.check_metrics(text)


def test_metrics_that_unpack_to_too_much() -> None:
    borders.check_long_metrics(gzip.compress(b"# " + b"x" * (64 << 20), 1))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, borders.TableBorder]:
    return {
        "parquet": borders.TableBorder(tmp_path_factory.mktemp("border"), "parquet"),
        "arrow": borders.TableBorder(tmp_path_factory.mktemp("border"), "arrow"),
    }


@pytest.mark.full
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@settings(FEW, max_examples=20)
@given(change=borders.TABLE_CHANGES)
def test_a_damaged_table_is_refused_or_read(tables: dict[str, borders.TableBorder], kind: str, change: Any) -> None:
    """Some 20 s: each file that is refused costs the process that read it, and another one has to start."""
    tables[kind].check(change)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_that_is_not_changed_is_read(tables: dict[str, borders.TableBorder], kind: str) -> None:
    """The check itself can fail: these are read."""
    before = tables[kind].outcomes.copy()
    tables[kind].check((0, [], None, 1.0))
    assert tables[kind].outcomes - before == {"read": 2}


def test_the_sample_writes_nothing_next_to_the_store(tmp_path: Path) -> None:
    """The check itself can fail: a name that does lead out is noticed."""
    folder = tmp_path / "canary"
    folder.mkdir()
    before = borders.tree(tmp_path)
    (folder / "x").write_text("x")
    assert borders.tree(tmp_path) != before
    shutil.rmtree(folder)
