"""What the command `data preview` does: find the tokens, or render the sources' first rows, and show them."""

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from deepspec.data.sources.account import lines
from deepspec.errors import DataError, DeepspecError, RecipeError
from deepspec.home import store_of
from deepspec.inputs import local, made_target
from deepspec.progress import SILENT, Progress
from deepspec.recipe import Recipe, load_recipe, read_yaml, validated
from deepspec.store.records import JsonRecord
from flows.cli.terminal import say
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerFast

    from deepspec.data.tokens.preview import ShownDocument

_HIDDEN = "A source is private: its texts are not shown without --private."
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


class PutIn(JsonRecord):
    """The empty thought that was put in before an answer.

    Attributes:
        at_token: where it begins, counted from 0.
        text: what was put in.
    """

    at_token: int
    text: str


class PreviewRow(JsonRecord):
    """One conversation as the target reads it.

    Attributes:
        id, place: of the conversation.
        num_tokens, supervised_tokens: how many.
        note: what a reader should know of it, or "".
        stretches: in order.
        put_in: what the template left out of the conversation and the target sees.
    """

    id: str
    place: str
    num_tokens: int
    supervised_tokens: int
    note: str
    stretches: tuple[Stretch, ...]
    put_in: tuple[PutIn, ...] = ()


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
        passed_over: reason -> rows that a run does not train on, or that could not be shown.
        rows: the conversations.
        sources: what was read of each; none of an artifact that an older deepspec has made.
        notes: what a reader should know of all of them.
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
    notes: tuple[str, ...] = ()


