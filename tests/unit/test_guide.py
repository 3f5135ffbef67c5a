"""README, guide and CONTRIBUTING: what they name exists, what they show can be read, the package ships the guide."""

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main

from deepspec.bench import measuring
from deepspec.bench.__main__ import main as bench_main
from deepspec.data.sources.parsing import parse_row
from deepspec.data.traffic.exchange import exchange_of
from deepspec.data.traffic_config import Traffic
from deepspec.guide import TOPICS, read, summary
from deepspec.nights import read_nights
from deepspec.recipe import Recipe, load_recipe, read_yaml
from flows.cli import main as cli
from tests.fixtures.command import call
from tests.fixtures.documents import CONTRIBUTING, GUIDE, NEEDS, README, ROOT, anchors, blocks, links

PAGES = (README, *GUIDE)
ANY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
RECIPE = "dspark-qwen3-4b"
MOST_LINES = {README: 150, CONTRIBUTING: 200}


def test_every_topic_is_a_page_and_every_page_a_topic() -> None:
    pages = {path.stem for path in (ROOT / "deepspec" / "guide").glob("*.md")}
    assert pages == set(TOPICS)
    for topic in TOPICS:
        assert read(topic).startswith(f"# {topic}: {summary(topic)}\n")
        assert summary(topic)


def test_every_file_of_the_library_that_is_no_module_is_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["deepspec"]
    package = ROOT / "deepspec"
    others = [path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}]
    assert {path.suffix for path in others} >= {".md", ".yaml", ".j2"}
    for path in others:
        name = path.relative_to(package).as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns), name


@pytest.mark.parametrize(("page", "most"), MOST_LINES.items(), ids=lambda value: getattr(value, "stem", None))
def test_pages_that_are_read_in_one_go_stay_short(page: Path, most: int) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("page", [*PAGES, CONTRIBUTING], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), path
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_the_readme_leads_to_every_topic() -> None:
    assert set(GUIDE) <= {(ROOT / path).resolve() for path, _ in links(README)}


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_commands_and_recipes_of_the_guide_fit_into_a_terminal(page: Path) -> None:
    for block in blocks(page):
        if block.language in {"sh", "console", "yaml"}:
            # A column is left free on either side.
            assert all(len(line) <= 78 for line in block.text.splitlines()), block.text


# --- commands -----------------------------------------------------------------------------------------------------


def check_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if the program would refuse these arguments; programs that are not ours are passed."""
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
        case ["deepspec", *arguments]:
            check_arguments(arguments, monkeypatch)
        case ["python", "-m", "deepspec.bench", *arguments]:
            check_bench(arguments, monkeypatch)
        case _:
            assert words[0] in {"mlflow", "prefect", "source", "vllm"}, words


def check_arguments(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command line parse a command of `deepspec`, and the recipe its overrides."""
    command: Any = typer.main.get_command(cli.app)
    rest = list(arguments)
    path = []
    while isinstance(command, typer.core.TyperGroup):
        path.append(rest.pop(0))
        command = command.commands[path[-1]]
    if path[0] == "bench" and path[1] != "warm":
        check_bench([path[1], *rest], monkeypatch)
        return
    parameters = command.make_context(" ".join(path), rest).params
    recipe, overrides = parameters.get("recipe"), parameters.get("overrides")
    if recipe and not recipe.endswith(".yaml"):
        load_recipe(recipe, overrides or [])


