"""Served traffic as a source: windows of dated logs, what of their rows is taken, and what keys see of it."""

import gzip
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.data.config import Config
from deepspec.data.conversations.build import write_conversations
from deepspec.data.traffic.window import Remote, account_of, taken_up
from deepspec.errors import DataError, RecipeError
from deepspec.inputs import traffic
from deepspec.store.fingerprint import Fingerprints
from deepspec.store.keys import digest_of
from tests.fixtures.refused import refused
from tests.fixtures.s3 import S3Server

TODAY = date(2026, 12, 3)
YESTERDAY = "2026-12-02"
NO_SPLITS = {"validation": 0, "calibration": 0, "gate": 0}


def exchange(words: str, *, number: int = 0, **fields: Any) -> dict[str, Any]:
    """A row of a log: an OpenAI chat request and its response."""
    answer = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"Re: {words}"}}
    row = {
        "id": f"r{number}-{words}",
        "consent": True,
        "user": "ann@example.org",
        "time": f"{YESTERDAY}T10:00:00Z",
        "request": {"model": "anything", "messages": [{"role": "user", "content": words}], "temperature": 0.5},
        "response": {"id": "c", "model": "our-8b", "choices": [answer], "usage": {"total_tokens": 9}},
    }
    return {**row, **fields}


def log(folder: Path, day: str, rows: Iterable[Any], name: str = "a.jsonl") -> Path:
    """Write a day's log."""
    path = folder / day / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def configured(path: str, more: Mapping[str, Any] | None = None, **fields: Any) -> Config:
    """A data section with one source of traffic."""
    section = {"days": 3, "consent_field": "consent", **fields}
    source = {"path": path, "traffic": section}
    return Config.model_validate({"source": source, "splits": NO_SPLITS, "near_duplicates": None, **(more or {})})


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def take(tmp_path: Path, logs: Path) -> Callable[..., Path]:
    """Resolve the window of `logs`; returns its folder."""

    def taken(today: date = TODAY, more: Mapping[str, Any] | None = None, **fields: Any) -> Path:
        config = configured(f"{logs}/{{date}}/", more, **fields)
        return Path(traffic(config.source[0], config, tmp_path / "cache", today).path)

    return taken


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """What was taken, in order."""
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def said_in(folder: Path) -> list[str]:
    """The last messages of what was taken."""
    return [row["messages"][-1]["content"] for row in rows_in(folder)]


def counts(folder: Path) -> dict[str, Any]:
    found = account_of(folder)
    assert found is not None
    return found


def content(folder: Path) -> str:
    """What a key sees of a window."""
    return Fingerprints().files(sorted(folder.glob("*.jsonl")))


def test_a_window_is_the_last_whole_days_and_missing_ones_are_counted(logs: Path, take: Callable[..., Path]) -> None:
    for day in ("2026-11-29", "2026-11-30", YESTERDAY, "2026-12-03", "2026-12-09"):
        log(logs, day, [exchange(day)])
    folder = take()
    assert said_in(folder) == ["Re: 2026-11-30", f"Re: {YESTERDAY}"]
    found = counts(folder)
    assert found["window"] == "2026-11-30 … 2026-12-02"
    assert found["missing_days"] == ["2026-12-01"]
    assert found["future"] == ["2026-12-09"]


def test_the_clock_enters_no_content_but_by_the_days_that_it_brings(logs: Path, take: Callable[..., Path]) -> None:
    log(logs, YESTERDAY, [exchange("one")])
    today = take()
    assert take(date(2026, 12, 4)) == today, "a day later, with the same logs: the same folder of the same content"
    log(logs, "2026-12-03", [exchange("two", time="2026-12-03T08:00:00Z")])
    assert said_in(take(date(2026, 12, 4))) == ["Re: one", "Re: two"]
    assert said_in(today) == ["Re: one"], "a run that has begun reads what it began with"


def test_a_late_file_of_an_older_day_is_taken_up(logs: Path, take: Callable[..., Path]) -> None:
    log(logs, "2026-12-01", [exchange("one")])
    log(logs, YESTERDAY, [exchange("two")])
    before = take()
    other = (before.parents[1] / "days" / f"{YESTERDAY}.jsonl").stat().st_ino
    log(logs, "2026-12-01", [exchange("late")], name="b.jsonl")
    after = take()
    assert said_in(after) == ["Re: one", "Re: late", "Re: two"]
    assert content(after) != content(before)
    assert (after.parents[1] / "days" / f"{YESTERDAY}.jsonl").stat().st_ino == other, "no other day is taken again"


