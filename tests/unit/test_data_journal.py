"""The journal: what is in it is found, once and whole."""

import subprocess
import sys
from pathlib import Path

from deepspec.data.responses.answer_log import Journal, journal_key
from deepspec.errors import ArtifactError
from tests.fixtures.refused import refused


def test_what_is_added_is_found_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "work" / "answers.sqlite"
    code = f"""
import os, pathlib, signal
from deepspec.data.responses.answer_log import Journal, journal_key
journal = Journal(pathlib.Path({str(path)!r}))
for number in range(50):
    journal.add(journal_key("answer", number), {{"ids": [number] * 3, "text": "é"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with Journal(path) as journal:
        assert len(journal) == 50
        assert journal.find(journal_key("answer", 7)) == {"ids": [7, 7, 7], "text": "é"}
        assert journal.find(journal_key("answer", 50)) is None
        with refused(ArtifactError, "UNIQUE"):
            journal.add(journal_key("answer", 7), {})


def test_keys_tell_everything_apart() -> None:
    asked = [("a", [1, 2], 3), ("a", [1], 3), ("a", [1, 2], 4), ("b", [1, 2], 3), ("a1", [2], 3), ("a", [12], 3)]
    assert len({journal_key(*parts) for parts in asked}) == len(asked)
    assert journal_key({"x": 1, "y": 2}) == journal_key({"y": 2, "x": 1})


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"no journal" * 1000)
    with refused(ArtifactError, where="answers.sqlite"):
        Journal(tmp_path / "answers.sqlite")
