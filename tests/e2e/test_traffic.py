"""A run on served traffic: what users wrote is in the conversations, and nowhere that people look."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Home

pytestmark = pytest.mark.full

WRITTEN, REFUSED, USER = "canary7f3a", "unasked5c1e", "ann.canary9d2b@example.org"
"""In the words of users, in those of users who have not agreed, and who they are."""
DATA = ("conversations", "responses", "tokens")
"""The artifacts that hold texts: what drafts are trained on."""


def logged(home: Home, folder: Path) -> dict[str, object]:
    """Logs of two days whose requests are the corpus of `tiny`; returns the source."""
    corpus = home.path / "tiny" / "corpus" / "conversations.jsonl"
    rows = [json.loads(line)["messages"] for line in corpus.read_text().splitlines()]
    for number, messages in enumerate(rows):
        end = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
        asked = [{**one, "content": f"{one['content']} {WRITTEN}"} for one in messages[:end]]
        refused = [{**one, "content": f"{one['content']} {REFUSED}"} for one in messages[:end]]
        answer = {**messages[end], "content": f"{messages[end]['content']} {WRITTEN}"}
        day = folder / f"2026-11-{29 + number % 2}"
        day.mkdir(parents=True, exist_ok=True)
        with (day / "chat.jsonl").open("a") as file:
            for agreed, said in ((True, asked), (False, refused)):
                row = {
                    "id": f"{number}-{agreed}",
                    "agreed": agreed,
                    "who": USER,
                    "request": {"messages": said},
                    "response": {"model": "tiny", "choices": [{"finish_reason": "stop", "message": answer}]},
                }
                file.write(json.dumps(row) + "\n")
        if number % 50 == 0:  # rows that end in the quarantine, with what their users wrote
            with (day / "chat.jsonl").open("a") as file:
                said = [{"role": WRITTEN, "content": WRITTEN, WRITTEN: WRITTEN}]
                file.write(json.dumps({"id": f"{number}-bad", "agreed": True, "request": {"messages": said}}) + "\n")
    return {
        "path": f"{folder}/{{date}}/",
        "name": "chat of our users",
        "traffic": {
            "first_day": "2026-11-28",
            "last_day": "2026-11-30",
            "consent_field": "agreed",
            "id_field": "id",
            "user_field": "who",
            "user_salt": "of this test",
        },
    }


def readable(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and those that a table's compression hides."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        with pa.OSFile(str(path)) as file:
            yield str(pq.ParquetFile(file).read().to_pylist()).encode()


def holding(folder: Path, word: str) -> set[str]:
    """The files below a folder that hold a word."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in files if any(word.encode() in part for part in readable(path))}


def test_what_users_wrote_is_in_the_data_and_nowhere_else(warm: Home, tmp_path: Path) -> None:
    """A run of the whole flow, 60 s: every byte of the home and of the output is read for planted words."""
    source = logged(warm, tmp_path / "logs")
    settings = [
        f"data.source={json.dumps(source)}",
        "data.responses={mode: served, served_by: tiny, max_new_tokens: 32}",
    ]
    options = [word for setting in settings for word in ("--set", setting)]
    # A process of its own, whose Prefect server lies in this home.
    command = [sys.executable, "-m", "flows.cli.main", "run", "tiny", *options]
    done = subprocess.run(command, env=warm.environment(), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    assert "register" in warm.ran()
    kept = {kind: holding(warm.path / "store" / kind, WRITTEN) for kind in DATA}
    assert kept["conversations"], "the words are where drafts are trained on them: this test can find them"
    assert kept["responses"]
    assert not any("quarantine" in name or "about" in name for names in kept.values() for name in names)
    allowed = ("cache/traffic/", *(f"store/{kind}/" for kind in DATA))
    assert {name for name in holding(warm.path, WRITTEN) if not name.startswith(allowed)} == set()
    assert holding(warm.path, REFUSED) == set()
    assert holding(warm.path, USER) == set()
    assert all(word not in done.stdout + done.stderr for word in (WRITTEN, REFUSED, USER))
    assert "no consent" in done.stderr
    found = [json.loads(path.read_text()) for path in (warm.path / "store" / "responses").glob("*/*/summary.json")]
    (served,) = (summary["served"] for summary in found if summary["mode"] == "served")
    assert served["kept"] > 50
    hidden, shown = (warm.run("data", "preview", "tiny", *options, *more) for more in ((), ("--private",)))
    assert WRITTEN not in hidden.out + hidden.err
    assert WRITTEN in shown.out