def test_rows_without_consent_are_counted_and_written_nowhere(
    logs: Path, take: Callable[..., Path], tmp_path: Path
) -> None:
    given = [None, False, "yes", 1, {}]  # only the value that the recipe names permits
    refusing = [exchange("SECRET", number=number, consent=value) for number, value in enumerate(given)]
    silent = exchange("SECRET", number=9)
    del silent["consent"]
    log(logs, YESTERDAY, [exchange("one"), *refusing, silent])
    folder = take()
    assert said_in(folder) == ["Re: one"]
    assert counts(folder)["not_taken"] == {"no consent": 6}
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"one" in written
    assert b"SECRET" not in written
    text = take(consent_field="consent", consent_value="yes")
    assert counts(text)["not_taken"] == {"no consent": 6}


def test_consent_may_stand_deeper_or_be_asked_of_nobody_explicitly(logs: Path, take: Callable[..., Path]) -> None:
    log(logs, YESTERDAY, [exchange("one", meta={"may": {"train": "yes"}}), exchange("two")])
    assert said_in(take(consent_field="meta.may.train", consent_value="yes")) == ["Re: one"]
    assert said_in(take(consent_field=None)) == ["Re: one", "Re: two"]
    with pytest.raises(ValueError, match="consent_field"):
        Config.model_validate({"source": {"path": "{date}", "traffic": {"days": 1}}})


def test_retention_leaves_out_old_rows_and_days(logs: Path, take: Callable[..., Path]) -> None:
    """A row may be older than the day in whose file it stands; without a time, a file's day is what is known."""
    log(logs, "2026-11-20", [exchange("old file")])
    log(logs, YESTERDAY, [exchange("old", time="2026-11-25T23:59:59Z"), exchange("kept", time=1796126400)])
    folder = take(days=20, retention_days=7, time_field="time")
    assert said_in(folder) == ["Re: kept"]
    assert counts(folder)["not_taken"] == {"too old": 1}
    assert counts(folder)["window"] == "2026-11-26 … 2026-12-02"
    log(logs, YESTERDAY, [exchange("old", time="2026-11-25T23:59:59Z")])
    with refused(DataError, "too old", where="data.source"):
        take(days=20, retention_days=7, time_field="time")


def test_a_row_becomes_too_old_though_its_log_stays_as_it_is(logs: Path, take: Callable[..., Path]) -> None:
    rows = [exchange("first", time="2026-11-28T10:00:00Z"), exchange("second", time="2026-12-02T10:00:00Z")]
    log(logs, YESTERDAY, rows)
    settings = {"days": 20, "retention_days": 7, "time_field": "time"}
    assert said_in(take(date(2026, 12, 5), **settings)) == ["Re: first", "Re: second"]
    assert said_in(take(date(2026, 12, 6), **settings)) == ["Re: second"]


def test_a_clock_that_jumped(logs: Path, take: Callable[..., Path]) -> None:
    """Rows of a day to come are left out and counted; a machine whose clock is wrong says what day it believes."""
    log(logs, YESTERDAY, [exchange("one"), exchange("two", time="2031-01-01T00:00:00Z")])
    folder = take(time_field="time")
    assert said_in(folder) == ["Re: one"]
    assert counts(folder)["not_taken"] == {"of a day to come": 1}
    with refused(DataError, "2031-06-01", where="data.source"):
        take(date(2031, 6, 1))
    with refused(RecipeError, "1970-01-02", where="data.source"):
        take(date(1970, 1, 2), days=None, first_day="2026-12-01")
    with refused(RecipeError, "0001-01-01", where="data.source"):
        take(days=None, first_day="0001-01-01")
    with refused(RecipeError, "retention_days", where="data.source"):
        take(days=None, first_day="2026-01-01", last_day="2026-01-09", retention_days=30)


def test_an_explicit_window(logs: Path, take: Callable[..., Path]) -> None:
    for day in ("2026-11-30", "2026-12-01", YESTERDAY, "2026-12-03"):
        log(logs, day, [exchange(day)])
    assert said_in(take(days=None, first_day="2026-11-30", last_day="2026-12-01")) == [
        "Re: 2026-11-30",
        "Re: 2026-12-01",
    ]
    until_now = take(days=None, first_day=YESTERDAY, last_day="2026-12-31")
    assert said_in(until_now) == [f"Re: {YESTERDAY}", "Re: 2026-12-03"], "days to come are not waited for"


