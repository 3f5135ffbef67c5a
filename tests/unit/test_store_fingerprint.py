"""Fingerprints of inputs from outside: by content, whatever the memo remembers."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from deepspec.errors import DataError
from deepspec.store import fingerprint
from deepspec.store.fingerprint import Fingerprints, model_files
from deepspec.store.reading import pieces
from tests.fixtures.refused import refused

OLD_NS = 1_600_000_000_000_000_000


def aged(path: Path, data: bytes) -> Path:
    """A file that was modified long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are really read from here on."""
    seen: list[Path] = []
    sha256_of = pieces.sha256_of

    def look(path: Path) -> str:
        seen.append(path)
        return sha256_of(path)

    monkeypatch.setattr(fingerprint, "sha256_of", look)
    return seen


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once: their change time cannot be set back."""
    monkeypatch.setattr(fingerprint, "_SETTLED_NS", 0)


def test_a_fingerprint_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    path = aged(tmp_path / "rows.jsonl", b"content")
    assert Fingerprints().file(path) == hashlib.sha256(b"content").hexdigest()


def test_a_moved_but_equal_file_has_the_same_fingerprint(tmp_path: Path) -> None:
    prints = Fingerprints(tmp_path / "memo.json")
    path = aged(tmp_path / "a" / "rows.jsonl", b"content")
    before = prints.file(path), prints.files([path], within=path.parent)
    moved = tmp_path / "elsewhere" / "rows.jsonl"
    moved.parent.mkdir()
    path.rename(moved)
    assert (prints.file(moved), prints.files([moved], within=moved.parent)) == before
    copied = aged(tmp_path / "other" / "rows.jsonl", b"content")
    assert prints.file(copied) == before[0]
    link = tmp_path / "link"
    link.symlink_to(moved)
    assert prints.file(link) == before[0]


@pytest.mark.usefixtures("settled")
def test_only_what_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = tmp_path / "home" / "memo.json"
    paths = [aged(tmp_path / name, name.encode()) for name in "abc"]
    prints = Fingerprints(memo)
    first = prints.files(paths)
    prints.save()
    seen = reads(monkeypatch)
    assert Fingerprints(memo).files(paths) == first
    assert seen == []
    paths[1].write_bytes(b"B")
    assert Fingerprints(memo).files(paths) != first
    assert seen == [paths[1]]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("how", ["in place", "replaced", "times restored", "replaced, times restored"])
def test_the_memo_is_not_fooled_by_an_edit_of_equal_size(tmp_path: Path, how: str) -> None:
    path = aged(tmp_path / "rows.jsonl", b"content 1")
    prints = Fingerprints(tmp_path / "memo.json")
    before = prints.file(path)
    if "replaced" in how:
        aged(tmp_path / "new", b"content 2").replace(path)
    else:
        with path.open("r+b") as file:
            file.write(b"content 2")
    if "restored" in how:
        os.utime(path, ns=(OLD_NS, OLD_NS))
    assert prints.file(path) == hashlib.sha256(b"content 2").hexdigest() != before


