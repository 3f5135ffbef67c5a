"""A promoted draft as a bundle, and published: to a hub and to a bucket, again, half-way, and refused."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepspec.bundle.index import INDEX_FILE, flaw_in, read_index
from deepspec.bundle.publish import Published, publish
from deepspec.bundle.write import write
from deepspec.errors import ArtifactError, BadArgument, IncompatibleDraft, RecipeError, TransientError
from deepspec.export.side_files import check_side_files
from deepspec.registry import draft_export
from deepspec.store import open_store
from tests.e2e.conftest import Home
from tests.fixtures.hub_server import TOKEN, Hub, hub_server
from tests.fixtures.refused import refused
from tests.fixtures.s3 import S3Server, bucket_client

CHAMPION = "models:/tiny@champion"


@pytest.fixture(scope="module")
def bundle(cold: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of tiny's champion, for vLLM."""
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    store = open_store(str(cold.path / "store"))
    return write(CHAMPION, "vllm", out, str(cold.path / "tiny" / "target"), home=cold.path, store=store)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, which this process may write to."""
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # Chunks go to storage of another protocol, which the fixture does not speak.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield server


@pytest.fixture
def sent(cold: Home, moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`publish` with a store and an object storage."""
    moto.enter(monkeypatch)
    store = open_store(str(cold.path / "store"))

    def call(name: str | Path, destination: str, **more: Any) -> Published:
        given = {"format_name": "vllm", "target": "", **more}
        return publish(str(name), destination, home=cold.path, store=store, **given)

    return call


def test_a_bundle_is_a_draft_that_its_format_accepts_with_an_index_of_every_byte(bundle: Path) -> None:
    index = read_index(bundle)
    assert draft_export.check("vllm", bundle) == []
    assert flaw_in(bundle, index) is None
    assert index.promotion is not None
    assert index.target.fingerprint is not None
    for script in (bundle / "serving").glob("*.sh"):
        subprocess.run(["/bin/sh", "-n", str(script)], check=True)
    for file in bundle.rglob("*.json"):
        assert "NaN" not in file.read_text()
    assert "null" not in (bundle / "serving" / "sglang-temperatures.json").read_text()
    shutil.copytree(bundle / "serving", bundle.parent / "serving")
    assert check_side_files(bundle.parent / "serving", index.draft.num_draft_tokens) == []


def test_the_card_is_one_that_a_hub_reads(bundle: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(bundle / "README.md")
    assert card.data.license == "unknown"
    assert card.data.library_name == "vllm"
    assert "speculative-decoding" in card.data.tags
    text = (bundle / "README.md").read_text()
    for heading in ("## Training data", "## Evaluation", "## Calibration", "## Files", "## Limits", "## Lineage"):
        assert heading in text
    index = read_index(bundle)
    assert index.draft.digest in text
    for figure in (line for line in text.splitlines() if line.startswith("![")):
        assert (bundle / figure.rsplit("(", 1)[1].rstrip(")")).is_file()


def test_a_target_that_has_changed_is_refused(cold: Home, tmp_path: Path) -> None:
    moved = shutil.copytree(cold.path / "tiny" / "target", tmp_path / "target")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "rope_theta": 1.0}))
    store = open_store(str(cold.path / "store"))
    with refused(IncompatibleDraft, "trained for", where="target"):
        write(CHAMPION, "vllm", tmp_path / "out", str(moved), home=cold.path, store=store)
    assert not (tmp_path / "out").exists()


def test_a_hub_gets_one_commit_and_nothing_the_second_time(sent: Any, hub: Hub, bundle: Path) -> None:
    done = sent(CHAMPION, "mine/draft", target="org/target")
    assert done.changed
    assert hub.commits == 1
    assert hub.private == {"mine/draft": True}
    files = hub.repositories["mine/draft"]
    assert files.keys() == {*done.bundle.files, INDEX_FILE}
    assert files["model.safetensors"] == (bundle / "model.safetensors").read_bytes()
    assert b"base_model: org/target" in files["README.md"]
    assert not sent(CHAMPION, "mine/draft", target="org/target").changed
    assert hub.commits == 1
    hub.repositories["mine/draft"]["own.txt"] = b"someone's"
    sent(bundle, "mine/draft")
    assert hub.commits == 2
    assert hub.repositories["mine/draft"]["own.txt"] == b"someone's"
    assert hub.repositories["mine/draft"].keys() == {*read_index(bundle).files, INDEX_FILE, "own.txt"}


