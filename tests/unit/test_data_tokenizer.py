"""Loading a tokenizer: what is refused, and what its fingerprint covers."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deepspec.data.chat.tokenizer import load_tokenizer, tokenizer_fingerprint, tokenizer_identity
from deepspec.errors import UnsupportedTarget
from tests.fixtures.refused import refused


@pytest.fixture
def copy(tokenizer_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tokenizer's directory that may be spoiled."""
    return Path(shutil.copytree(tokenizer_dir, tmp_path / "copy"))


def test_missing_directory(tmp_path: Path) -> None:
    with refused(UnsupportedTarget, "directory", where=str(tmp_path / "nowhere")):
        load_tokenizer(tmp_path / "nowhere")


def test_missing_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with refused(UnsupportedTarget, "tokenizer.json", where=str(copy)):
        load_tokenizer(copy)


@pytest.mark.parametrize("content", [b"", b'{"model": ', b"\xff\xfe", b"[]", b"{}"])
def test_damaged_tokenizer(copy: Path, content: bytes) -> None:
    (copy / "tokenizer.json").write_bytes(content)
    with refused(UnsupportedTarget, where=str(copy)):
        load_tokenizer(copy)


def test_missing_chat_template(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with refused(UnsupportedTarget, "chat template", where=str(copy)) as caught:
        load_tokenizer(copy)
    assert "chat_template.jinja" in str(caught.value.remedy)


def test_code_that_comes_with_a_tokenizer_is_not_run(copy: Path) -> None:
    witness = copy.parent / "witness"
    (copy / "own.py").write_text(f"open({str(witness)!r}, 'w').close()\nclass Own: pass\n")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with contextlib.suppress(UnsupportedTarget):
        load_tokenizer(copy)
    assert not witness.exists()


def test_fingerprint_covers_what_makes_tokens_and_nothing_else(copy: Path, tokenizer: Any) -> None:
    before = tokenizer_fingerprint(tokenizer)
    moved = load_tokenizer(copy)
    moved("some words", padding="max_length", max_length=8, truncation=True)
    assert tokenizer_fingerprint(moved) == before
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert tokenizer_fingerprint(load_tokenizer(copy)) != before
    shutil.copy(Path(tokenizer.name_or_path) / "chat_template.jinja", template)
    rules = json.loads((copy / "tokenizer.json").read_text())
    rules["model"]["merges"].pop()
    (copy / "tokenizer.json").write_text(json.dumps(rules))
    assert tokenizer_fingerprint(load_tokenizer(copy)) != before


def test_identity_is_read_from_files_and_does_not_hang_on_how_they_are_written(copy: Path) -> None:
    before = tokenizer_identity(copy)
    assert before is not None
    rules = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = rules["model"]["vocab"]
    rules["model"]["vocab"] = dict(reversed(vocabulary.items()))
    (copy / "tokenizer.json").write_text(json.dumps(rules, indent=3))
    assert tokenizer_identity(copy) == before
    assert before.num_tokens == len(load_tokenizer(copy).get_vocab())
    rules["added_tokens"][-1]["content"] = "<|other|>"
    (copy / "tokenizer.json").write_text(json.dumps(rules))
    renamed = tokenizer_identity(copy)
    assert renamed is not None
    assert renamed.vocabulary != before.vocabulary
    assert renamed.chat_template == before.chat_template
    (copy / "tokenizer.json").unlink()
    assert tokenizer_identity(copy) is None


def test_identity_covers_the_chat_template_wherever_it_stands(copy: Path) -> None:
    before = tokenizer_identity(copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["chat_template"] = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert tokenizer_identity(copy) == before
    settings["chat_template"] += " "
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    changed = tokenizer_identity(copy)
    assert changed is not None
    assert before is not None
    assert (changed.vocabulary, changed.chat_template == before.chat_template) == (before.vocabulary, False)
