"""Renders a chat template as transformers does, within bounds of steps, sizes and depth.

A template is a program that came with a model: it may loop for ever, recurse, or write gigabytes. It is compiled in
transformers' own environment (its filters, functions and sandbox), with a budget of its own for every rendering:

* loops and calls pay by the nodes of what they run, texts by their lengths; the processor time is looked at, too;
* what takes much in one step (a product, a power, padding, joining, replacing) is looked at before it is done;
* lists within lists are looked at before they are written out.

Every other error of a template names its file and line. Not here: what a template must write
(template_layout.py). Imports transformers for its environment only.
"""

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deepspec.data.chat.tokenizer_files import SETTINGS_FILE, TEMPLATE_FILE, TEMPLATES_FOLDER
from deepspec.data.sources.rows import RowRejected, excerpt_of
from deepspec.errors import UnsupportedTarget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REFUSED = "the chat template refuses the conversation"
_MOST_STEPS = 50_000_000
"""Nodes of a template that one rendering may run, seconds' worth: a thousand messages take two hundred thousand."""
_MOST_SECONDS = 60.0
"""Of the processor, for what the steps do not see."""
_LEAST_CHARACTERS = 1 << 24
_OUTPUT_RATIO = 16
"""A rendering, and a text in it, may have as many times the conversation's characters, if that is more."""
_MOST_NUMBER = 1 << 16
"""A number that a filter or a method of a text is given: a width, a count."""
_MOST_BITS = 1 << 16
_MOST_ITEMS = 1 << 20
_CALL_STEPS = 20
_MACRO_STEPS = 100
_LOOP_STEPS = 5
"""What a turn of a loop and a call cost besides the nodes in them: 50 to 100 ns a step."""
_CHARACTERS_A_STEP = 64
_LOOK_EVERY = 1 << 18  # steps between looks at the clock
_LONG_NUMBER = re.compile(r"\d{6,}")
_WIDTH_BY_VALUE = re.compile(r"\{[^{}]*\{")
_COUNTED, _SIZED = "deepspec_counted", "deepspec_sized"


class _OutOfBounds(Exception):
    """A template does too much; not an error that jinja handles."""


class _Budget:
    """What is left of a rendering's bounds."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, num_characters: int) -> None:
        """Begin the rendering of a conversation of that many characters."""
        self.most_characters = max(_LEAST_CHARACTERS, _OUTPUT_RATIO * num_characters)
        self._steps_left = _MOST_STEPS + num_characters
        self._look_at = self._steps_left - _LOOK_EVERY
        self._characters_left = 4 * self.most_characters
        self._until = time.thread_time() + _MOST_SECONDS

    def spend(self, steps: int) -> None:
        """Pay for steps."""
        self._steps_left -= steps
        if self._steps_left < self._look_at:
            self._look_at = self._steps_left - _LOOK_EVERY
            if self._steps_left < 0:
                raise _OutOfBounds(f"it takes more than {_MOST_STEPS:,} steps")
            if time.thread_time() > self._until:
                raise _OutOfBounds(f"it takes more than {_MOST_SECONDS:g} seconds of the processor")

    def write(self, num_characters: int) -> None:
        """Pay for characters that are written."""
        self._characters_left -= num_characters
        if self._characters_left < 0:
            raise _OutOfBounds(f"it writes more than {self.most_characters:,} characters")

    def check_size(self, size: int) -> None:
        """Refuse a text or list that would be longer than any may be."""
        if size > self.most_characters:
            raise _OutOfBounds(f"it makes a text or list of {size:,}")
        self.spend(size // _CHARACTERS_A_STEP)

    def check_nested(self, value: object) -> None:
        """Refuse a list that holds more than there could be: a list may stand many times in another."""
        items, waiting = 0, [value]
        while waiting:
            one = waiting.pop()
            inside: Sequence[Any] = ()
            if isinstance(one, Mapping):
                inside = [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple):
                inside = one
            items += 1 + len(inside)
            if items > _MOST_ITEMS:
                raise _OutOfBounds(f"it writes a list of more than {_MOST_ITEMS:,} items")
            waiting += inside
        self.spend(items)


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' environment, in which everything is paid for; made by `_bounded`."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})
    budget: _Budget
    macro_cost = (_MACRO_STEPS, 0)
    """Steps and characters of the template's longest macro or block."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (max(right, 0) if operator == "**" else 1) + right.bit_length()
            if bits > _MOST_BITS and operator in ("*", "**"):
                raise _OutOfBounds("it makes a number of thousands of digits")
        elif operator == "*" and isinstance(left, int) != isinstance(right, int):
            number, other = (left, right) if isinstance(left, int) else (right, left)
            budget.check_size(max(number, 0) * (len(other) if hasattr(other, "__len__") else 0))
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            budget.check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        budget.spend(1)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = self.budget
        owner = getattr(obj, "__self__", None)
        if isinstance(obj, Macro | BlockReference):
            budget.spend(self.macro_cost[0])
            budget.write(self.macro_cost[1])
        else:
            budget.spend(_CALL_STEPS)
        if isinstance(obj, LoopContext) and args:
            args = (_counted(self, args[0], _CALL_STEPS, 0), *args[1:])
        elif isinstance(owner, str):
            _check_work(budget, getattr(obj, "__name__", ""), (owner, *args, *kwargs.values()))
        return self.sized(super().call(context, obj, *args, **kwargs))

    def sized(self, value: Any) -> Any:
        """A value that was made, if it is not too long."""
        if isinstance(value, str | list | tuple):
            self.budget.check_size(len(value))
        return value

    def written(self, value: Any) -> Any:
        """A value that is written out."""
        if isinstance(value, str):
            self.budget.write(len(value))
        elif isinstance(value, list | tuple | dict):
            self.budget.check_nested(value)
        return value