def test_a_file_that_was_modified_just_now_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next edit may fall into the same tick of the clock: same size, same times, other content."""
    path = tmp_path / "rows.jsonl"
    prints = Fingerprints(tmp_path / "memo.json")
    seen = reads(monkeypatch)
    monkeypatch.setattr(fingerprint, "_identity", lambda _: [1, 2, 3, OLD_NS, 2**62])
    for content in (b"content 1", b"content 2", b"content 3"):
        path.write_bytes(content)
        assert prints.file(path) == hashlib.sha256(content).hexdigest()
    assert len(seen) == 3
    # The counterpart: an old file is remembered.
    monkeypatch.setattr(fingerprint, "_identity", lambda _: [1, 2, 3, OLD_NS, OLD_NS])
    assert prints.file(path) == prints.file(path)
    assert len(seen) == 4


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = aged(tmp_path / "rows.jsonl", b"content")
    sha256_of = pieces.sha256_of

    def edited_meanwhile(asked: Path) -> str:
        digest = sha256_of(asked)
        asked.write_bytes(b"longer content")
        return digest

    monkeypatch.setattr(fingerprint, "sha256_of", edited_meanwhile)
    prints = Fingerprints()
    with refused(DataError, "changed", where="rows.jsonl"):
        prints.file(path)
    monkeypatch.setattr(fingerprint, "sha256_of", sha256_of)
    assert prints.file(path) == hashlib.sha256(b"longer content").hexdigest()


def test_order_content_and_names_count_where_they_should(tmp_path: Path) -> None:
    prints = Fingerprints()
    one, two, three = (aged(tmp_path / name, data) for name, data in [("a", b"1"), ("b", b"2"), ("c", b"1")])
    assert prints.files([one, two]) != prints.files([two, one])
    assert prints.files([one, two]) == prints.files([three, two])
    assert prints.files([one, two], within=tmp_path) != prints.files([three, two], within=tmp_path)
    assert prints.files([one]) != prints.files([one, one])
    # Content must not flow over from one file to the next.
    four, five = aged(tmp_path / "d", b"12"), aged(tmp_path / "e", b"")
    assert prints.files([one, two]) != prints.files([four, five])


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "harm",
    [
        lambda data: b"",
        lambda data: b"[]",
        lambda data: b"{}",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"0", b"1"),
        lambda data: json.dumps({"rows.jsonl": ["not", "ours"]}).encode(),
    ],
    ids=["empty", "list", "no checksum", "half", "flipped digits", "another's"],
)
def test_a_damaged_memo_costs_time_only(tmp_path: Path, harm: "object") -> None:
    memo = tmp_path / "memo.json"
    path = aged(tmp_path / "rows.jsonl", b"content")
    prints = Fingerprints(memo)
    expected = prints.file(path)
    prints.save()
    assert callable(harm)
    memo.write_bytes(harm(memo.read_bytes()))
    again = Fingerprints(memo)
    assert again.file(path) == expected
    again.save()
    assert Fingerprints(memo).file(path) == expected


@pytest.mark.usefixtures("settled")
def test_a_memo_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    prints = Fingerprints(tmp_path / "file" / "memo.json")
    prints.file(aged(tmp_path / "rows.jsonl", b"content"))
    prints.save()
    assert "could not be remembered" in caplog.text


@pytest.mark.parametrize("name", ["none", "folder", "pipe"])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with refused(DataError, where=str(tmp_path / name)):
        Fingerprints().file(tmp_path / name)


def test_a_models_files_are_those_that_decide_what_it_computes(tmp_path: Path) -> None:
    chosen = {"config.json", "model-1.safetensors", "tokenizer.model", "chat_template.jinja", "merges.txt"}
    for name in chosen | {"README.md", "optimizer.bin", ".gitattributes"}:
        aged(tmp_path / "model" / name, name.encode())
    aged(tmp_path / "model" / "runs" / "other.json", b"")
    found = model_files(tmp_path / "model")
    assert [path.name for path in found] == sorted(chosen)
    alone = Fingerprints().files(found, within=tmp_path / "model")
    more = aged(tmp_path / "model" / "additional_chat_templates" / "chat_template.jinja", b"{{ tools }}")
    found = model_files(tmp_path / "model")
    assert more in found
    before = Fingerprints().files(found, within=tmp_path / "model")
    assert before != alone
    for path in found:
        data = path.read_bytes()
        path.write_bytes(data[::-1])
        assert Fingerprints().files(found, within=tmp_path / "model") != before
        path.write_bytes(data)
    assert Fingerprints().files(found, within=tmp_path / "model") == before
    with refused(DataError, "model folder", where=str(tmp_path / "none")):
        model_files(tmp_path / "none")
