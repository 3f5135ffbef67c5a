"""Every command with its stdout in a file: there the result stands, whole, and nothing else."""

import ast
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer.main

from deepspec.gates.verdict import Reason, Verdict
from deepspec.registry.promotions import DraftReference, PromotionLog
from deepspec.store import open_store
from flows.cli import main as cli
from tests.e2e.conftest import Finished, Home
from tests.e2e.test_compare import disturbed
from tests.fixtures.nights import prefect_server
from tests.fixtures.openai_server import openai_server
from tests.fixtures.published import publish
from tests.fixtures.s3 import moto_server

ROOT = Path(__file__).parents[2]
PLAIN = {"COLUMNS": "80", "LINES": "24", "FORCE_COLOR": "", "TERM": "xterm-256color"}
ONCE = "--repeat 1 --threads 1"
Words = dict[str, str]


@dataclass
class Case:
    """How a command is called, and what its result must say.

    Attributes:
        arguments: after the command's name; `{tmp}` is a new folder, other such words are what `around` gave.
        says: text of the result.
        rows: of the JSON document, the texts that stand together on one line for people.
        code: its exit code.
        around: what has to be there meanwhile, made in a home and a folder; returns words for the arguments, and
            variables in upper case.
        writes: whether the home is changed: it is a copy then.
        slow: whether it takes seconds, and is called in `make test-full` only.
    """

    arguments: str = ""
    says: str = ""
    rows: Callable[[Any], list[list[str]]] = field(default=lambda _: [])
    code: int = 0
    around: Callable[[Home, Path], AbstractContextManager[Words]] = lambda _home, _folder: nullcontext({})
    writes: bool = False
    slow: bool = False


def versions(document: Any) -> list[list[str]]:
    return [[row["name"], row["version"], row["draft"][:12], row["run_id"], *row["tau"].values()] for row in document]


def stages(document: Any) -> list[list[str]]:
    return [[stage["name"], stage["why"]] for stage in document["stages"]]


def origins(document: Any) -> list[list[str]]:
    files = [source for row in document for source in row["sources"]]
    assert [source["name"] for source in files] == ["conversations.jsonl"]
    rows = [[row["kind"], row["key"][:12], row["digest"][:12]] for row in document]
    return [*rows, *([source["name"], str(source["rows"]), "none is named"] for source in files)]


@contextmanager
def another_champion(home: Home, _folder: Path) -> Iterator[Words]:
    """The log says that another draft was promoted since."""
    log = PromotionLog(open_store(str(home.path / "store")).backend)
    [first] = log.history("tiny")
    other = DraftReference(kind="train", key="0" * 64, digest="0" * 64)
    reason = Reason(gate="tau_gain", passed=True, measured=2.0, required=1.0, sentence="It is better.")
    log.promote("tiny", other, Verdict(accepted=True, reasons=(reason,), champion=first.champion.digest), who="test")
    yield {}


@contextmanager
def another_draft(home: Home, folder: Path) -> Iterator[Words]:
    yield {"other": str(disturbed(home, folder / "other"))}


@contextmanager
def published(home: Home, folder: Path) -> Iterator[Words]:
    yield {"public": str(publish(home.artifact_file("train", "draft"), folder / "public"))}


@contextmanager
def engine(home: Home, folder: Path) -> Iterator[Words]:
    """A server that decodes the tiny target, and says how much of what a draft proposed it accepted."""
    target = home.path / "tiny" / "target"
    with openai_server(target, folder / "log", model="target", metrics="vllm") as server:
        yield {"url": server.url}


@contextmanager
def serving(home: Home, folder: Path) -> Iterator[Words]:
    """A server that decodes the tiny target with the champion's draft."""
    target, draft = home.path / "tiny" / "target", home.artifact_file("train", "draft")
    settings = {"target": str(target), "draft": str(draft), "says_rounds": "detailed"}
    with openai_server(target, folder / "log", model="target", **settings) as server:
        yield {"url": server.url}


@contextmanager
def served_log(_home: Home, folder: Path) -> Iterator[Words]:
    """A log with replies of vLLM, which served another draft."""
    replies = json.loads((ROOT / "tests" / "fixtures" / "engines" / "replies.json").read_text())
    log = folder / "requests.jsonl"
    log.write_text("".join(json.dumps({"response": one["reply"], "domain": "code"}) + "\n" for one in replies))
    yield {"log": str(log)}


@contextmanager
def bucket(_home: Home, _folder: Path) -> Iterator[Words]:
    """An S3 server with an empty bucket."""
    with moto_server() as server, pytest.MonkeyPatch.context() as patch:
        server.enter(patch)
        yield {"bucket": f"s3://{server.bucket}/bundles"}


@contextmanager
def night(home: Home, folder: Path) -> Iterator[Words]:
    """A Prefect server with the night of a model."""
    file = folder / "nights.yaml"
    file.write_text("nights: [{recipe: tiny, cron: 0 2 * * *}]\n")
    server = {"PREFECT_API_URL": prefect_server()}
    home.run("nights", "apply", str(file), environment=PLAIN | server)
    yield {"nights": str(file), **server}