def test_dates_in_other_forms_and_patterns(tmp_path: Path) -> None:
    log(tmp_path / "in", "2026/12/02", [exchange("one")], name="chat.jsonl")
    log(tmp_path / "in", "2026/12/02", [exchange("two")], name="other.jsonl")
    log(tmp_path / "in", "2026/12/11", [exchange("three")], name="chat.jsonl")
    config = configured(f"{tmp_path}/in/{{date:%Y/%m/%d}}/chat*.jsonl")
    folder = Path(traffic(config.source[0], config, tmp_path / "cache", TODAY).path)
    assert said_in(folder) == ["Re: one"]
    assert counts(folder)["future"] == ["2026-12-11"]
    again = configured(str(folder))
    assert traffic(again.source[0], again, tmp_path / "cache", TODAY).path == str(folder), "what is resolved stays"
    plain = configured(str(tmp_path / "in"))
    with refused(RecipeError, "days in the path", where="data.source"):
        traffic(plain.source[0], plain, tmp_path / "cache", TODAY)


def test_parquet_logs_nested_or_as_json_text(logs: Path, take: Callable[..., Path]) -> None:
    rows = [exchange("nested"), exchange("again")]
    path = log(logs, YESTERDAY, [], name="a.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    texts = [{**row, "request": json.dumps(row["request"]), "response": json.dumps(row["response"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(texts), path.with_name("b.parquet"))
    moments = [{**row, "time": datetime(2026, 12, day, tzinfo=UTC)} for row, day in zip(rows, (2, 5), strict=True)]
    pq.write_table(pa.Table.from_pylist(moments), path.with_name("c.parquet"))
    assert said_in(take()) == ["Re: nested", "Re: again"] * 3
    assert counts(take(time_field="time"))["not_taken"] == {"of a day to come": 1}


def test_a_log_of_conversations_without_a_request(logs: Path, take: Callable[..., Path]) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}], "consent": True, "response": {"model": "our-8b"}}
    log(logs, YESTERDAY, [row])
    assert rows_in(take()) == [{"messages": row["messages"], "model": "our-8b"}]


def test_a_share_is_chosen_by_the_requests_ids(logs: Path, take: Callable[..., Path]) -> None:
    rows = [exchange(f"{number}") for number in range(400)]
    log(logs, YESTERDAY, rows)
    some = take(share=0.25, id_field="id")
    assert 60 < len(rows_in(some)) < 140  # five standard deviations of a binomial around 100
    assert counts(some)["not_taken"] == {"not in the share": 400 - len(rows_in(some))}
    log(logs, YESTERDAY, reversed(rows))
    assert set(said_in(take(share=0.25, id_field="id"))) == set(said_in(some)), "order decides nothing"
    assert set(said_in(take(share=0.5, id_field="id"))) > set(said_in(some)), "a smaller share is part of a larger one"
    assert set(said_in(take(share=0.25, id_field="id", seed=1))) != set(said_in(some))


def test_users_are_kept_as_keyed_digests(logs: Path, take: Callable[..., Path]) -> None:
    log(logs, YESTERDAY, [exchange("one"), exchange("two"), exchange("three", user="bob@example.org")])
    ids = [row["user"] for row in rows_in(take(user_field="user", user_salt="of this recipe"))]
    assert ids[0] == ids[1] != ids[2]
    assert all("@" not in user and len(user) == 32 for user in ids)
    assert [row["user"] for row in rows_in(take(user_field="user", user_salt="of another"))] != ids
    assert all("user" not in row for row in rows_in(take()))


def test_answers_that_are_no_answers_are_left_out(logs: Path, take: Callable[..., Path]) -> None:
    cut, withheld, failed, none = (exchange(words) for words in ("cut", "withheld", "failed", "none"))
    cut["response"]["choices"][0]["finish_reason"] = "length"
    withheld["response"]["choices"][0]["finish_reason"] = "content_filter"
    failed["response"] = {"error": {"message": "overloaded"}}
    none["response"] = None
    log(logs, YESTERDAY, [cut, withheld, failed, none])
    folder = take()
    assert said_in(folder) == ["cut", "withheld", "failed", "none"]
    assert all("model" not in row for row in rows_in(folder))
    assert list(counts(folder)["remarks"].values()) == [2]