@pytest.mark.parametrize(
    ("call", "status", "error"),
    [
        ("repos/create", 401, "PublishingRefused"),
        ("repos/create", 403, "PublishingRefused"),
        ("preupload", 403, "PublishingRefused"),
        ("lfs/objects", 403, "PublishingRefused"),
        ("commit/main", 409, "PublishingRefused"),
        ("commit/main", 500, "TransientError"),
    ],
)
def test_a_hub_that_refuses_is_named_in_a_sentence_without_the_token(
    sent: Any, hub: Hub, bundle: Path, call: str, status: int, error: str
) -> None:
    hub.refuse = {call: status}
    with pytest.raises((ArtifactError, TransientError, Exception)) as caught:
        sent(bundle, "mine/draft")
    assert type(caught.value).__name__ == error
    assert str(status) in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert caught.value.remedy  # type: ignore[attr-defined]
    hub.refuse = {}
    assert sent(bundle, "mine/draft").changed
    assert hub.repositories["mine/draft"].keys() == {*read_index(bundle).files, INDEX_FILE}


def test_a_hub_that_does_not_answer_may_be_asked_again(
    sent: Any, hub: Hub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransientError, match="does not answer"):
        sent(bundle, "mine/draft")


def test_in_a_bucket_the_index_comes_last_and_names_a_whole_bundle(
    sent: Any, moto: S3Server, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspec.store.backends.s3 import S3Backend

    url, client = f"s3://{moto.bucket}/mine/tiny", bucket_client(moto)

    def keys() -> list[str]:
        found = client.list_objects_v2(Bucket=moto.bucket, Prefix="mine/tiny/").get("Contents", [])
        return [str(one["Key"]) for one in found]

    def broken(self: S3Backend, path: str, data: bytes) -> None:
        raise TransientError("the network is gone.")

    with monkeypatch.context() as patch:
        patch.setattr(S3Backend, "put", broken)
        with pytest.raises(TransientError):
            sent(bundle, url)
    assert f"mine/tiny/{INDEX_FILE}" not in keys()
    done = sent(bundle, url)
    assert done.changed
    place = done.where.rsplit("/", 1)[1]
    assert {*keys()} == {
        f"mine/tiny/{INDEX_FILE}",
        f"mine/tiny/{place}/{INDEX_FILE}",
        *(f"mine/tiny/{place}/{name}" for name in done.bundle.files),
    }
    assert not sent(bundle, url).changed
    client.delete_object(Bucket=moto.bucket, Key=f"mine/tiny/{place}/config.json")
    assert sent(bundle, url).changed


def test_what_may_not_be_published_is_refused_before_anything_is_sent(
    sent: Any, hub: Hub, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("draft", "a/b/c", "/tmp/x/y", "s3://deepspec-tests"):
        with refused(BadArgument, where="DESTINATION"):
            sent(bundle, place)
    with refused(RecipeError, where="DESTINATION"):
        sent(bundle, "s3://B/mine")
    changed = shutil.copytree(bundle, tmp_path / "changed")
    (changed / "config.json").write_text("{}")
    with refused(IncompatibleDraft, "config.json", where="changed"):
        sent(changed, "mine/draft")
    never = shutil.copytree(bundle, tmp_path / "never")
    index = json.loads((never / INDEX_FILE).read_text())
    (never / INDEX_FILE).write_text(json.dumps({**index, "promotion": None}))
    with refused(IncompatibleDraft, "never promoted", where="never"):
        sent(never, "mine/draft")
    assert hub.commits == 0
    assert sent(never, "mine/draft", unpromoted=True).changed
    monkeypatch.delenv("HF_TOKEN")
    with refused(BadArgument, where="HF_TOKEN"):
        sent(bundle, "mine/draft")


def test_a_bucket_that_is_not_there_is_named(sent: Any, bundle: Path) -> None:
    with pytest.raises(ArtifactError, match="no-such-bucket"):
        sent(bundle, "s3://no-such-bucket/mine")