def document(
    name: str,
    overrides: Sequence[str],
    *,
    num_rows: int,
    split: str,
    home: Path,
    show_private: bool = False,
    progress: Progress = SILENT,
) -> PreviewDocument:
    """Rows of a recipe's tokens, as one JSON document.

    They come from the recipe's tokens artifact if it is in the store. Else they are rendered from its conversations,
    which are made in a temporary folder if they are not there either, and the rows' own answers stand in for what would
    be generated. What the recipe says of the draft plays no part. Where a source is private, texts are only shown if
    that is asked for.

    Raises:
        RecipeError: there is no such recipe or split, or its inputs are not made yet.
        DataError, UnsupportedTarget: the sources or the target's tokenizer cannot be used.
    """
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.tokens import preview
    from deepspec.targets import family_of
    from deepspec.targets.directory import read_there

    recipe = _about_data(name, overrides)
    preview.check_split(split)
    recipe = local(recipe, home)
    target = made_target(recipe, name, home)
    chat = family_of(read_there(target)).chat
    tokenizer = load_tokenizer(target)
    store = store_of(home, recipe.store.url)
    keys = _made(recipe, home)
    key = keys.get("tokens")
    passed: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    sources: tuple[PreviewSource, ...] = ()
    if key is not None:
        artifact = store.get("tokens", key)
        rows = preview.stored(artifact.path(f"{split}.parquet"), num_rows)
        if not rows:
            raise RecipeError(f"the split {split} has no rows.", where=f"tokens/{key[:12]}", remedy="Name another.")
        if "responses" in keys:
            answers = store.get("responses", keys["responses"]).path(f"{split}.parquet")
            rows = preview.with_put_in(recipe.data, rows, answers, tokenizer=tokenizer, chat=chat)
        elif chat.empty_thought:
            notes = ("Where an empty thought was put in is unknown: the answers are no longer in the store.",)
        if "conversations" in keys:
            made = store.get("conversations", keys["conversations"])
            passed, sources = preview.left_out(made.json("summary.json")), _sources(made.json("about/statistics.json"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            if "conversations" in keys:
                conversations = store.get("conversations", keys["conversations"]).directory()
            else:
                conversations = Path(folder)
                notes = _make_conversations(recipe, conversations, progress)
            rows, passed = preview.rendered(
                recipe.data, split, num_rows, conversations=conversations, tokenizer=tokenizer, chat=chat
            )
            sources = _sources(json.loads((conversations / "about/statistics.json").read_text(encoding="utf-8")))
    hidden = not show_private and any(entry.is_private for entry in recipe.data.source)
    if hidden:
        notes = (*notes, _HIDDEN)
    return PreviewDocument(
        recipe=recipe.name,
        origin="source" if key is None else f"tokens/{key}",
        split=split,
        mask=recipe.data.mask,
        thinking=recipe.data.thinking,
        passed_over=passed,
        notes=notes,
        rows=tuple(_row(row, tokenizer, hidden=hidden) for row in rows),
        sources=sources,
    )


def _about_data(name: str, overrides: Sequence[str]) -> Recipe:
    """The recipe; one that says nothing usable of the draft has some draft."""
    try:
        return load_recipe(name, overrides)
    except RecipeError:
        content = {**read_yaml(name), "draft": {"algorithm": "dflash"}}
        others = [override for override in overrides if not override.startswith("draft")]
        with contextlib.suppress(RecipeError):
            return validated(Recipe, content, others, where=f"recipe {name}")
        raise


def _made(recipe: Recipe, home: Path) -> dict[str, str]:
    """Stage -> key of what is made of the recipe; what cannot be looked up (the draft's stages, say) is not there."""
    from flows.retrain import retrain

    run: Run[Any] = Run(recipe, store_of(home, recipe.store.url), home, dry=True)
    run.begin(recipe)
    looking = run.preview()
    with contextlib.suppress(DeepspecError):
        retrain(looking)
    return {record.name: record.key for record in looking.records if record.status == "hit"}


def _make_conversations(recipe: Recipe, out: Path, progress: Progress) -> tuple[str, ...]:
    """What the stage would make, and what a reader should know of it; a run may refuse what is shown here."""
    from deepspec.data.conversations.build import write_conversations
    from deepspec.data.conversations.decontamination import NO_BENCHMARKS, Benchmarks
    from deepspec.evaluation.prompts.selection import held_out_prompts

    config = recipe.data
    notes = []
    try:
        prompts = held_out_prompts(recipe.evaluate, system_prompt=config.system_prompt)
        benchmarks = Benchmarks(prompts, num_words=config.decontamination_words)
    except DeepspecError as error:
        benchmarks = NO_BENCHMARKS
        notes.append(f"Benchmarks are not left out: {error}")
    try:
        lenient = config.model_copy(update={"max_quarantined_share": 1.0})
        write_conversations(lenient, config.source, out, benchmarks=benchmarks, progress=progress)
    except DataError as error:
        if not (out / "summary.json").is_file():  # all but the last check has been done
            raise
        notes.append(f"A run would be refused: {error}")
    return tuple(notes)


def _sources(statistics: Mapping[str, Any]) -> tuple[PreviewSource, ...]:
    """What was read when the conversations were made."""
    given = (item for item in statistics["sources"] if "input" in item)
    return tuple(PreviewSource(name=item["name"], input=item["input"]) for item in given)


def _row(row: "ShownDocument", tokenizer: "PreTrainedTokenizerFast", *, hidden: bool) -> PreviewRow:
    stretches = [
        Stretch(supervised=supervised, text="" if hidden else text, input_ids=() if hidden else tuple(ids))
        for supervised, ids, text in row.stretches(tokenizer)
    ]
    return PreviewRow(
        id=row.id,
        place=row.position,
        num_tokens=len(row.input_ids),
        supervised_tokens=int(row.mask.sum()),
        note=row.note,
        stretches=tuple(stretches),
        put_in=tuple(PutIn(at_token=token, text=text) for token, text in row.put_in),
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
        said = (f"put in at token {one.at_token}, where the template leaves it out: {one.text!r}" for one in row.put_in)
        say(console, *said)
    say(console, *found.notes)
    say(console, *(f"passed over: {count} rows, {reason}" for reason, count in sorted(found.passed_over.items())))
    say(console, *(_printable(line) for source in found.sources for line in lines(source.name, source.input)))


def _printable(text: str) -> str:
    """Text that moves no cursor and changes no colour: other control characters than line ends and tabs are named."""
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() else f"\\x{ord(letter):02x}" if ord(letter) < 256 else "�"
        for letter in text
    )