def test_logs_that_cannot_be_used(logs: Path, take: Callable[..., Path]) -> None:
    with refused(DataError, "2026-11-30 … 2026-12-02", where="data.source"):
        take()
    log(logs, YESTERDAY, [])
    with refused(DataError, "empty", where="data.source"):
        take()
    log(logs, YESTERDAY, [exchange("SECRET", consent=False)])
    with refused(DataError, "no consent", where="data.source"):
        take()
    log(logs, YESTERDAY, [{"consent": True, "SECRET": "SECRET"}])
    with refused(DataError, "request_field", where="data.source") as caught:
        take()
    assert "SECRET" not in str(caught.value)


def test_a_truncated_log_costs_its_last_row_or_says_where_it_ends(logs: Path, take: Callable[..., Path]) -> None:
    rows = [exchange(str(number)) for number in range(200)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = log(logs, YESTERDAY, [])
    path.write_text(text[:-20])
    folder = take()
    assert len(rows_in(folder)) == 199
    assert counts(folder)["refused"] == {"malformed JSON in the last line (a truncated file?)": 1}
    path.unlink()
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(text.encode())[:-100])
    with refused(DataError, "unpacked", where="a.jsonl.gz"):
        take()


REDACTING = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    for message in row["messages"]:
        message["content"] = message["content"].replace("SECRET", "[name]")
    print(json.dumps(row))
"""


def hook(tmp_path: Path, program: str) -> list[str]:
    """The command of a redaction hook."""
    path = tmp_path / "hook.py"
    path.write_text(program)
    return [sys.executable, str(path)]


def test_a_hook_redacts_before_anything_is_written(logs: Path, take: Callable[..., Path], tmp_path: Path) -> None:
    log(logs, YESTERDAY, [exchange(f"I am SECRET, {number}") for number in range(3)])
    command = hook(tmp_path, REDACTING)
    folder = take(redaction={"command": command, "version": "1"})
    assert said_in(folder) == [f"Re: I am [name], {number}" for number in range(3)]
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"SECRET" not in written
    hook(tmp_path, REDACTING.replace("[name]", "[who]"))
    assert "[who]" in said_in(take(redaction={"command": command, "version": "1"}))[0], "an edited hook is noticed"


def test_a_hooks_identity_and_version_are_in_the_key() -> None:
    def key(**redaction: Any) -> str:
        return digest_of(configured("{date}", redaction=redaction).source)

    one = {"command": ["scrub", "--all"], "version": "1"}
    assert len({key(**one), key(**one | {"version": "2"}), key(command=["scrub"], version="1")}) == 3
    assert key(**one, timeout_seconds=5) == key(**one)


def test_the_window_is_in_no_key_and_a_source_without_traffic_keeps_its_own() -> None:
    def key(**fields: Any) -> str:
        return digest_of(configured("{date}", **fields).source)

    assert key() == key(days=9) == key(days=None, first_day="2026-01-01") == key(retention_days=9)
    assert key() != key(share=0.5)
    plain = Config.model_validate({"source": {"path": "a.jsonl", "name": "a"}})
    assert digest_of(plain.source) == digest_of([{"name": "a"}])


def scrub(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A hook as a function."""
    return [{**row, "messages": [{**one, "content": "[out]"} for one in row["messages"]]} for row in rows]