def check_bench(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a bench parse its options, and stop before it measures."""

    class Parsed(Exception):
        pass

    def stop(*_: object) -> None:
        raise Parsed

    monkeypatch.setattr(measuring, "prepare_device", stop)
    with pytest.raises(Parsed):
        bench_main(arguments)


@ANY_PAGE
def test_every_block_of_commands_can_be_parsed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(page):
        if block.language == "sh":
            assert block.rest in {"", *NEEDS}, block.rest
        for words in block.commands():
            check_command(words, monkeypatch)


@pytest.mark.parametrize(
    "wrong",
    [
        ["deepspec", "explain", "--nope"],
        ["deepspec", "models", "nope"],
        ["deepspec", "run", "nope"],
        ["deepspec", "run", RECIPE, "--set", "train.nope=1"],
        ["deepspec", "bench", "loss", "--nope"],
        ["make", "nope"],
        ["nope"],
    ],
    ids=" ".join,
)
def test_a_command_that_does_not_exist_is_noticed(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # SystemExit is argparse's; a usage error, a KeyError or a failed assertion are exceptions.
    with pytest.raises((Exception, SystemExit)):
        check_command(wrong, monkeypatch)


@ANY_PAGE
def test_commands_and_options_within_sentences_exist(page: Path) -> None:
    command: Any = typer.main.get_command(cli.app)
    for text in re.findall(r"`deepspec ([^`\n]+)`", page.read_text(encoding="utf-8")):
        found = command
        for word in text.split():
            if word.startswith("--"):
                known = {name for parameter in found.params for name in parameter.opts}
                assert word.partition("=")[0] in known, text
            elif isinstance(found, typer.core.TyperGroup):
                assert word in found.commands or word == "…", text
                found = found.commands.get(word, found)


# --- recipes and rows ---------------------------------------------------------------------------------------------


@ANY_PAGE
def test_fields_within_sentences_exist(page: Path) -> None:
    recipe = load_recipe(RECIPE)
    sections = "|".join(Recipe.model_fields)
    for path in re.findall(rf"`((?:{sections})(?:\.[a-z_]+)+)[`=]", page.read_text(encoding="utf-8")):
        if path.endswith(".json"):
            continue
        value: object = recipe
        for part in path.split("."):
            assert hasattr(value, part), path
            value = getattr(value, part)


def merged(base: Any, part: Any) -> Any:
    """`base` with what `part` says instead, section by section."""
    if isinstance(base, Mapping) and isinstance(part, Mapping):
        return {**base, **{name: merged(base.get(name), value) for name, value in part.items()}}
    return part


@ANY_PAGE
def test_recipes_and_rows_that_are_shown_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            file = tmp_path / "shown.yaml"
            file.write_text(block.text)
            if block.file == "nights.yaml":
                assert read_nights(file).nights
                continue
            shown = read_yaml(str(file))
            Recipe.model_validate(shown if block.file else merged(read_yaml(RECIPE), shown))
            if block.file:
                assert len(block.text.splitlines()) <= 15
        if block.language == "json":
            for line in block.text.splitlines():
                row = json.loads(line)
                if page.stem == "traffic":
                    row = exchange_of(row, Traffic(days=1, consent_field=None)).row
                assert parse_row(row, max_row_bytes=1000)


# --- the command --------------------------------------------------------------------------------------------------


def test_the_guide_is_markdown_in_a_pipe_and_formatted_in_a_terminal() -> None:
    assert call(["guide", "data"], os.environ).stdout == read("data")
    shown = call(["guide", "data"], {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"})
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout)
    assert plain != shown.stdout
    assert max(map(len, plain.splitlines())) <= 80
    assert "**" not in plain
    assert ".md)" not in plain
    assert "deepspec guide targets" in plain


def test_the_guide_lists_its_topics_and_help_names_the_guide() -> None:
    listed = call(["guide"], os.environ)
    assert listed.returncode == 0
    for topic in TOPICS:
        assert re.search(rf"^{topic} +{re.escape(summary(topic))}$", listed.stdout, re.MULTILINE)
    assert max(map(len, listed.stdout.splitlines())) <= 100
    assert re.search(r"^  guide ", call(["--help"], os.environ).stdout, re.MULTILINE)


def test_an_unknown_topic_is_refused_with_the_known_ones() -> None:
    done = call(["guide", "nope"], os.environ)
    assert done.returncode == 2
    assert all(topic in done.stderr for topic in TOPICS)
