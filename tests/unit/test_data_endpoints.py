"""Answers by real HTTP servers, in processes of their own, that fail on purpose."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

import deepspec.data.responses.regenerate
from deepspec.data.chat.formats import CHATML
from deepspec.data.chat.renderer import Renderer
from deepspec.data.config import Config, Responses
from deepspec.data.conversations.build import write_conversations
from deepspec.data.quarantine import TooManyQuarantined
from deepspec.data.responses.endpoint_exchange import _retry_after
from deepspec.data.responses.endpoint_pool import _ATTEMPTS, Endpoints
from deepspec.data.responses.endpoint_protocol import Vocabulary, words_of
from deepspec.data.responses.regenerate import write_responses
from deepspec.errors import DataError, TransientError
from deepspec.progress import SILENT, Progress
from deepspec.usage import counted_since, counted_so_far
from tests.fixtures.openai_server import Server, answer_of, openai_server
from tests.fixtures.refused import refused

NO_SPLITS = {"validation": 0, "calibration": 0, "gate": 0}
CANARY = "sk-canary-7f3a9c"


def config_of(**fields: Any) -> Config:
    responses = {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "engine": "endpoint", **fields.pop("responses", {})}
    settings = {"source": "given", "splits": NO_SPLITS, "max_length_tokens": 200, "min_supervised_tokens": 2, **fields}
    return Config.model_validate({**settings, "responses": responses})


def endpoints(urls: Sequence[str], config: Config, tokenizer: Any, **settings: Any) -> Endpoints:
    ends = CHATML.end_of_turn_ids(tokenizer)
    given: dict[str, Any] = {
        "concurrency": 4,
        "timeout_seconds": 20.0,
        "pause_seconds": 0.005,
        "patience_seconds": 20.0,
    }
    return Endpoints(
        urls,
        config.responses,
        model="tiny",
        vocabulary=Vocabulary(tokenizer, len(tokenizer), ends),
        max_length_tokens=config.max_length_tokens,
        **{**given, **settings},
    )


def conversations(folder: Path, config: Config, rows: Sequence[Sequence[str]]) -> Path:
    """A folder of conversations, from the users' turns."""
    made = folder / "conversations"
    made.mkdir(parents=True)
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps({"turns": list(turns)}) + "\n" for turns in rows))
    write_conversations(config, [config.source[0].model_copy(update={"path": str(source)})], made)
    return made


