"""The command `guide`: the manual, in the terminal."""

import re
from typing import Annotated

import typer

from deepspec.errors import BadArgument
from flows.cli.terminal import print_text, results, show

_PAGE_WIDTH = 80  # longer lines of prose are hard to read


def guide(
    topic: Annotated[
        str | None, typer.Argument(metavar="[TOPIC]", help="One of the topics; default: list them.")
    ] = None,
) -> None:
    """Read the manual, topic by topic.

    A terminal gets it formatted, a pipe or file as Markdown.

    Example: deepspec guide data
    """
    from rich.markdown import Markdown

    from deepspec.guide import TOPICS, read, summary

    if topic is None:
        width = max(map(len, TOPICS))
        text = "".join(f"{name:<{width}}  {summary(name)}\n" for name in TOPICS)
        print_text(f"{text}\nRead one: deepspec guide TOPIC\n")
        return
    if topic not in TOPICS:
        raise BadArgument(f"there is no topic {topic!r}.", where="TOPIC", remedy=f"Name one of {', '.join(TOPICS)}.")
    console = results()
    if console.is_terminal:
        # Links between topics become what a reader types; other links keep their text.
        text = re.sub(r"\[(\w+)\]\(\1\.md\)", r"`deepspec guide \1`", read(topic))
        show(console, Markdown(text, code_theme="ansi_dark"), width=_PAGE_WIDTH)
    else:
        print_text(read(topic))
