"""Mixtures: shares by weight, limits by source, samples by content."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from deepspec.data.config import Config, SourceEntry
from deepspec.data.conversations.build import write_conversations
from deepspec.data.conversations.mixture import quotas, ranks_of, sample
from deepspec.errors import DataError
from tests.fixtures.refused import refused

NO_SPLITS = {"validation": 0, "calibration": 0, "gate": 0}


def entries(*settings: dict[str, Any]) -> list[SourceEntry]:
    return [SourceEntry.model_validate({"path": f"{n}.jsonl", **item}) for n, item in enumerate(settings)]


@pytest.mark.parametrize(
    ("available", "settings", "max_rows", "expected"),
    [
        ([10, 20], [{}, {}], None, [10, 20]),
        ([10, 20], [{}, {"max_rows": 5}], 8, [10, 5]),  # the whole is cut apart
        ([10, 20], [{"weight": 1}, {"weight": 1}], None, [10, 10]),
        ([10, 20], [{"weight": 0.3}, {"weight": 0.1}], None, [10, 3]),
        ([100, 20], [{"weight": 3}, {"weight": 1}], None, [60, 20]),
        ([100, 20], [{"weight": 3}, {"weight": 1}], 40, [30, 10]),
        ([100, 20], [{"weight": 3, "max_rows": 30}, {"weight": 1}], None, [30, 10]),
        ([7, 7, 7], [{"weight": 0.1}, {"weight": 0.2}, {"weight": 0.7}], None, [1, 2, 7]),
    ],
)
def test_quotas(
    available: list[int], settings: list[dict[str, Any]], max_rows: int | None, expected: list[int]
) -> None:
    assert quotas(available, entries(*settings), max_rows) == expected


def test_sample_takes_the_smallest_keys_of_each_group() -> None:
    keys = [(group, ((n * 37 % 101) / 101, str(n % 5), str(n))) for group in (0, 1) for n in range(60)]
    keys += [(0, (0.5, "same", str(n))) for n in range(30)]  # one prompt with many answers
    for wanted in ([0, 60], [1, 59], [45, 7], [80, 1]):
        chosen = sample(lambda: keys, 2, lambda available, wanted=wanted: wanted)
        for group in (0, 1):
            own = sorted(key for g, key in keys if g == group)
            assert [key for key in own if chosen.admits(group, key)] == own[: wanted[group]]


def test_who_keeps_a_shared_row_does_not_depend_on_the_order_of_named_sources() -> None:
    named = entries({"name": "b", "max_rows": 5}, {"name": "a"}, {})
    assert ranks_of(named) == [2, 1, 0]
    assert ranks_of(named[::-1]) == [0, 1, 2]
    assert ranks_of(entries({"name": "b"}, {"name": "a"})) == [0, 0]


def write(path: Path, questions: list[str]) -> str:
    path.write_text("".join(json.dumps({"turns": [question]}) + "\n" for question in questions))
    return str(path)


def make(out: Path, sources: list[dict[str, Any]], **fields: Any) -> tuple[dict[str, Any], set[str]]:
    out.mkdir()
    config = Config.model_validate({"source": sources, "splits": NO_SPLITS, "near_duplicates": None, **fields})
    counts = write_conversations(config, config.source, out)
    rows = pq.read_table(out / "train.parquet").to_pylist()
    return counts, {row["messages"][0]["content"] for row in rows}


def test_a_mixture_of_files(tmp_path: Path) -> None:
    code = write(tmp_path / "c.jsonl", [f"code {n}" for n in range(100)] + ["both", "code 1"])
    chat = write(tmp_path / "t.jsonl", [f"chat {n}" for n in range(400)] + ["both"])
    given = [
        {"path": code, "name": "code", "weight": 1, "domain": "code"},
        {"path": chat, "name": "chat", "weight": 2, "domain": "talk", "max_rows": 150},
    ]
    counts, kept = make(tmp_path / "one", given)
    by_name = {source["name"]: source for source in counts["sources"]}
    assert by_name["chat"]["conversations"] == 150
    assert by_name["code"]["conversations"] == 75
    assert by_name["code"]["duplicates"] + by_name["chat"]["duplicates"] == counts["duplicates"] == 2
    assert counts["conversations"] == len(kept) == 225
    assert counts["left_out_of_mixture"] == 503 - 2 - 225
    for source in counts["sources"]:
        ways = ("quarantined", "excluded", "decontaminated", "duplicates", "near_duplicates", "left_out")
        assert source["rows"] == source["conversations"] + sum(source[way] for way in ways)
    # The order of the sources, and of their rows, changes nothing.
    (tmp_path / "moved").mkdir()
    again = write(tmp_path / "moved" / "x.jsonl", [*(f"chat {n}" for n in reversed(range(400))), "both"])
    _, other = make(tmp_path / "two", [given[1] | {"path": again}, given[0]])
    assert other == kept
    assert (tmp_path / "one" / "train.parquet").read_bytes() == (tmp_path / "two" / "train.parquet").read_bytes()
    # Fewer are a part of them, in the same shares; another seed takes others.
    fewer, some = make(tmp_path / "three", given, max_rows=30)
    assert some < kept
    assert [source["conversations"] for source in fewer["sources"]] == [10, 20]
    assert make(tmp_path / "four", given, max_rows=30, seed=1)[1] != some


def test_a_limit_for_one_source_alone(tmp_path: Path) -> None:
    small = write(tmp_path / "a.jsonl", [f"a {n}" for n in range(30)])
    large = write(tmp_path / "b.jsonl", [f"b {n}" for n in range(300)])
    counts, kept = make(tmp_path / "out", [{"path": small}, {"path": large, "max_rows": 50}], max_rows=60)
    assert len(kept) == 60
    assert counts["left_out_of_mixture"] == 250
    assert counts["left_out_by_max_rows"] == 20


def test_a_weighted_source_without_rows_is_an_error_that_names_it(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", ["a"])
    empty = write(tmp_path / "b.jsonl", [])
    with refused(DataError, "rows", where="data.source b.jsonl"):
        make(tmp_path / "out", [{"path": one, "weight": 1}, {"path": empty, "weight": 1}])
