"""Benchmarks by name: rows as they are published, where a name leads, and what it does to keys."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.data.sources import hub
from deepspec.data.sources.finding import Source
from deepspec.data.sources.hub import HubPart
from deepspec.data.sources.readers import read_rows
from deepspec.data.sources.rows import RowRejected
from deepspec.errors import DataError, RecipeError
from deepspec.evaluation.config import Benchmark, Config
from deepspec.evaluation.known_benchmarks import KNOWN, VARIABLE
from deepspec.evaluation.prompts.files import find_benchmark, read_benchmark_rows
from deepspec.evaluation.prompts.selection import held_out_prompts, read_benchmark, select
from deepspec.inputs import local
from deepspec.recipe import Recipe, load_recipe, shipped
from deepspec.store import open_store
from deepspec.store.backends import s3
from deepspec.store.fingerprint import External
from deepspec.store.keys import canonical
from tasks.resolve import benchmarks_of
from tasks.runtime.references import Pending
from tasks.runtime.run import Run
from tests.fixtures.one_process import reading_here
from tests.fixtures.refused import refused
from tests.fixtures.s3 import S3Server

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
PROGRAMMER = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a"
    " correct Python program that matches the specification and passes all tests. You will NOT return anything except"
    " for the program\n\n### Question:\n"
)
FUNCTION = "Write a solution to the following problem and make sure that it passes the tests:\n```python\n"
PROGRAM = "\n\n### Format: Write your code in the following format:\n```python\n# YOUR CODE HERE\n```"
BACKTICKS = "\n\n### Answer: (use the provided format with backticks)"
# As they are published: a row with the columns that count and some that do not, and what is asked.
ORIGINALS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gsm8k": ({"question": "What is 2 + 3?", "answer": "#### 5"}, ["What is 2 + 3?" + BOXED]),
    "math500": ({"problem": "Solve $x=1$.", "answer": "1", "level": 1}, ["Solve $x=1$." + BOXED]),
    "aime24": ({"id": 60, "problem": "Find $n$.", "answer": "204"}, ["Find $n$." + BOXED]),
    "aime25": ({"problem_idx": 1, "problem": "Find $b$.", "answer": 70}, ["Find $b$." + BOXED]),
    "humaneval": (
        {"task_id": "HumanEval/0", "prompt": 'def one():\n    """One."""\n', "test": "assert"},
        [FUNCTION + 'def one():\n    """One."""\n\n```'],
    ),
    "mbpp": ({"task_id": 2, "prompt": "Write a function.", "test_list": ["assert"]}, ["Write a function."]),
    "livecodebench": (
        {"question_content": "Add two numbers.", "starter_code": "", "private_test_cases": "eJw"},
        [f"{PROGRAMMER}Add two numbers.{PROGRAM}{BACKTICKS}"],
    ),
    "lbpp": ({"task_id": "lbpp/0", "instruction": "Sort a tree.", "completion": "eJw"}, ["Sort a tree."]),
    "swe-bench": (
        {"repo": "a/b", "problem_statement": "It crashes.", "patch": "diff"},
        ["Problem Statement:\nIt crashes.\nPlease fix the issue described above."],
    ),
    "mt-bench": ({"prompt": ["Write.", "Rewrite."], "prompt_id": 1, "reference": []}, ["Write.", "Rewrite."]),
    "alpaca": (
        {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"},
        ["Translate.\n\nInput:\nGuten Tag"],
    ),
    "arena-hard-v2": (
        {"uid": "x", "category": "hard_prompt", "prompt": "Write me a program."},
        ["Write me a program."],
    ),
}
DOMAINS = {
    "math": ["gsm8k", "math500", "aime24", "aime25"],
    "code": ["humaneval", "mbpp", "livecodebench", "lbpp", "swe-bench"],
    "chat": ["mt-bench", "alpaca", "arena-hard-v2"],
}
PROTOCOL = {
    "gsm8k": 500,
    "math500": 500,
    "aime25": 30,
    "humaneval": 164,
    "mbpp": 256,
    "livecodebench": 500,
    "mt-bench": 80,
    "alpaca": 500,
    "arena-hard-v2": 500,
}


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_the_table_is_whole() -> None:
    assert set(KNOWN) == set(ORIGINALS)
    assert {name: known.domain for name, known in KNOWN.items()} == {
        name: domain for domain, names in DOMAINS.items() for name in names
    }
    assert {name: known.num_prompts for name, known in KNOWN.items() if known.num_prompts is not None} == PROTOCOL
    assert len({known.hub for known in KNOWN.values()}) == len(KNOWN)
    with pytest.raises(TypeError):
        KNOWN["mine"] = KNOWN["gsm8k"]  # type: ignore[index]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ORIGINALS)
def test_a_published_row_becomes_the_users_turns(tmp_path: Path, name: str, suffix: str) -> None:
    row, turns = ORIGINALS[name]
    path = tmp_path / f"{name}{suffix}"
    if suffix == ".jsonl":
        write_lines(path, [row])
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    (prompt,) = select(name, Benchmark(path=str(path)), seed=0)
    assert list(prompt.turns) == turns
    assert prompt.messages == ({"role": "user", "content": turns[0]},)
    assert prompt.later == tuple(turns[1:])
    assert prompt.place == f"{path}:1"


def test_forms_that_a_row_may_also_have(tmp_path: Path) -> None:
    begun = {"question_content": "Q", "starter_code": "class Solution:\n    "}
    (asked,) = KNOWN["livecodebench"].turns(begun)
    assert "### Format: Use the following code structure:\n```python\nclass Solution:\n    \n```" in asked
    assert KNOWN["alpaca"].turns({"instruction": "Say hello.", "input": ""}) == ["Say hello."]
    assert KNOWN["aime24"].turns({"Problem": "Find $n$."}) == ORIGINALS["aime24"][1]
    assert KNOWN["mbpp"].turns({"text": "Write a function."}) == ["Write a function."]
    rows = [
        {"turns": ["as it is"]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "too"}], "question": "not this"},
    ]
    prompts = read_benchmark("gsm8k", str(write_lines(tmp_path / "g.jsonl", rows)), known=KNOWN["gsm8k"])
    assert [prompt.messages[-1]["content"] for prompt in prompts] == ["as it is", "too"]


@pytest.mark.parametrize(
    ("name", "row", "named"),
    [
        ("gsm8k", {"problem": "a"}, "row of gsm8k without question"),
        ("aime25", {"answer": 3}, "row of aime25 without problem or Problem or question"),
        ("gsm8k", {"question": " "}, "question is empty"),
        ("gsm8k", {"question": 7}, "question is not a string"),
        ("mt-bench", {"prompt": []}, "row of mt-bench without prompt"),
        ("mt-bench", {"prompt": ["a", None]}, "prompt is not a string"),
        ("alpaca", {"instruction": "a", "input": 3}, "input is not a string"),
        ("gsm8k", {"turns": [3]}, "content is not a string"),
    ],
)
def test_a_malformed_row_names_benchmark_and_row(tmp_path: Path, name: str, row: dict[str, Any], named: str) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"turns": ["fine"]}, row])
    with refused(DataError, named, where=f"benchmark {name}, {path}:2") as caught:
        select(name, Benchmark(path=str(path)), seed=0)
    assert f" {name} " in str(caught.value.remedy)


def test_a_table_without_its_columns_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.parquet"
    pq.write_table(pa.table({"answer": ["a"]}), path)
    with refused(DataError, "answer", "question", where=str(path)):
        select("gsm8k", Benchmark(path=str(path)), seed=0)
    with refused(DataError, "empty", where="benchmark gsm8k"):
        select("gsm8k", Benchmark(path=str(write_lines(tmp_path / "gsm8k.jsonl", []))), seed=0)


def test_hidden_tests_beside_a_question_may_be_long(tmp_path: Path) -> None:
    row = {"question_content": "Q", "private_test_cases": "x" * (1 << 24)}
    path = write_lines(tmp_path / "live.jsonl", [row])
    assert len(select("livecodebench", Benchmark(path=str(path)), seed=0)) == 1
    with refused(DataError, "data.max_row_bytes", where=f"benchmark mine, {path}:1"):
        select("mine", Benchmark(path=str(path)), seed=0)


def test_names_in_a_recipe() -> None:
    by_list = Config.model_validate({"benchmarks": ["gsm8k", "lbpp"]})
    by_name = Config.model_validate({"benchmarks": {"gsm8k": "gsm8k", "lbpp": {"path": "lbpp"}}})
    assert by_list == by_name
    assert by_list.benchmarks["gsm8k"].num_prompts == 500
    assert by_list.benchmarks["lbpp"].num_prompts is None
    assert by_list.benchmarks["gsm8k"].domain_of("gsm8k") == "math"
    more = Config.model_validate(
        {
            "benchmarks": {
                "all": {"path": "gsm8k", "num_prompts": None},
                "mine": {"path": "mine.jsonl", "domain": "code"},
                "half": {"path": "half.jsonl", "rows": "math500"},
                "mbpp": {"path": "mbpp.jsonl", "domain": "chat"},
                "hub": "openai/gsm8k@abc",
                "other": "x.jsonl",
            }
        }
    ).benchmarks
    assert [(name, item.num_prompts, item.domain_of(name)) for name, item in more.items()] == [
        ("all", None, "math"),
        ("mine", None, "code"),
        ("half", None, "math"),
        ("mbpp", None, "chat"),
        ("hub", 500, "math"),
        ("other", None, None),
    ]
    assert [known.name if (known := item.known(name)) else None for name, item in more.items()] == [
        "gsm8k",
        None,
        "math500",
        "mbpp",
        "gsm8k",
        None,
    ]
    assert Config.model_validate(Config(benchmarks=more).model_dump()).benchmarks == more


@pytest.mark.parametrize(
    ("benchmarks", "words"),
    [
        ("[gsm-8k]", ["evaluate.benchmarks", "'gsm-8k'", "Did you mean gsm8k?"]),
        ("[gsm8k, {path: x}]", ["a list has names of known benchmarks"]),
        ("{mine: {path: x, rows: mtbench}}", ["evaluate.benchmarks.mine.rows", "Did you mean mt-bench?"]),
        ("{mine: {path: x, domain: maths}}", ["evaluate.benchmarks.mine.domain", "one of math, code, chat"]),
    ],
)
def test_wrong_names_in_a_recipe_are_told(benchmarks: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", [f"evaluate.benchmarks={benchmarks}"])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(("path", "meant"), [("gsm-8k", "gsm8k"), ("MATH-500", "math500"), ("mt_bench", "mt-bench")])
def test_a_name_that_is_nearly_known_is_told_with_the_one_that_is_meant(path: str, meant: str) -> None:
    with refused(DataError, "file", where=f"benchmark b, {path}") as caught:
        select("b", Benchmark(path=path), seed=0)
    assert f"{meant}?" in str(caught.value.remedy)
    assert "gsm8k, math500" in str(caught.value.remedy)


def test_a_name_leads_to_the_folder_and_without_one_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("tiny", ["evaluate.benchmarks={gsm8k: gsm8k, again: mbpp}"])
    paths = {name: item.path for name, item in local(recipe, tmp_path).evaluate.benchmarks.items()}
    assert paths == {"gsm8k": "openai/gsm8k", "again": "google-research-datasets/mbpp"}
    monkeypatch.setenv(VARIABLE, str(tmp_path / "eval"))
    write_lines(tmp_path / "eval" / "gsm8k.jsonl", [ORIGINALS["gsm8k"][0]])
    (tmp_path / "eval" / "gsm8k.parquet").write_bytes(b"not this one")
    pq.write_table(pa.Table.from_pylist([ORIGINALS["mbpp"][0]]), tmp_path / "eval" / "mbpp.parquet")
    here = local(recipe, tmp_path).evaluate
    assert here.benchmarks["gsm8k"].path == str(tmp_path / "eval" / "gsm8k.jsonl")
    assert here.benchmarks["again"].path == str(tmp_path / "eval" / "mbpp.parquet")
    (prompt,) = select("again", here.benchmarks["again"], seed=0)
    assert list(prompt.turns) == ORIGINALS["mbpp"][1]
    assert len(held_out_prompts(here)) == len(held_out_prompts(recipe.evaluate)) == 2  # also without a flow


def test_a_name_that_the_folder_lacks_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    named = ("alpaca.jsonl or alpaca.parquet", str(tmp_path), "DEEPSPEC_BENCHMARKS")
    with refused(DataError, *named, where="evaluate.benchmarks.alpaca") as caught:
        local(load_recipe("tiny", ["evaluate.benchmarks=[alpaca]"]), tmp_path)
    assert "evaluate.benchmarks.alpaca=tatsu-lab/alpaca" in str(caught.value.remedy)


def test_a_name_leads_to_a_bucket(moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto.enter(monkeypatch)
    prefix = f"s3://{moto.bucket}/{tmp_path.name}/eval/"
    body = json.dumps(ORIGINALS["mt-bench"][0]).encode()
    s3.client().put_object(Bucket=moto.bucket, Key=f"{tmp_path.name}/eval/mt-bench.jsonl", Body=body)
    table = tmp_path / "gsm8k.parquet"
    pq.write_table(pa.Table.from_pylist([ORIGINALS["gsm8k"][0]]), table)
    s3.client().put_object(Bucket=moto.bucket, Key=f"{tmp_path.name}/eval/gsm8k.parquet", Body=table.read_bytes())
    monkeypatch.setenv(VARIABLE, prefix)
    here = local(load_recipe("tiny", ["evaluate.benchmarks=[mt-bench, gsm8k]"]), tmp_path).evaluate
    assert Path(here.benchmarks["mt-bench"].path).read_bytes() == body
    assert [len(select(name, item, seed=0)) for name, item in here.benchmarks.items()] == [1, 1]
    with refused(DataError, "alpaca.jsonl or alpaca.parquet", prefix, where="evaluate.benchmarks.alpaca"):
        local(load_recipe("tiny", ["evaluate.benchmarks=[alpaca]"]), tmp_path)
    with refused(DataError, "object storage", where="evaluate.benchmarks.gsm8k"):
        read_benchmark("gsm8k", "gsm8k", known=KNOWN["gsm8k"])


# What is read of the hub -----------------------------------------------------------------------------------------


def test_the_original_is_read_in_the_part_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*arguments: Any, **named: Any) -> datasets.Dataset:
        asked.append((arguments, named))
        return datasets.Dataset.from_list([ORIGINALS["gsm8k"][0]])

    monkeypatch.setattr(datasets, "load_dataset", load)
    with reading_here():
        (prompt,) = select("gsm8k", Benchmark(path="gsm8k"), seed=0)
        select("mine", Benchmark(path="openai/gsm8k@v1"), seed=0)
    assert list(prompt.turns) == ORIGINALS["gsm8k"][1]
    assert prompt.place == "openai/gsm8k:1"
    assert asked == [
        (("openai/gsm8k", "main"), {"split": "test", "revision": None}),
        (("openai/gsm8k", "main"), {"split": "test", "revision": "v1"}),
    ]
    assert find_benchmark("gsm8k", "someone/gsm8k", KNOWN["gsm8k"]) == (Source("someone/gsm8k", "hub"),)


def test_files_of_a_data_set_are_read_like_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, file: str, **named: Any) -> str:
        assert (name, named) == ("livecodebench/code_generation_lite", {"repo_type": "dataset", "revision": None})
        return str(write_lines(tmp_path / file, [{**ORIGINALS["livecodebench"][0], "question_content": file}]))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    known = KNOWN["livecodebench"]
    (source,) = find_benchmark("livecodebench", "livecodebench", known)
    places = [str(row.position) for row in read_benchmark_rows(source, known)]
    assert places[:2] == [f"{known.hub}/test.jsonl:1", f"{known.hub}/test2.jsonl:1"]
    assert len(places) == 6
    assert all(len(known.turns(dict(row.value))) == 1 for row in read_rows(source, max_row_bytes=999))  # type: ignore[call-overload]


# Keys ------------------------------------------------------------------------------------------------------------


def plan_of(recipe: Recipe, tmp_path: Path, *, dry: bool = False) -> Run[Recipe]:
    home = tmp_path / "home"
    return Run(local(recipe, home), open_store(str(home / "store")), home, previewing=True, dry=dry)


def fingerprint(tmp_path: Path, benchmarks: str) -> str:
    found = benchmarks_of(plan_of(load_recipe("tiny", [f"evaluate.benchmarks={benchmarks}"]), tmp_path))
    assert isinstance(found, External)
    return found.fingerprint


def test_equal_content_is_the_same_input_wherever_it_lies_and_however_it_is_named(
    moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto.enter(monkeypatch)
    path = write_lines(tmp_path / "eval" / "gsm8k.jsonl", [ORIGINALS["gsm8k"][0]])
    key = f"{tmp_path.name}/eval/gsm8k.jsonl"
    s3.client().put_object(Bucket=moto.bucket, Key=key, Body=path.read_bytes())
    by_path = fingerprint(tmp_path, f"{{gsm8k: {path}}}")
    assert fingerprint(tmp_path, f"{{gsm8k: {path.parent}}}") == by_path
    assert fingerprint(tmp_path, f"{{gsm8k: s3://{moto.bucket}/{key}}}") == by_path
    for place in (str(path.parent), f"s3://{moto.bucket}/{tmp_path.name}/eval"):
        monkeypatch.setenv(VARIABLE, place)
        assert fingerprint(tmp_path, "[gsm8k]") == by_path
    assert fingerprint(tmp_path, "{mine: gsm8k}") == fingerprint(tmp_path, f"{{mine: {{path: {path}, rows: gsm8k}}}}")
    assert fingerprint(tmp_path, "{mine: gsm8k}") != fingerprint(tmp_path, f"{{mine: {path}}}")
    write_lines(path, [{"question": "another"}])
    assert fingerprint(tmp_path, f"{{gsm8k: {path}}}") != by_path


def test_keys_from_before_there_were_names_stay(tmp_path: Path) -> None:
    """A file under any name had, and has, a key of its SHA-256, name, share and seed alone."""
    import hashlib

    from deepspec.store.keys import digest_of

    path = write_lines(tmp_path / "q.jsonl", [{"turns": ["q"]}])
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in ("gsm8k", "mine"):
        assert fingerprint(tmp_path, f"{{{name}: {path}}}") == digest_of([{name: content}, {name: [1.0, 0]}])
        section = canonical(load_recipe("tiny", [f"evaluate.benchmarks={{{name}: {path}}}"]).evaluate)
        assert section["benchmarks"] == {name: {"share": 1.0, "num_prompts": None}}


def test_what_the_name_says_is_not_in_the_key_twice() -> None:
    def section(benchmarks: str) -> Any:
        return canonical(load_recipe("tiny", [f"evaluate.benchmarks={benchmarks}"]).evaluate)["benchmarks"]

    plain = section("{gsm8k: {path: a.jsonl, num_prompts: 500}}")
    assert plain == section("[gsm8k]") == section("{gsm8k: openai/gsm8k}")
    assert plain == section("{gsm8k: {path: a.jsonl, num_prompts: 500, rows: gsm8k, domain: math}}")
    assert plain != section("{gsm8k: {path: a.jsonl, num_prompts: 500, domain: chat}}")
    assert plain != section("{gsm8k: {path: a.jsonl, num_prompts: 500, rows: math500}}")


def test_a_data_set_on_the_hub_enters_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {"openai/gsm8k": "a" * 40, "openai/gsm8k@v1": "b" * 40, "someone/chats": "c" * 40}
    monkeypatch.setattr(hub, "commit_of", commits.__getitem__)
    newest = fingerprint(tmp_path, "[gsm8k]")
    assert newest != fingerprint(tmp_path, "{gsm8k: openai/gsm8k@v1}")
    commits["openai/gsm8k@v1"] = "a" * 40
    assert newest == fingerprint(tmp_path, "{gsm8k: openai/gsm8k@v1}")
    assert fingerprint(tmp_path, "{mine: someone/chats}") != fingerprint(tmp_path, "{mine: openai/gsm8k}")


def unreachable(location: str) -> str:
    raise OSError(f"{location}: no network")


def test_without_folder_and_network_a_run_ends_early_and_a_dry_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "commit_of", unreachable)
    recipe = load_recipe("tiny", ["evaluate.benchmarks=[gsm8k, mbpp]"])
    with pytest.raises(DataError, match="hub") as caught:
        benchmarks_of(plan_of(recipe, tmp_path))
    assert caught.value.where == "evaluate.benchmarks.gsm8k openai/gsm8k"
    ways = (
        "gsm8k.jsonl or gsm8k.parquet",
        "DEEPSPEC_BENCHMARKS",
        "evaluate.benchmarks.gsm8k",
        "evaluate.benchmarks={}",
    )
    assert all(way in str(caught.value.remedy) for way in ways)
    assert isinstance(benchmarks_of(plan_of(recipe, tmp_path, dry=True)), Pending)
    missing = load_recipe("tiny", [f"evaluate.benchmarks={{gsm8k: {tmp_path}/missing.jsonl}}"])
    with refused(DataError, where=f"{tmp_path}/missing.jsonl"):  # a wrong path is told in a dry run, too
        benchmarks_of(plan_of(missing, tmp_path, dry=True))


def test_shipped_recipes_follow_the_published_protocol() -> None:
    published = [load_recipe(name) for name in shipped() if "qwen3" in name or "gemma4" in name]
    assert len(published) == 12
    for recipe in published:
        assert {name: item.num_prompts for name, item in recipe.evaluate.benchmarks.items()} == PROTOCOL
        assert all(item.path == name for name, item in recipe.evaluate.benchmarks.items())


def test_the_table_imports_nothing_heavy() -> None:
    code = (
        "import sys, deepspec.evaluation.config;"
        " sys.exit(any(name in sys.modules for name in ('pyarrow', 'numpy', 'huggingface_hub', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_row_and_part_are_plain_values() -> None:
    assert KNOWN["mbpp"].part == HubPart("sanitized", "test")
    with pytest.raises(RowRejected, match="without prompt or text"):
        KNOWN["mbpp"].turns({})