def _bounded() -> _Environment:
    """transformers' environment for chat templates, with a budget."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    ours = _Environment.__new__(_Environment)
    ours.__dict__.update(theirs.__dict__)
    ours.budget = _Budget()
    ours.extensions = {name: extension.bind(ours) for name, extension in theirs.extensions.items()}
    ours.filters = {name: _guarded(ours, name, function) for name, function in theirs.filters.items()}
    ours.filters[_COUNTED] = functools.partial(_counted, ours)
    ours.filters[_SIZED] = ours.sized
    ours.finalize = ours.written
    ours.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}
    return ours


def _counted(environment: _Environment, items: Any, steps: int, num_characters: int) -> Iterator[Any]:
    """The items of a loop; each of them is paid for."""
    spend, write = environment.budget.spend, environment.budget.write
    for item in items:
        spend(steps)
        if num_characters:
            write(num_characters)
        yield item


def _guarded(environment: _Environment, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that looks at what it is given and at what it makes."""
    skipped = int(getattr(function, "jinja_pass_arg", None) is not None)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = environment.budget
        budget.spend(1)
        _check_work(budget, name, (*args[skipped:], *kwargs.values()))
        return environment.sized(function(*args, **kwargs))

    return guarded


def _check_work(budget: _Budget, name: str, values: Sequence[Any]) -> None:
    """Refuse what a filter or a method of a text would do with these values, the text first."""
    subject = values[0] if values else None
    if isinstance(subject, str):
        budget.spend(len(subject) // _CHARACTERS_A_STEP)
    elif name in _WRITERS:
        budget.check_nested(subject)
    if name not in _LOOKED_AT:
        return
    numbers = [abs(value) for value in values[1:] if isinstance(value, int)]
    texts = [value for value in values[1:] if isinstance(value, str)]
    longest = max(map(len, texts), default=0)
    if name in _WIDENING and max(numbers, default=0) > _MOST_NUMBER:
        raise _OutOfBounds(f"it gives {name} the number {max(numbers):,}")
    if name == "join":
        items = values[1] if isinstance(subject, str) and len(values) > 1 else subject
        between = subject if isinstance(subject, str) and not isinstance(items, str) else "".join(texts)
        if isinstance(items, str | list | tuple):
            size = sum(len(one) for one in items if isinstance(one, str))
            budget.check_size(size + (len(items) + len(subject if isinstance(subject, str) else "")) * len(between))
        elif len(between) > _MOST_NUMBER:
            raise _OutOfBounds(f"it joins by {len(between):,} characters")
    elif name == "tojson":
        if max(numbers, default=0) > _MOST_INDENT:
            raise _OutOfBounds(f"it indents JSON by {max(numbers):,}")
    elif not isinstance(subject, str):
        return
    elif name == "replace":
        budget.check_size(len(subject) + subject.count(texts[0]) * longest if texts else 0)
    elif name == "translate":
        texts = [
            one for table in values[1:] if isinstance(table, dict) for one in table.values() if isinstance(one, str)
        ]
        budget.check_size(len(subject) * max(map(len, texts), default=1))
    elif name in ("indent", "expandtabs"):
        inserted = max([8, longest, *numbers])
        budget.check_size(len(subject) + (subject.count("\n") + subject.count("\t") + 1) * inserted)
    elif name == "wordwrap":
        budget.check_size(len(subject) * (1 + longest))
    elif name in ("format", "format_map"):
        _check_format(subject, values[1:])


_WRITERS = frozenset(
    {"tojson", "string", "join", "pprint", "urlencode", "xmlattr", "e", "escape", "forceescape", "safe"}
)
"""Filters that write out a list with all that is in it."""
_WIDENING = frozenset(
    {"center", "ljust", "rjust", "zfill", "indent", "expandtabs", "wordwrap", "truncate", "batch", "slice", "round"}
)
"""Filters and methods whose number says how much they make."""
_LOOKED_AT = _WIDENING | {"join", "tojson", "replace", "translate", "format", "format_map"}
_MOST_INDENT = 64


def _check_format(text: str, values: Sequence[Any]) -> None:
    """Refuse a format with a width that would write too much."""
    takes_widths = "*" in text or _WIDTH_BY_VALUE.search(text)
    if _LONG_NUMBER.search(text) or (
        takes_widths and any(isinstance(one, int) and abs(one) > _MOST_NUMBER for one in values)
    ):
        raise _OutOfBounds(f"it formats to a width of more than {_MOST_NUMBER:,} characters")


class ChatTemplate:
    """A tokenizer's chat template, or the one that it has for tools.

    Args:
        tokenizer: whose special tokens it is given.
        text: the template.
        path: its file, for messages.

    Raises:
        UnsupportedTarget: it is not valid jinja.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", text: str, path: str) -> None:
        self._tokenizer = tokenizer
        self._path = path
        self._environment = _bounded()
        try:
            tree = self._environment.parse(text, filename=path)
            self._environment.macro_cost = _pay(tree)
            code = self._environment.compile(tree, filename=path)
            self._template = Template.from_code(self._environment, code, self._environment.make_globals(None))
        except (TemplateSyntaxError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = f":{error.lineno}" if isinstance(error, SyntaxError | TemplateSyntaxError) and error.lineno else ""
            raise UnsupportedTarget(
                f"the chat template is not valid jinja: {excerpt_of(str(error)) or type(error).__name__}",
                where=f"{path}{line}",
                remedy="Copy the target's chat template again.",
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any, **switches: bool) -> str:
        """The text of a conversation.

        Args:
            messages: as templates are given them.
            tools: what may be called, or None.
            switches: `add_generation_prompt`, `enable_thinking`.

        Raises:
            RowRejected: the template refuses the conversation or fails on it.
            UnsupportedTarget: it does more than a template may.
        """
        self._environment.budget.start(_num_characters(messages) + _num_characters(tools))
        given = [_with_aliases(message) for message in messages]
        try:
            text: str = self._template.render(
                messages=given, tools=tools, documents=None, **self._special_tokens, **switches
            )
        except (_OutOfBounds, RecursionError, MemoryError) as error:
            why = (
                "it recurses too deep"
                if isinstance(error, RecursionError)
                else str(error) or "it takes too much memory"
            )
            raise UnsupportedTarget(
                f"the chat template does not end, or does too much: {why}.",
                where=self._place(error),
                remedy="Copy the target's chat template again.",
            ) from error
        except (TemplateError, TypeError) as error:
            # Also what the sandbox forbids. Templates refuse conversations (roles out of order, say) with this type;
            # a TypeError is what they end in where they add up a content that they did not expect.
            words = excerpt_of(str(error))
            detail = words if type(error) is TemplateError else f"{words} ({self._short_place(error)})"
            raise RowRejected(REFUSED, detail=detail) from error
        except Exception as error:  # the template is code from outside
            reason = f"the chat template fails with {type(error).__name__} ({self._short_place(error)})"
            raise RowRejected(reason, detail=excerpt_of(str(error))) from error
        return text

    @cached_property
    def _special_tokens(self) -> dict[str, Any]:
        return dict(self._tokenizer.special_tokens_map)

    def _place(self, error: BaseException) -> str:
        return f"{self._path}{self._line(error)}"

    def _short_place(self, error: BaseException) -> str:
        """Without the folder: rows' reasons are part of what a stage makes."""
        return f"{Path(self._path).name}{self._line(error)}"

    def _line(self, error: BaseException) -> str:
        """The line of the template in which an error came up, as `:12`."""
        found, trace = "", error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._path:
                found = f":{trace.tb_lineno}"
            trace = trace.tb_next
        return found


def template_of(tokenizer: "PreTrainedTokenizerFast", text: str) -> ChatTemplate:
    """One of a tokenizer's templates, with the file that it is from.

    Raises:
        UnsupportedTarget: it is not valid jinja.
    """
    known = tokenizer.chat_template
    name = next((name for name, one in known.items() if one == text), "") if isinstance(known, dict) else ""
    folder = Path(str(tokenizer.name_or_path or ""))
    files = (folder / TEMPLATES_FOLDER / f"{name}.jinja", folder / TEMPLATE_FILE, folder / SETTINGS_FILE)
    path = next((str(file) for file in files if file.is_file()), TEMPLATE_FILE)
    return ChatTemplate(tokenizer, text, path)


def _pay(tree: nodes.Template) -> tuple[int, int]:
    """Let a template's loops and joined texts pay; returns the cost of its longest macro or block."""
    for loop in list(tree.find_all(nodes.For)):
        steps, num_characters = _cost([*loop.body, *loop.else_])
        loop.iter = _filtered(loop.iter, _COUNTED, _LOOP_STEPS + steps, num_characters)
    _replace_joined(tree)
    bodies: list[Any] = list(tree.find_all((nodes.Macro, nodes.CallBlock, nodes.Block)))
    costs = [_cost(node.body) for node in bodies]
    return _MACRO_STEPS + max((cost[0] for cost in costs), default=0), max((cost[1] for cost in costs), default=0)


def _cost(body: Sequence[nodes.Node]) -> tuple[int, int]:
    """Nodes, and characters of text, that a body has, loops in it apart."""
    steps, num_characters, waiting = 1, 0, list(body)
    while waiting:
        node = waiting.pop()
        steps += 1
        if isinstance(node, nodes.TemplateData):
            num_characters += len(node.data)
        if not isinstance(node, nodes.For):
            waiting += node.iter_child_nodes()
    return steps, num_characters


def _replace_joined(node: nodes.Node) -> None:
    """Wrap every `a ~ b` below a node, so that what it makes is looked at."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        for field, value in one.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(one, field, _filtered(value, _SIZED))
            elif isinstance(value, list):
                value[:] = [_filtered(item, _SIZED) if isinstance(item, nodes.Concat) else item for item in value]
        waiting += [
            child.node if isinstance(child, nodes.Filter) and child.name == _SIZED and child.node is not None else child
            for child in one.iter_child_nodes()
        ]


def _filtered(node: Any, name: str, *arguments: int) -> nodes.Filter:
    made = nodes.Filter(node, name, [nodes.Const(value) for value in arguments], [], None, None, lineno=node.lineno)
    made.set_environment(node.environment)
    return made


def _num_characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_num_characters, value.values()))
    return sum(map(_num_characters, value)) if isinstance(value, list | tuple) else 1


def _with_aliases(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its thought under the other name that templates know, as transformers has it."""
    thought = message.get("reasoning_content")
    return dict(message) if thought is None else {"thinking": thought, **message}