COMMANDS: dict[str, Case] = {
    "demo": Case("--dry-run", says="demo_corpus", rows=stages),
    "run": Case("tiny", says="models:/tiny/1", writes=True),
    "import": Case("{public} --recipe tiny --dry-run", says="import", rows=stages, around=published),
    "plan": Case("tiny", says="states", rows=lambda found: [[found["recipe"]], [f"{found['tokens']:,}"]]),
    "explain": Case("", says="promoted", rows=stages),
    "guide": Case("data", says="# data"),
    "promote": Case("models:/tiny@champion", says="champion already", writes=True),
    "rollback": Case("tiny --reason slower", says="rolled back to version 1", around=another_champion, writes=True),
    "compare": Case(
        "models:/tiny@champion {other} --recipe tiny",
        says="report.html",
        rows=lambda found: [
            [name, f"{part['tau']:.2f}"] for name, part in found["drafts"][0]["evaluation"]["benchmarks"].items()
        ],
        around=another_draft,
        writes=True,
        slow=True,
    ),
    "export": Case("models:/tiny/1 --format deepspec --out {tmp}/out", says="/out"),
    "monitor": Case(
        "tiny --log {log}",
        says="0 of 0 rows counted. No alarm.",  # the document before it has read them
        rows=lambda found: [[stream["name"], str(stream["windows"])] for stream in found["streams"]],
        around=served_log,
        writes=True,
    ),
    "publish": Case("models:/tiny@champion {bucket}", says="Nothing to do", around=bucket),
    "measure": Case(
        "tiny --endpoint {url}",
        says="vllm 0.10.2",
        rows=lambda found: [[name, f"{part['tau_from_tokens']:.3f}"] for name, part in found["benchmarks"].items()],
        around=engine,
        slow=True,
    ),
    "serve-check": Case(
        "{url} --draft models:/tiny@champion",
        says="No answer that ends by a stop",  # for the tiny target has not learned to
        rows=lambda found: [["measured", str(found["expected"]["answers"])], ["served"]],
        code=3,
        around=serving,
        slow=True,
    ),
    "pull": Case("models:/tiny@champion {tmp}/out", says="tiny version 1", rows=lambda found: [[found["model"]]]),
    "serve": Case(
        "models:/tiny@champion --engine vllm --dry-run",
        says="--speculative-config",
        rows=lambda found: [found["argv"][:5]],
    ),
    "cost": Case(
        "models:/tiny@champion",
        says="paid by run",
        rows=lambda found: [[row["stage"], row["key"][:12], row["run"], row["model"]] for row in found["attempts"]],
    ),
    "dashboard": Case(
        "--out {tmp}/out",
        says="/out/index.html",
        rows=lambda found: [[model["name"], model["champion"]["version"]] for model in found["feed"]["models"]],
    ),
    "backup": Case("{tmp}/out", says="artifacts"),
    "data preview": Case("tiny --rows 1", says="tokens are supervised"),
    "artifacts ls": Case(
        says="kind", rows=lambda found: [[row["kind"], row["key"][:12], row["created_at"]] for row in found]
    ),
    "artifacts show": Case("train/", says='"parents"'),
    "artifacts lineage": Case("models:/tiny@champion", says="made from", rows=origins),
    "artifacts gc": Case("--dry-run", says=" would be freed"),
    "artifacts verify": Case("train/", says="1 artifacts checked"),
    "models followers": Case("tiny", says="directory"),
    "artifacts copy": Case("{tmp}/out", says="artifacts"),
    "models ls": Case(says="champion", rows=versions),
    "models history": Case(
        "tiny",
        says="promote",
        rows=lambda found: [
            [str(row["number"]), row["champion"]["digest"][:12], row["who"], row["when"][:19], *_sentences(row)]
            for row in found
        ],
    ),
    "models show": Case(
        "tiny", says="made from", rows=lambda found: [[item["kind"], item["key"][:12]] for item in found["lineage"]]
    ),
    "models reconcile": Case("tiny", says="tiny"),
    "nights apply": Case(
        "{nights} --dry-run",
        says="unchanged",
        rows=lambda found: [[change["model"], change["done"]] for change in found],
        around=night,
        slow=True,
    ),
    "nights ls": Case(
        says="0 2 * * * UTC",
        rows=lambda found: [[each["model"], each["schedule"]] for each in found],
        around=night,
        slow=True,
    ),
    "nights pause": Case("tiny", says="The night of tiny", around=night, slow=True),
    "nights resume": Case("tiny", says="The night of tiny", around=night, slow=True),
    "nights run": Case("tiny", says="flow run", around=night, slow=True),
    "bench attention": Case(f"--context 40 --documents 2 --anchors 5 --slots 3 {ONCE}", says="reference", slow=True),
    "bench decode": Case(f"--batch 2 --requests 1 --max-new-tokens 4 {ONCE}", says="batch=2", slow=True),
    "bench loss": Case(f"--vocab 300 --hidden 8 --anchors 3 --slots 2 {ONCE}", says="reference"),
    "bench sps": Case(f"--rows 2 {ONCE}", says="rows=2", slow=True),
    "bench states": Case(
        f"--tokens 600 --hidden 16 --layers 2 --capture-tokens 100 {ONCE}", says="tokens=600", slow=True
    ),
    "bench tokens": Case(f"--rows 10 --words 10 {ONCE}", says="rows=10", slow=True),
    "bench train-step": Case(
        f"--recipe tiny --documents 2 --length 24 --num-anchors 3 {ONCE}", says="recipe=tiny", slow=True
    ),
    "bench warm": Case("tiny --repeat 1", says="median of 1", writes=True, slow=True),
}
"""Command -> how it is called."""