def lose(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A hook that returns fewer rows."""
    return rows[1:]


def quote(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A hook that fails, and says a row."""
    raise RuntimeError(rows[0]["messages"][0]["content"])


def test_a_hook_may_be_a_function(logs: Path, take: Callable[..., Path]) -> None:
    log(logs, YESTERDAY, [exchange("SECRET")])
    assert said_in(take(redaction={"function": f"{__name__}:scrub", "version": "1"})) == ["[out]"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; print(sys.stdin.read(), file=sys.stderr); sys.exit(3)", "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("import sys; sys.stdin.readline(); print(sys.stdin.read())", "returned 1 rows for 2"),
        ("import sys; print(sys.stdin.read()); print('{}')", "returned 3 rows for 2"),
        ("import sys; print(sys.stdin.read().replace('{', ''))", "not JSON Lines"),
        ("import sys; [print(1) for line in sys.stdin]", "no object as row 1"),
        (None, "cannot be started"),
        ("lose", "returned 1 rows for 2"),
        ("quote", "RuntimeError"),
        ("missing", "cannot be imported"),
    ],
)
def test_a_broken_hook_stops_the_run_and_quotes_nothing(
    program: str | None, why: str, logs: Path, take: Callable[..., Path], tmp_path: Path
) -> None:
    log(logs, YESTERDAY, [exchange("SECRET", number=number) for number in range(2)])
    named = {"command": ["/no/such/program"] if program is None else hook(tmp_path, program)}
    if program in ("lose", "quote", "missing"):
        named = {"function": f"{__name__}:{program}"}
    with refused(DataError, why, where="traffic.redaction") as caught:
        take(redaction={**named, "version": "1"})
    assert "SECRET" not in str(caught.value)
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"SECRET" not in written


