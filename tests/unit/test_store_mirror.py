"""Inputs in object storage: copied once, again when they change, and the same input wherever they lie."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deepspec.data.sources.finding import find_sources
from deepspec.errors import ArtifactError, DataError
from deepspec.inputs import local
from deepspec.recipe import load_recipe
from deepspec.store.backends import s3
from deepspec.store.download_inputs import local_copy
from deepspec.store.fingerprint import Fingerprints
from tests.fixtures.refused import refused
from tests.fixtures.s3 import S3Server

BUCKET = "deepspec-tests"


@pytest.fixture
def upload(moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, bytes], None]:
    """Put an object below a prefix of the test's own."""
    moto.enter(monkeypatch)
    return lambda name, data: s3.client().put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/{name}", Body=data)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that were downloaded."""
    keys: list[str] = []
    download = s3.download

    def counting(bucket: str, key: str, target: Path, where: str) -> None:
        keys.append(key.partition("/")[2])
        download(bucket, key, target, where)

    monkeypatch.setattr(s3, "download", counting)
    return keys


def names(folder: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("[!.]*") if path.is_file()}


def test_an_object_a_folder_and_a_pattern(
    upload: Callable[[str, bytes], None], url: str, tmp_path: Path, fetched: list[str]
) -> None:
    for name in ("chats/a.jsonl", "chats/b.jsonl", "chats/deep/c.jsonl", "chats/notes.txt", "chats2/d.jsonl"):
        upload(name, name.encode())
    one = local_copy(f"{url}/chats/a.jsonl", tmp_path, where="data.source")
    assert Path(one).read_bytes() == b"chats/a.jsonl"
    assert fetched == ["chats/a.jsonl"]
    folder = local_copy(f"{url}/chats/", tmp_path, where="data.source")
    assert names(folder) == {"a.jsonl", "b.jsonl", "deep/c.jsonl", "notes.txt"}
    pattern = local_copy(f"{url}/chats*/?.jsonl", tmp_path, where="data.source")
    assert [Path(source.path).name for source in find_sources([pattern])] == ["a.jsonl", "b.jsonl", "d.jsonl"]
    assert sorted(fetched) == sorted({*fetched})


def test_only_what_changed_comes_again_and_what_is_gone_goes(
    upload: Callable[[str, bytes], None], url: str, tmp_path: Path, fetched: list[str]
) -> None:
    upload("x/a", b"1")
    upload("x/b", b"2")
    folder = local_copy(f"{url}/x", tmp_path, where="data.source")
    fetched.clear()
    assert local_copy(f"{url}/x", tmp_path, where="data.source") == folder
    assert fetched == []
    upload("x/a", b"3")
    s3.client().delete_object(Bucket=BUCKET, Key=f"{tmp_path.name}/x/b")
    local_copy(f"{url}/x", tmp_path, where="data.source")
    assert fetched == ["x/a"]
    assert names(folder) == {"a"}
    assert Path(folder, "a").read_bytes() == b"3"


def test_the_same_content_is_the_same_input_wherever_it_lies(
    upload: Callable[[str, bytes], None], url: str, tmp_path: Path
) -> None:
    data = json.dumps({"messages": []}).encode()
    (tmp_path / "here.jsonl").write_bytes(data)
    upload("there.jsonl", data)
    copy = Path(local_copy(f"{url}/there.jsonl", tmp_path / "cache", where="data.source"))
    fingerprints = Fingerprints()
    assert fingerprints.files([copy]) == fingerprints.files([tmp_path / "here.jsonl"])


def test_a_recipe_is_read_with_local_paths_and_told_with_its_own(
    upload: Callable[[str, bytes], None], url: str, tmp_path: Path
) -> None:
    upload("chats.jsonl", b"{}\n")
    upload("eval/gsm8k.jsonl", b"{}\n")
    upload("target/config.json", b"{}")
    recipe = load_recipe(
        "tiny",
        [
            f"data.source={url}/chats.jsonl",
            f"evaluate.benchmarks={{gsm8k: {{path: '{url}/eval/gsm8k.jsonl', share: 0.5}}}}",
            f"target.path={url}/target",
        ],
    )
    here = local(recipe, tmp_path)
    assert [entry.path for entry in recipe.data.source] == [f"{url}/chats.jsonl"]
    assert Path(here.data.source[0].path).read_bytes() == b"{}\n"
    assert Path(here.evaluate.benchmarks["gsm8k"].path).read_bytes() == b"{}\n"
    assert here.evaluate.benchmarks["gsm8k"].share == 0.5
    assert Path(here.target.path, "config.json").is_file()
    other = object()
    assert local(other, tmp_path) is other


@pytest.mark.parametrize("name", ["none.jsonl", "chat", "chats/*.parquet"])
def test_what_names_nothing_is_told_with_the_field(
    upload: Callable[[str, bytes], None], url: str, tmp_path: Path, name: str
) -> None:
    upload("chats/a.jsonl", b"")
    with refused(DataError, "object", where=f"data.source {url}/{name}"):
        local_copy(f"{url}/{name}", tmp_path, where="data.source")


def test_a_missing_bucket_and_a_malformed_url_are_told(upload: Callable[[str, bytes], None], tmp_path: Path) -> None:
    with refused(ArtifactError, "no-such-bucket", where="data.source s3://no-such-bucket/x"):
        local_copy("s3://no-such-bucket/x", tmp_path, where="data.source")
    for malformed in ("s3://", "s3://bucket", "s3:///key"):
        with refused(DataError, "s3://bucket/key", where="data.source"):
            local_copy(malformed, tmp_path, where="data.source")