def answer(
    out: Path,
    urls: Sequence[str],
    config: Config,
    made: Path,
    tokenizer: Any,
    journal: Path | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> dict[str, Any]:
    out.mkdir()
    with endpoints(urls, config, tokenizer, **settings) as asked:
        return write_responses(
            config, made, out,
            generate=asked.generate, tokenizer=tokenizer, chat=CHATML, journal=journal, progress=progress,
        )  # fmt: skip


def table(out: Path, name: str = "train") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / f"{name}.parquet").to_pylist()
    return rows


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def calm(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without faults, which treats some prompts badly."""
    log = tmp_path_factory.mktemp("calm") / "log.jsonl"
    words = {
        "REFUSE": "refused", "EMPTY": "empty", "OTHER": "other_ids", "BREAK": "always_500", "HTML": "not_json",
        "LONG": "long",
    }  # fmt: skip
    with openai_server(tokenizer_dir, log, bad_words=words) as server:
        yield server


def test_every_request_is_counted(calm: Server, tmp_path: Path, tokenizer: Any) -> None:
    """One that was refused, too: the server noted as many, and was asked twice what it is."""
    config = config_of(max_quarantined_share=1.0)
    made = conversations(tmp_path, config, [*([f"question {n}"] for n in range(8)), ["REFUSE this"]])
    noted, earlier = len(calm.entries()), counted_so_far()
    answer(tmp_path / "out", [calm.url], config, made, tokenizer)
    asked = len(calm.entries()) - noted
    assert asked == 9
    assert counted_since(earlier) == {"endpoint_requests": asked + len(["/v1/models", "/version"])}


ROWS = [[f"question {n}"] if n % 4 else [f"question {n}", "and then?", "and after that?"] for n in range(40)]
NUM_ANSWERS = sum(map(len, ROWS))


def test_a_row_says_what_was_asked_and_answered(calm: Server, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of()
    made = conversations(tmp_path, config, [["how many?"], ["one", "two"]])
    summary = answer(tmp_path / "out", [calm.url], config, made, tokenizer)
    by_length = {len(row["messages"]): row for row in table(tmp_path / "out")}
    row = by_length[2]
    prompt_ids = Renderer(tokenizer, CHATML).prompt_ids([{"role": "user", "content": "how many?"}])
    assert tuple(row["prompt_ids"]) == prompt_ids
    assert row["messages"][1]["content"] == answer_of(prompt_ids, row["sampling"]["seed"])
    assert row["output_ids"][-1] == CHATML.end_of_turn_ids(tokenizer)[0]
    assert tokenizer.decode(row["output_ids"][:-1]) == row["messages"][1]["content"]
    assert {k: v for k, v in row["sampling"].items() if k != "seed"} == {
        "temperature": 1.0, "top_p": 0.9, "top_k": 0, "max_new_tokens": 200 - len(prompt_ids)
    }  # fmt: skip
    assert (row["finish_reason"], row["engine"], row["engine_version"], row["ids_from"]) == (
        "stop", "vllm", "0.10.2", "engine"
    )  # fmt: skip
    assert summary["engines"] == {"vllm 0.10.2": 3}
    # The second turn was asked with the answer to the first.
    two = by_length[4]
    second = Renderer(tokenizer, CHATML).prompt_ids(two["messages"][:3])
    assert two["messages"][3]["content"] == answer_of(second, two["sampling"]["seed"])
    assert two["prompt_ids"] is None


def test_sampling_goes_under_its_own_names(calm: Server, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of(responses={"temperature": 0.3, "top_p": 0.7, "top_k": 9, "max_new_tokens": 33})
    made = conversations(tmp_path, config, [["names please"]])
    answer(tmp_path / "out", [calm.url], config, made, tokenizer)
    (row,) = table(tmp_path / "out")
    body = next(entry["body"] for entry in calm.entries() if entry["body"]["prompt"] == row["prompt_ids"])
    sent = {name: body[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "seed", "model")}
    assert sent == {
        "temperature": 0.3, "top_p": 0.7, "top_k": 9, "max_tokens": 33, "seed": row["sampling"]["seed"],
        "model": "tiny",
    }  # fmt: skip
    # A model's generation_config.json would fill in what is left out.
    neutral = ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_p")
    assert [body[name] for name in neutral] == [1.0, 0.0, 0.0, 0.0]
    assert body["stop_token_ids"] == list(CHATML.end_of_turn_ids(tokenizer))


def test_faults_change_no_byte(calm: Server, tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of()
    made = conversations(tmp_path, config, ROWS)
    answer(tmp_path / "calm", [calm.url], config, made, tokenizer)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(openai_server(tokenizer_dir, tmp_path / f"log{n}", faults=0.4, seed=n))
            for n in range(3)
        ]
        urls = [server.url for server in servers]
        summary = answer(tmp_path / "faulty", urls, config, made, tokenizer, concurrency=3)
        did = Counter(entry["did"] for server in servers for entry in server.entries())
        answered = sum((server.answered() for server in servers), Counter())
    assert files(tmp_path / "calm") == files(tmp_path / "faulty")
    assert summary["answers"] == NUM_ANSWERS
    assert set(did) == {"answered", "busy", "error", "dropped", "broken", "slow", "truncated_json"}
    assert set(answered.values()) == {1}  # what was answered was asked no more
    assert len(answered) == summary["answers"]


def test_a_request_is_not_at_fault_that_a_server_is_busy(tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of()
    made = conversations(tmp_path, config, [["hello"]])
    busy = {"faults": 1.0, "kinds": ("busy",), "most_faults": _ATTEMPTS + 1, "busy_seconds": 0.001}
    with openai_server(tokenizer_dir, tmp_path / "log", **busy) as server:
        summary = answer(tmp_path / "out", [server.url], config, made, tokenizer, pause_seconds=0.001)
        assert [entry["did"] for entry in server.entries()] == ["busy"] * (_ATTEMPTS + 1) + ["answered"]
    assert (summary["conversations"], summary["quarantined"]) == (1, 0)


def test_the_work_is_shared_and_bounded(calm: Server, tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of()
    made = conversations(tmp_path, config, [[f"share {n}"] for n in range(40)])
    with ExitStack() as stack:
        servers = [
            stack.enter_context(openai_server(tokenizer_dir, tmp_path / f"log{n}", seconds=0.02)) for n in range(2)
        ]
        answer(tmp_path / "out", [server.url for server in servers], config, made, tokenizer, concurrency=2)
        shares = [len(server.entries()) for server in servers]
    assert sum(shares) == 40
    assert min(shares) >= 10


def test_an_endpoint_that_is_down_is_left_out(
    calm: Server, tokenizer_dir: Path, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of()
    made = conversations(tmp_path, config, [[f"left {n}"] for n in range(20)])
    with (
        openai_server(tokenizer_dir, tmp_path / "gone", is_gone=True) as gone,
        caplog.at_level(logging.WARNING),
    ):
        summary = answer(tmp_path / "out", [gone.url, calm.url], config, made, tokenizer)
    assert summary["conversations"] == 20
    assert gone.url in caplog.text


def test_an_endpoint_that_dies_is_left_out(calm: Server, tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of()
    made = conversations(tmp_path, config, [[f"dies {n}"] for n in range(40)])
    (tmp_path / "out").mkdir()
    with (
        openai_server(tokenizer_dir, tmp_path / "log", seconds=0.05) as dying,
        endpoints([dying.url, calm.url], config, tokenizer) as asked,
    ):
        dying.process.kill()
        summary = write_responses(
            config, made, tmp_path / "out", generate=asked.generate, tokenizer=tokenizer, chat=CHATML
        )
    assert (summary["conversations"], summary["quarantined"]) == (40, 0)


def test_when_none_answers_the_error_names_them_all(tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of()
    made = conversations(tmp_path, config, [["hello"]])
    with openai_server(tokenizer_dir, tmp_path / "gone", is_gone=True) as gone:
        nothing = "http://127.0.0.1:9"
        with refused(TransientError, "no backend", f"{nothing} (no connection", gone.url, where="run.endpoints"):
            answer(tmp_path / "out", [gone.url, nothing], config, made, tokenizer)
    (tmp_path / "again").mkdir()
    with (
        openai_server(tokenizer_dir, tmp_path / "log", seconds=0.05) as dying,
        endpoints([dying.url], config, tokenizer, patience_seconds=0.5) as asked,
    ):
        dying.process.kill()
        with refused(TransientError, dying.url, where="run.endpoints"):
            write_responses(config, made, tmp_path / "again", generate=asked.generate, tokenizer=tokenizer, chat=CHATML)


def test_what_cannot_be_answered_is_quarantined_with_the_servers_words(
    calm: Server, tmp_path: Path, tokenizer: Any
) -> None:
    config = config_of(max_quarantined_share=0.6)
    bad = [["REFUSE me"], ["EMPTY me"], ["OTHER me"], ["BREAK me"], ["HTML me"], ["fine", "REFUSE later"]]
    made = conversations(tmp_path, config, [*bad, *([f"fine {n}"] for n in range(5))])
    summary = answer(tmp_path / "out", [calm.url], config, made, tokenizer)
    reasons = {row["reason"]: row["excerpt"] for row in table(tmp_path / "out", "quarantine")}
    assert "is not to my liking" in reasons["the endpoint refuses the request (HTTP 400)"]
    assert "EMPTY me" in reasons["the endpoint's answer is empty"]
    assert "vocabulary 400" in reasons["the endpoint's token ids are not the target's"]
    assert "this one breaks me" in reasons["the endpoint failed (HTTP 500)"]
    assert "<html>hello" in reasons["the endpoint's reply is no valid JSON"]
    assert (summary["conversations"], summary["quarantined"]) == (5, 6)
    with refused(TooManyQuarantined, "the endpoint refuses the request (HTTP 400) (2)"):
        answer(
            tmp_path / "strict", [calm.url], config.model_copy(update={"max_quarantined_share": 0.1}), made, tokenizer
        )


def test_of_private_prompts_neither_they_nor_a_servers_words_about_them_are_shown(
    calm: Server, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The same bad prompts as above; what the server says is not even logged while it seems to be down."""
    config = config_of(max_quarantined_share=0.6, source={"path": "given", "private": True})
    bad = [["REFUSE me"], ["EMPTY me"], ["OTHER me"], ["BREAK me"], ["HTML me"]]
    made = conversations(tmp_path, config, [*bad, *([f"fine {n}"] for n in range(5))])
    with caplog.at_level(logging.DEBUG):
        summary = answer(tmp_path / "out", [calm.url], config, made, tokenizer, quotes=False)
    assert summary["quarantined"] == 5
    rows = table(tmp_path / "out", "quarantine")
    assert {row["excerpt"] for row in rows} == {""}
    assert "the endpoint refuses the request (HTTP 400)" in {row["reason"] for row in rows}
    assert "HTTP Request" in caplog.text
    assert not any(word in caplog.text for word in (" me", "my liking", "breaks me", "<html>"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model": "other"}, ["'other'", "'tiny'"]),
        ({"answers_as": "other"}, ["'other'", "'tiny'"]),
        ({"max_model_len": 100}, ["100 tokens", "data.max_length_tokens is 200"]),
        ({"key": "secret"}, ["key", "HTTP 401"]),
    ],
)
def test_an_endpoint_that_is_not_the_targets_is_refused(
    tokenizer_dir: Path, tmp_path: Path, tokenizer: Any, settings: dict[str, Any], named: list[str]
) -> None:
    config = config_of()
    made = conversations(tmp_path, config, [["hello"]])
    with (
        openai_server(tokenizer_dir, tmp_path / "log", **settings) as server,
        refused(DataError, *named, where=server.url),
    ):
        answer(tmp_path / "out", [server.url], config, made, tokenizer)


def test_versions_must_be_one(calm: Server, tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of()
    with (
        openai_server(tokenizer_dir, tmp_path / "log", version="0.11.0") as newer,
        refused(DataError, "vllm 0.11.0", "vllm 0.1", where="http://127.0.0.1:"),
        endpoints([calm.url, newer.url], config, tokenizer),
    ):
        pytest.fail("it was entered")


def test_endpoints_say_their_engine_and_what_was_lost(tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of()
    made = conversations(tmp_path, config, [[f"lost {n}"] for n in range(6)])
    (tmp_path / "out").mkdir()
    with (
        openai_server(tokenizer_dir, tmp_path / "log", faults=0.5, kinds=("error",), version="0.11.0") as server,
        endpoints([server.url], config, tokenizer) as asked,
    ):
        assert (asked.engine, asked.num_lost) == (("vllm", "0.11.0"), 0)
        write_responses(config, made, tmp_path / "out", generate=asked.generate, tokenizer=tokenizer, chat=CHATML)
        assert asked.num_lost == sum(entry["did"] == "error" for entry in server.entries()) > 0


def test_a_served_name_of_its_own(tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of(responses={"served_model": "org/night"})
    made = conversations(tmp_path, config, [["hello"]])
    with openai_server(tokenizer_dir, tmp_path / "log", model="org/night", version="") as server:
        answer(tmp_path / "out", [server.url], config, made, tokenizer)
        assert {entry["body"]["model"] for entry in server.entries()} == {"org/night"}
    assert table(tmp_path / "out")[0]["engine_version"].startswith("TestServer/1")


@pytest.mark.parametrize(
    ("settings", "ids_from"),
    [({"says_ids": False}, "text"), ({"keeps_end": False}, "engine_without_end")],
)
def test_ids_that_are_not_said(
    calm: Server, tokenizer_dir: Path, tmp_path: Path, tokenizer: Any, settings: dict[str, Any], ids_from: str
) -> None:
    config = config_of()
    made = conversations(tmp_path, config, [[f"ids {n}"] for n in range(5)])
    answer(tmp_path / "said", [calm.url], config, made, tokenizer)
    with openai_server(tokenizer_dir, tmp_path / "log", **settings) as server:
        summary = answer(tmp_path / "out", [server.url], config, made, tokenizer)
    assert summary["ids_from"] == {ids_from: 5}
    rows, said = table(tmp_path / "out"), table(tmp_path / "said")
    assert [row["output_ids"][-1] for row in rows] == [row["output_ids"][-1] for row in said]
    assert [row["messages"] for row in rows] == [row["messages"] for row in said]


@pytest.mark.parametrize("mode", ["keep", "exclude"])
def test_cut_off_answers_are_marked_or_excluded(calm: Server, tmp_path: Path, tokenizer: Any, mode: str) -> None:
    config = config_of(responses={"truncated": mode})
    made = conversations(tmp_path, config, [["LONG one"], ["short", "LONG then", "never"], ["short alone"]])
    summary = answer(tmp_path / "out", [calm.url], config, made, tokenizer)
    rows = {len(row["messages"]): row for row in table(tmp_path / "out") if "alone" not in str(row["messages"][0])}
    assert summary["truncated"] == 2
    if mode == "keep":
        assert (rows[2]["finish_reason"], rows[4]["finish_reason"]) == ("length", "length")
        assert (summary["conversations"], summary["truncated_excluded"], summary["turns_left_out"]) == (3, 0, 1)
    else:
        assert list(rows) == [2]  # what was answered before the cut stays
        assert (rows[2]["finish_reason"], rows[2]["messages"][0]["content"]) == ("stop", "short")
        assert rows[2]["output_ids"] is not None
        assert (summary["conversations"], summary["truncated_excluded"], summary["turns_left_out"]) == (2, 1, 3)


def test_the_key_is_sent_and_nowhere_to_be_found(
    tokenizer_dir: Path, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(max_quarantined_share=0.5)
    made = conversations(tmp_path, config, [["ECHO it"], ["fine"]])
    log = tmp_path / "server" / "log"
    log.parent.mkdir()
    journal = tmp_path / "journal.sqlite"
    with (
        openai_server(tokenizer_dir, log, key=CANARY, bad_words={"ECHO": "echo"}) as server,
        caplog.at_level(logging.DEBUG),
    ):
        summary = answer(tmp_path / "out", [server.url], config, made, tokenizer, journal, api_key=CANARY)
        with pytest.raises(DataError) as caught:
            answer(tmp_path / "wrong", [server.url], config, made, tokenizer, api_key=CANARY[:-1])
    assert summary["conversations"] == 1
    (bad,) = table(tmp_path / "out", "quarantine")
    assert "I was sent Bearer ***" in bad["excerpt"]
    assert "***" in str(caught.value)
    journaled = [file.read_bytes() for file in tmp_path.glob("journal.sqlite*")]
    written = [str(table(tmp_path / "out", name)) for name in ("train", "quarantine")]
    said = [(tmp_path / "out" / "summary.json").read_text(), caplog.text, str(caught.value), repr(caught.value)]
    assert journaled
    assert "HTTP Request" in caplog.text  # the client's own log was looked at, too
    assert not any(CANARY[:-1].encode() in text for text in [*journaled, *map(str.encode, [*written, *said])])


KILLED = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_data_endpoints import answer, config_of
from deepspec.data.chat.tokenizer import load_tokenizer
folder = Path({folder!r})
answer(folder / sys.argv[1], {urls!r}, config_of(), folder / "conversations", load_tokenizer({tokenizer!r}),
       folder / "journal.sqlite")
"""


def noted(journal: Path) -> int:
    """How many answers a journal holds."""
    with sqlite3.connect(journal) as database:
        return int(database.execute("SELECT count(*) FROM answers").fetchone()[0])


class Interrupted(Exception):
    pass


class Counting:
    """Progress that ends the work after some conversations."""

    def __init__(self, most: int) -> None:
        self.left = most

    def start(self, total: int, unit: str) -> None:
        pass

    def advance(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left < 0:
            raise Interrupted


def test_a_run_that_broke_off_goes_on_where_it_was(tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of()
    made = conversations(tmp_path, config, ROWS)
    journal = tmp_path / "journal.sqlite"
    with openai_server(tokenizer_dir, tmp_path / "log") as server:
        for most in (5, 15):
            with pytest.raises(Interrupted):
                answer(tmp_path / str(most), [server.url], config, made, tokenizer, journal, progress=Counting(most))
        time.sleep(0.2)  # what the server was still working on
        kept, before = noted(journal), len(server.entries())
        answer(tmp_path / "resumed", [server.url], config, made, tokenizer, journal)
        again = [entry["id"] for entry in server.entries()[before:]]
        assert kept > 15
        assert len(again) == len(set(again)) == NUM_ANSWERS - kept == noted(journal) - kept
        before = len(server.entries())
        answer(tmp_path / "known", [server.url], config, made, tokenizer, journal)
        assert len(server.entries()) == before  # nothing is asked
        cooler = config_of(responses={"temperature": 0.5})
        answer(tmp_path / "cooler", [server.url], cooler, made, tokenizer, journal)
        assert len(server.entries()) == before + NUM_ANSWERS  # what was sampled otherwise is no answer
        answer(tmp_path / "whole", [server.url], config, made, tokenizer)
    assert files(tmp_path / "resumed") == files(tmp_path / "whole") == files(tmp_path / "known")


@pytest.mark.full
def test_a_killed_run_goes_on_where_it_was(calm: Server, tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of()
    made = conversations(tmp_path, config, ROWS)
    answer(tmp_path / "whole", [calm.url], config, made, tokenizer)
    journal = tmp_path / "journal.sqlite"
    with ExitStack() as stack:
        servers = [
            stack.enter_context(openai_server(tokenizer_dir, tmp_path / f"log{n}", faults=0.2, seconds=0.1, seed=n))
            for n in range(2)
        ]
        urls = [server.url for server in servers]
        code = KILLED.format(
            here=str(Path(__file__).parent), folder=str(tmp_path), urls=urls, tokenizer=str(tokenizer_dir)
        )
        killed = subprocess.Popen([sys.executable, "-c", code, "killed"], cwd=Path(__file__).parents[2])
        while killed.poll() is None and not (journal.exists() and _has_answers(journal, 20)):
            time.sleep(0.02)
        assert killed.poll() is None, "it ended before it could be killed"
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(timeout=30)
        kept = noted(journal)
        time.sleep(0.5)  # what the servers were still working on
        before = [len(server.entries()) for server in servers]
        answer(tmp_path / "resumed", urls, config, made, tokenizer, journal)
        after = [server.entries()[num:] for server, num in zip(servers, before, strict=True)]
    assert files(tmp_path / "whole") == files(tmp_path / "resumed")
    assert 20 <= kept < NUM_ANSWERS
    asked_again = {entry["id"] for entries in after for entry in entries}
    assert len(asked_again) == NUM_ANSWERS - kept  # none that was kept, and all the others
    assert noted(journal) == NUM_ANSWERS


def _has_answers(journal: Path, count: int) -> bool:
    try:
        return noted(journal) >= count
    except sqlite3.OperationalError:  # being made
        return False


@pytest.mark.full  # it waits
def test_a_request_that_takes_too_long_is_given_up(tokenizer_dir: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = config_of(max_quarantined_share=0.5)
    made = conversations(tmp_path, config, [["SLEEP now"], ["fine"]])
    with openai_server(tokenizer_dir, tmp_path / "log", bad_words={"SLEEP": "sleeps"}) as server:
        answer(tmp_path / "out", [server.url], config, made, tokenizer, timeout_seconds=0.4)
    (bad,) = table(tmp_path / "out", "quarantine")
    assert bad["reason"] == "no answer within run.endpoint_timeout_seconds"
    assert bad["excerpt"].startswith("[0.4 s]")
    assert len(table(tmp_path / "out")) == 1


def test_when_too_much_is_refused_the_rest_is_not_asked_for(
    calm: Server, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepspec.data.responses.regenerate, "_EXCESS_ROWS", 5)
    config = config_of()
    made = conversations(tmp_path, config, [[f"REFUSE {n}"] for n in range(100)])
    before = len(calm.entries())
    with refused(TooManyQuarantined, "7 of 100 rows"):
        answer(tmp_path / "out", [calm.url], config, made, tokenizer)
    assert len(calm.entries()) - before < 50


@pytest.mark.parametrize(
    ("headers", "status", "least", "most"),
    [
        ({"Retry-After": "7"}, 429, 7.0, 7.0),
        ({"Retry-After": "-1"}, 429, 0.0, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 503, 0.0, 0.0),
        ({"Retry-After": format_datetime(datetime.now(UTC) + timedelta(days=1))}, 503, 80_000.0, 86_400.0),
        ({"Retry-After": "soon"}, 429, 0.2, 1.0),
        ({}, 503, 0.2, 1.0),
        ({}, 500, 0.0, 0.0),
    ],
)
def test_how_long_a_server_wants_to_be_left_alone(
    headers: dict[str, str], status: int, least: float, most: float
) -> None:
    assert least <= _retry_after(httpx.Response(status, headers=headers)) <= most


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "too long", "code": 400}}', "too long"),
        (b'{"object": "error", "message": "too long"}', "too long"),
        (b'{"detail": [{"msg": "wrong"}]}', '[{"msg": "wrong"}]'),
        (b'{"error": "overloaded"}', "overloaded"),
        (b'{"status": 1}', '{"status": 1}'),
        (b"<h1>Bad Gateway</h1>", "<h1>Bad Gateway</h1>"),
        (b"\xff", "\ufffd"),
    ],
)
def test_the_words_of_a_failure(body: bytes, words: str) -> None:
    assert words_of(body) == words


def test_defaults_leave_the_key_alone() -> None:
    from deepspec.config import absent_in_key

    defaults = Responses()
    later = ("engine", "served_model", "truncated")
    assert all(absent_in_key(Responses.model_fields[name], getattr(defaults, name)) for name in later)