def test_a_hook_that_waits_is_ended(logs: Path, take: Callable[..., Path], tmp_path: Path) -> None:
    log(logs, YESTERDAY, [exchange("one")])
    command = hook(tmp_path, "import time; time.sleep(600)")
    with refused(DataError, "did not end", where="traffic.redaction"):
        take(redaction={"command": command, "version": "1", "timeout_seconds": 0.2})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"days": None}, "days"),
        ({"first_day": "2026-12-01"}, "days"),
        ({"last_day": "2026-12-01"}, "last_day"),
        ({"days": None, "first_day": "2026-12-02", "last_day": "2026-12-01"}, "before"),
        ({"consent_value": False}, "consent_value"),
        ({"user_field": "user"}, "user_salt"),
        ({"share": 0}, "share"),
        ({"redaction": {"version": "1"}}, "command or a function"),
        ({"redaction": {"function": "os.system", "version": "1"}}, "function"),
        ({"redaction": {"command": ["a"]}}, "version"),
    ],
)
def test_sections_that_mean_nothing(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        configured("{date}", **fields)


def test_what_leaves_the_window_is_removed_and_a_used_window_stays(logs: Path, take: Callable[..., Path]) -> None:
    log(logs, "2026-11-30", [exchange("old")])
    log(logs, YESTERDAY, [exchange("new")])
    before = take()
    after = take(date(2026, 12, 4))
    assert said_in(after) == ["Re: new"]
    assert sorted(path.name for path in (after.parents[1] / "days").glob("*.jsonl")) == [f"{YESTERDAY}.jsonl"]
    assert said_in(before) == ["Re: old", "Re: new"], "a run that began with it may still read it"
    os.utime(before.parent, (0, 0))
    take(date(2026, 12, 4))
    assert not before.exists()


# --- from the window to conversations --------------------------------------------------------------------------------


def made(tmp_path: Path, logs: Path, more: Mapping[str, Any] | None = None, **fields: Any) -> Path:
    """Conversations of the window of `logs`; returns their folder."""
    config = configured(f"{logs}/{{date}}/", more, **fields)
    entry = traffic(config.source[0], config, tmp_path / "cache", TODAY)
    out = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
    out.mkdir()
    write_conversations(config, [entry], out)
    return out


def test_requests_that_are_logged_twice_are_one_row(logs: Path, tmp_path: Path) -> None:
    again = exchange("one, and corrected") | {"id": exchange("one")["id"]}
    log(logs, "2026-12-01", [exchange("one"), exchange("same words")])
    log(logs, YESTERDAY, [exchange("one"), again, exchange("same words", number=1)])
    out = made(tmp_path, logs, id_field="id")
    rows = pq.read_table(out / "train.parquet").to_pylist()
    assert sorted(row["messages"][0]["content"] for row in rows) == ["one", "same words"]
    found = json.loads((out / "summary.json").read_text())
    assert (found["rows"], found["duplicates"], found["conversations"]) == (5, 3, 2)
    assert found["rows"] == sum(found[name] for name in ("duplicates", "conversations", "excluded", "quarantined"))


def test_conversations_know_user_and_model_and_no_page_shows_a_text(logs: Path, tmp_path: Path) -> None:
    log(logs, YESTERDAY, [exchange(f"CANARY {number}") for number in range(5)])
    out = made(tmp_path, logs, user_field="user", user_salt="of this recipe")
    rows = pq.read_table(out / "train.parquet").to_pylist()
    assert {(len(row["user"]), row["model"]) for row in rows} == {(32, "our-8b")}
    assert "CANARY" in str(rows)
    assert all(b"CANARY" not in path.read_bytes() for path in (out / "about").rglob("*"))
    assert "5 of 5 rows of logs taken" in (out / "about" / "sample.html").read_text()
    shown = made(tmp_path, logs, {"source": {**_source(logs), "private": False}})
    assert "CANARY" in (shown / "about" / "sample.html").read_text(), (
        "the source's owner may say that it is not private"
    )


def _source(logs: Path) -> dict[str, Any]:
    return {"path": f"{logs}/{{date}}/", "traffic": {"days": 3, "consent_field": "consent"}}


def test_the_quarantine_of_a_private_source_quotes_nothing(logs: Path, tmp_path: Path) -> None:
    bad = [
        exchange("x", request={"messages": [{"role": "CANARY", "content": "CANARY"}]}),
        exchange("y", request={"messages": [{"role": "user", "content": [{"type": "CANARY", "text": "CANARY"}]}]}),
        exchange("z", request={"messages": [{"role": "user", "content": "fine", "CANARY": "CANARY"}]}),
    ]
    log(logs, YESTERDAY, [exchange("fine"), *bad])
    out = made(tmp_path, logs, {"max_quarantined_share": 1})
    found = pq.read_table(out / "quarantine.parquet").to_pylist()
    assert sorted(row["reason"] for row in found) == ["content has a part that is not text", "unknown role"]
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert b"CANARY" not in path.read_bytes(), path.name


def test_a_day_that_is_known_is_not_copied_again(logs: Path, tmp_path: Path) -> None:
    """Object storage as it is asked here: versions each time, copies of what is new."""
    copied: list[str] = []

    def copy(location: str, folder: Path) -> str:
        copied.append(location)
        return str(shutil.copytree(logs / Path(location).name, folder / "day"))

    def versions(location: str) -> list[str]:
        return [version for _ in (logs / Path(location).name).glob("*")]

    version = "1"
    remote = Remote(versions, copy)
    config = configured("s3://bucket/{date}")
    limits = {"max_row_bytes": 1 << 20, "max_quarantined_share": 0.0}
    for day in ("2026-12-01", YESTERDAY):
        log(logs, day, [exchange(day)])
    for _ in range(2):
        taken_up(config.source[0], tmp_path / "cache", today=TODAY, remote=remote, **limits)
        assert len(copied) == 2
    version = "2"
    taken_up(config.source[0], tmp_path / "cache", today=TODAY, remote=remote, **limits)
    assert len(copied) == 4
    assert not list((tmp_path / "cache").rglob(".copies-*"))


def test_traffic_in_a_bucket(logs: Path, tmp_path: Path, moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing day, a late object and retention, as for local logs; rows without consent are not even copied."""
    import boto3

    moto.enter(monkeypatch)
    client = boto3.client("s3")

    def put(key: str, rows: Iterable[Any]) -> None:
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        client.put_object(Bucket=moto.bucket, Key=f"{tmp_path.name}/{key}", Body=body)

    def taken(today: date, **fields: Any) -> Path:
        config = configured(f"s3://{moto.bucket}/{tmp_path.name}/{{date}}/", **fields)
        return Path(traffic(config.source[0], config, tmp_path / "cache", today).path)

    put("2026-12-01/a.jsonl", [exchange("one")])
    put(f"{YESTERDAY}/a.jsonl", [exchange("two")])
    folder = taken(TODAY)
    assert said_in(folder) == ["Re: one", "Re: two"]
    assert counts(folder)["missing_days"] == ["2026-11-30"]
    put("2026-12-01/late.jsonl", [exchange("late")])
    assert said_in(taken(TODAY)) == ["Re: one", "Re: late", "Re: two"]
    put("2026-12-01/late.jsonl", [exchange("SECRET", consent=False)])
    assert said_in(taken(TODAY)) == ["Re: one", "Re: two"]
    assert not list((tmp_path / "cache").rglob("late.jsonl")), "copies of logs stay no longer than they are read"
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"SECRET" not in written
    assert said_in(taken(date(2026, 12, 4), retention_days=2)) == ["Re: two"]
    with refused(DataError, "none was found", where="data.source"):
        taken(date(2031, 1, 1))