def _sentences(row: Any) -> list[str]:
    return [reason["sentence"] for reason in (row["verdict"] or {}).get("reasons", [])]


def every_command() -> dict[str, Any]:
    """Every command of the program, by its full name."""

    def walk(group: Any, name: str) -> Iterator[tuple[str, Any]]:
        for word, command in group.commands.items():
            full = f"{name} {word}".strip()
            yield from walk(command, full) if hasattr(command, "commands") else [(full, command)]

    return dict(walk(typer.main.get_command(cli.app), ""))


def test_every_command_is_looked_at() -> None:
    assert set(COMMANDS) == set(every_command())


def cases() -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.full if case.slow else ()) for name, case in COMMANDS.items()]


@pytest.mark.parametrize("name", cases())
def test_stdout_holds_the_result_and_nothing_else(name: str, cold: Home, tmp_path: Path) -> None:
    """Every command, for people and for scripts: ten seconds together, and forty for those that compute."""
    case = COMMANDS[name]
    home = _writable(cold, tmp_path) if case.writes else cold
    with case.around(home, tmp_path) as words:
        _check(name, case, home, tmp_path, words)


def _check(name: str, case: Case, home: Home, folder: Path, words: Words) -> None:
    options = {option for parameter in every_command()[name].params for option in parameter.opts}
    document = None
    if "--json" in options or name.startswith("bench "):
        done = _call(home, name, case, folder / "json", words, "--json")
        assert done.out.isascii()
        document = json.loads(done.out)
    done = _call(home, name, case, folder / "text", words)
    lines = done.out.splitlines()
    assert case.says in done.out
    assert not [letter for letter in done.out if not letter.isprintable() and letter not in "\n\t"]
    for row in case.rows(document):
        assert any(all(word in line for word in row) for line in lines), (row, done.out)
    for said in done.err.splitlines():
        assert not said.strip() or said not in lines, said
    assert not [
        line for line in lines if line.startswith(("deepspec:", "WARNING", "Running ")) or "\u2026" in line[-1:]
    ]


def test_a_run_tells_its_progress_apart_from_its_outcome(cold: Home) -> None:
    """The run from nothing, which is a process as a user's is."""
    out, err = ((cold.path / name).read_text() for name in ("stdout.txt", "stderr.txt"))
    record = cold.record()
    for result in (record["report"], "models:/tiny/1", "macro average", f"{record['run_id']}/run.json"):
        assert result in out
        assert result not in err
    for stage in record["stages"]:
        assert stage["name"] in err
        assert not [line for line in out.splitlines() if line.split()[1:3] == [stage["name"], stage["status"]]]


def _writable(cold: Home, folder: Path) -> Home:
    import shutil

    shutil.copytree(cold.path, folder / "home", copy_function=shutil.copy2)
    return Home(folder / "home")


def _call(home: Home, name: str, case: Case, folder: Path, given: Words, *more: str) -> Finished:
    folder.mkdir()
    keys = {stage["kind"]: stage["key"] for stage in home.record()["stages"]}
    words = [word.format(tmp=folder, **given) for word in case.arguments.split()]
    words = [word + keys[word[:-1]] if word in ("train/", "register/") else word for word in words]
    variables = {word: value for word, value in given.items() if word.isupper()}
    return home.run(*name.split(), *words, *more, code=case.code, environment=PLAIN | variables)


ALLOWED = {
    "flows/cli/terminal.py",
    "deepspec/data/sources/columnar/worker.py",  # the process that asks it reads its stdout
    "deepspec/bench/__main__.py",  # runs where `flows` is not installed
    "deepspec/training/parallel.py",  # flushes what libraries have printed, before it ends the process
}


def test_one_file_owns_stdout_and_stderr() -> None:
    """No other file opens a console, prints, or touches the streams."""
    found = []
    for room in ("deepspec", "tasks", "flows"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name in ALLOWED:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if _prints(node):
                    found.append(f"{name}:{node.lineno}")  # type: ignore[attr-defined]
    assert found == []


def _prints(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        return (owner, node.attr) in {
            *((owner, name) for owner in ("sys",) for name in ("stdout", "stderr", "__stdout__", "__stderr__")),
            *((owner, name) for owner in ("typer", "click") for name in ("echo", "secho")),
        }
    if isinstance(node, ast.ImportFrom):
        return node.module == "sys" and bool({"stdout", "stderr"} & {name.name for name in node.names})
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "Console")
