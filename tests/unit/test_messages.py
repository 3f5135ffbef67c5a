"""What deepspec says when it refuses: its words stand in tests/golden/messages.txt, and in no other test."""

import ast
import re

import pytest

from tests.fixtures.messages import ARGUMENT, ROOMS, ROOT, VALIDATOR, Message, golden_text, messages_of

GOLDEN = ROOT / "tests" / "golden" / "messages.txt"
MOST_CHARACTERS = 200
"""Of fixed text in what and remedy together: two lines of a terminal."""
AVOIDED = re.compile(
    r"\b(nobody|somebody|whoever|hangs? on|anew|told|tells?|besides?|so many|rightly|at work|by now|mend)\b",
    re.IGNORECASE,
)

NEED_NO_REMEDY = {
    ARGUMENT: "the option is named by typer, and the help by the command line",
    VALIDATOR: "the recipe adds one: which field to change, or how",
    "RowRejected": "a row's reason, counted in the quarantine; data.max_quarantined_share says what becomes of it",
    "ArtifactDamaged": "the class has one for all",
    "deepspec/data/responses/regenerate.py: an answer came that was not asked for, or twice.": "a mistake in code",
    "deepspec/store/artifacts.py: The artifact is not published before its `with` block has ended.": "a mistake, too",
    "deepspec/store/keys.py": "a mistake in a stage's or an algorithm's code: `where` names the field",
}


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    return messages_of()


def test_golden_messages(messages: list[Message], request: pytest.FixtureRequest) -> None:
    found = golden_text(messages)
    if request.config.getoption("--golden"):
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8"), "read the difference, then `make golden`"


def test_every_error_that_a_user_meets_has_a_remedy(messages: list[Message]) -> None:
    without = {name for message in messages if message.remedy is None for name in _names(message)}
    open_ = [message for message in messages if message.remedy is None and not _names(message) & NEED_NO_REMEDY.keys()]
    assert not open_, "\n".join(f"{message.module}\n{message}" for message in open_)
    assert not NEED_NO_REMEDY.keys() - without


def test_a_command_names_what_is_wrong_where_and_what_to_do(messages: list[Message]) -> None:
    own = [message for message in messages if message.module.startswith("flows/cli/") and message.error != ARGUMENT]
    assert {"BadArgument", "RecipeError", "ArtifactError"} <= {message.error for message in own}
    for message in own:
        assert message.what.fixed.strip(" ."), message
        assert message.where, message
        assert message.remedy, message


def test_a_command_ends_by_an_error_and_not_by_words_of_its_own() -> None:
    """What is printed before an exit code of 2 would be in no golden file."""
    for path in sorted((ROOT / "flows" / "cli").rglob("*.py")):
        exits = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if _ends_with_2(node)]
        assert len(exits) == (path.name == "main.py"), path  # the help, where no command is named


def _ends_with_2(node: ast.AST) -> bool:
    """Whether it is a call `typer.Exit(2)`."""
    return isinstance(node, ast.Call) and ast.unparse(node) in ("typer.Exit(2)", "typer.Exit(code=2)")


def _names(message: Message) -> set[str]:
    return {message.error, message.module, f"{message.module}: {message.what.template}"}


def test_messages_are_short_and_in_plain_words(messages: list[Message]) -> None:
    for message in messages:
        texts = [text.fixed for text in (message.what, message.remedy) if text]
        assert sum(map(len, texts)) <= MOST_CHARACTERS, message
        assert not AVOIDED.findall(" ".join(texts)), message


@pytest.mark.parametrize("page", ["README.md", "deepspec/guide/troubleshooting.md", "infra/README.md"])
def test_tables_of_what_users_see_quote_what_is_said(page: str) -> None:
    """A reader searches the page for the words on the terminal; `…` stands for what is filled in."""
    said = "\0".join(" ".join(text.split()) for text in _texts())
    quoted = [
        part
        for rows in re.findall(r"^\| what you see .*\n\|[-|]+\n((?:\|.*\n)+)", (ROOT / page).read_text(), re.MULTILINE)
        for cell in re.findall(r"^\|(.*?) \|", rows, re.MULTILINE)
        for quote in re.findall(r"`([^`]+)`", cell)
        for part in quote.split("…")
    ]
    assert quoted
    assert [part for part in quoted if part.strip(" .") not in said] == []


def _texts() -> list[str]:
    """All texts in the sources."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
