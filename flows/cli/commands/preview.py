"""What the command `data preview` does: find the tokens, or render the sources' first rows, and show them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from deepspec.data.sources.account import lines
from deepspec.errors import RecipeError
from deepspec.home import store_of
from deepspec.inputs import local, made_target
from deepspec.recipe import Recipe, load_recipe
from deepspec.store import Store
from deepspec.store.records import JsonRecord
from flows.cli.terminal import say
from tasks.runtime.preview import preview_all

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerFast

    from deepspec.data.tokens.preview import ShownDocument

_SUPERVISED, _CONTEXT = "bold green", "dim"


class Stretch(JsonRecord):
    """Tokens in a row that are supervised, or are not.

    Attributes:
        supervised: which.
        text: of all of them.
        input_ids: the tokens.
    """

    supervised: bool
    text: str
    input_ids: tuple[int, ...]


class PreviewRow(JsonRecord):
    """One conversation as the target reads it.

    Attributes:
        id, place: of the conversation.
        num_tokens, supervised_tokens: how many.
        note: what a reader should know of it, or "".
        stretches: in order.
    """

    id: str
    place: str
    num_tokens: int
    supervised_tokens: int
    note: str
    stretches: tuple[Stretch, ...]


class PreviewSource(JsonRecord):
    """What was read of a source, and what was not.

    Attributes:
        name: of the source.
        input: as the conversations' statistics have it (deepspec/data/sources/account.py).
    """

    name: str
    input: dict[str, Any]


class PreviewDocument(JsonRecord):
    """Rows of a recipe's tokens.

    Attributes:
        recipe, split, mask, thinking: of the recipe, and what was asked for.
        origin: in JSON `from`: "source", or the tokens artifact.
        passed_over: reason -> rows that were not shown.
        rows: the conversations.
        sources: what was read of each; none of an artifact that an older deepspec has made.
    """

    model_config = ConfigDict(populate_by_name=True)

    recipe: str
    origin: str = Field(alias="from")
    split: str
    mask: str
    thinking: str
    passed_over: dict[str, int]
    rows: tuple[PreviewRow, ...]
    sources: tuple[PreviewSource, ...] = ()


def document(name: str, overrides: Sequence[str], *, num_rows: int, split: str, home: Path) -> PreviewDocument:
    """Rows of a recipe's tokens, as one JSON document.

    They come from the recipe's tokens artifact if it is in the store. Else the sources' first rows of that split are
    rendered, and the rows' own answers stand in for what would be generated.

    Raises:
        RecipeError: there is no such recipe or split, or its inputs are not made yet.
        DataError, UnsupportedTarget: the sources or the target's tokenizer cannot be used.
    """
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.tokens import preview
    from deepspec.targets import family_of
    from deepspec.targets.directory import read_there

    recipe = load_recipe(name, overrides)
    preview.check_split(split)
    recipe = local(recipe, home)
    target = made_target(recipe, name, home)
    chat = family_of(read_there(target)).chat
    tokenizer = load_tokenizer(target)
    store = store_of(home, recipe.store.url)
    keys = _made(recipe, store, home)
    key = keys.get("tokens")
    passed: dict[str, int] = {}
    if key is not None:
        artifact = store.get("tokens", key)
        rows = preview.stored(artifact.path(f"{split}.parquet"), num_rows)
        if not rows:
            raise RecipeError(f"the split {split} has no rows.", where=f"tokens/{key[:12]}", remedy="Name another.")
        sources = _sources(store, keys.get("conversations"))
    else:
        rows, passed, accounts = preview.rendered(recipe.data, split, num_rows, tokenizer=tokenizer, chat=chat)
        sources = [PreviewSource(name=account.name, input=account.to_json()) for account in accounts]
    return PreviewDocument(
        recipe=recipe.name,
        origin="source" if key is None else f"tokens/{key}",
        split=split,
        mask=recipe.data.mask,
        thinking=recipe.data.thinking,
        passed_over=passed,
        rows=tuple(_row(row, tokenizer) for row in rows),
        sources=tuple(sources),
    )


def _made(recipe: Recipe, store: Store, home: Path) -> dict[str, str]:
    """Stage -> key, of the recipe's stages that are made."""
    from flows.retrain import retrain

    records = preview_all(retrain, [recipe], store, home, before=())
    return {record.name: record.key for record in records if record.status == "hit"}


def _sources(store: Store, key: str | None) -> list[PreviewSource]:
    """What was read when the conversations were made."""
    if key is None:
        return []
    statistics = store.get("conversations", key).json("about/statistics.json")
    return [PreviewSource(name=item["name"], input=item["input"]) for item in statistics["sources"] if "input" in item]


def _row(row: "ShownDocument", tokenizer: "PreTrainedTokenizerFast") -> PreviewRow:
    return PreviewRow(
        id=row.id,
        place=row.position,
        num_tokens=len(row.input_ids),
        supervised_tokens=int(row.mask.sum()),
        note=row.note,
        stretches=tuple(
            Stretch(supervised=supervised, text=text, input_ids=tuple(ids))
            for supervised, ids, text in row.stretches(tokenizer)
        ),
    )


def show(found: PreviewDocument, console: "Console") -> None:
    """The rows for people: what is supervised is coloured, or stands in [[…]] where there is no colour."""
    from rich.text import Text

    colours = console.is_terminal and not console.no_color
    origin = "the sources (no tokens artifact yet)" if found.origin == "source" else found.origin
    heading = f"{found.recipe}, split {found.split}, mask {found.mask}, thinking {found.thinking}, from {origin}"
    say(console, heading)
    for row in found.rows:
        note = f" ({row.note})" if row.note else ""
        head = f"{row.place}: {row.supervised_tokens} of {row.num_tokens} tokens are supervised{note}"
        say(console, f"\n{head}", style="bold")
        text = Text()
        for stretch in row.stretches:
            plain = _printable(stretch.text)
            if colours:
                text.append(plain, style=_SUPERVISED if stretch.supervised else _CONTEXT)
            else:
                text.append(f"[[{plain}]]" if stretch.supervised else plain)
        console.print(text, soft_wrap=True, highlight=False)
    say(console, *(f"passed over: {count} rows, {reason}" for reason, count in sorted(found.passed_over.items())))
    say(console, *(_printable(line) for source in found.sources for line in lines(source.name, source.input)))


def _printable(text: str) -> str:
    """Text that moves no cursor and changes no colour: other control characters than line ends and tabs are named."""
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() else f"\\x{ord(letter):02x}" if ord(letter) < 256 else "�"
        for letter in text
    )
