"""Small Python functions from a one-line specification, composed by filling the blanks of templates.

A problem is an operation with a function name, an argument name and often a number. Its answers differ in the body
(loop, comprehension, built-in), in the names inside it and in what is said around the code; every body computes the
same, which the tests check by running them. Nothing here is taken from a data set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deepspec.demo.draws import KeyedDraws

NUMBERS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20)
LISTS = ("values", "numbers", "items", "data")
TEXTS = ("text", "word", "line", "title")
COUNTS = ("n", "number", "size", "count")

_EXAMPLE_LISTS = ([3, -4, 12, 7, 0, 10, 7], [5], [-2, -9, 6, 20, 15, 8])
_EXAMPLE_TEXTS = ("Green Apples", "a", "one more LONG line", "noon")
_EXAMPLE_COUNTS = (1, 4, 6, 12, 30)


@dataclass(frozen=True)
class Operation:
    """What a function is to do.

    Args:
        name: distinguishes it in held-out combinations.
        arguments: names its argument may have.
        functions: names it may have.
        tasks: ways to say what it returns, with `{v}` the argument and `{n}` the number.
        bodies: ways to write it, one indentation level each; `{x}` is a loop variable and `{out}` an accumulator.
        notes: sentences that may follow the code.
        reference: the same operation, called with an example and the number.
        examples: arguments to check it with.
    """

    name: str
    arguments: tuple[str, ...]
    functions: tuple[str, ...]
    tasks: tuple[str, ...]
    bodies: tuple[str, ...]
    notes: tuple[str, ...]
    reference: Callable[[Any, int], Any]
    examples: tuple[Any, ...]

    @property
    def takes_number(self) -> bool:
        """Whether the specification has a number in it."""
        return any("{n}" in task for task in self.tasks)


OPERATIONS = (
    Operation(
        "above",
        LISTS,
        ("keep_above", "only_above", "filter_large"),
        ("returns the {v} greater than {n}", "keeps only the {v} above {n}"),
        (
            "return [{x} for {x} in {v} if {x} > {n}]",
            "{out} = []\nfor {x} in {v}:\n    if {x} > {n}:\n        {out}.append({x})\nreturn {out}",
        ),
        ("Everything up to {n} is left out.", "The order of the list stays the same."),
        lambda given, n: [value for value in given if value > n],
        _EXAMPLE_LISTS,
    ),
    Operation(
        "below",
        LISTS,
        ("count_below", "count_small", "how_many_below"),
        ("counts the {v} less than {n}", "returns how many {v} are below {n}"),
        (
            "return sum(1 for {x} in {v} if {x} < {n})",
            "return len([{x} for {x} in {v} if {x} < {n}])",
            "{out} = 0\nfor {x} in {v}:\n    if {x} < {n}:\n        {out} += 1\nreturn {out}",
        ),
        ("An empty list gives 0.", "Numbers equal to {n} do not count."),
        lambda given, n: sum(value < n for value in given),
        _EXAMPLE_LISTS,
    ),
    Operation(
        "times",
        LISTS,
        ("scale_all", "multiply_all", "times_all"),
        ("multiplies all {v} by {n}", "returns the {v}, each multiplied by {n}"),
        (
            "return [{x} * {n} for {x} in {v}]",
            "{out} = []\nfor {x} in {v}:\n    {out}.append({x} * {n})\nreturn {out}",
        ),
        ("The list it is given is not changed.", "The result has the same length."),
        lambda given, n: [value * n for value in given],
        _EXAMPLE_LISTS,
    ),
    Operation(
        "plus",
        LISTS,
        ("add_to_all", "shift_all", "increase_all"),
        ("adds {n} to all {v}", "returns the {v}, each increased by {n}"),
        (
            "return [{x} + {n} for {x} in {v}]",
            "{out} = []\nfor {x} in {v}:\n    {out}.append({x} + {n})\nreturn {out}",
        ),
        ("The list it is given is not changed.", "The result has the same length."),
        lambda given, n: [value + n for value in given],
        _EXAMPLE_LISTS,
    ),
    Operation(
        "multiples",
        LISTS,
        ("keep_multiples", "only_multiples", "find_multiples"),
        ("returns the {v} divisible by {n}", "keeps only multiples of {n} among the {v}"),
        (
            "return [{x} for {x} in {v} if {x} % {n} == 0]",
            "{out} = []\nfor {x} in {v}:\n    if {x} % {n} == 0:\n        {out}.append({x})\nreturn {out}",
        ),
        ("A remainder of 0 means that {n} divides it.", "Zero is a multiple of {n} too."),
        lambda given, n: [value for value in given if value % n == 0],
        _EXAMPLE_LISTS,
    ),
    Operation(
        "contains",
        LISTS,
        ("has_number", "contains_it", "is_there"),
        ("checks if {n} is one of the {v}", "returns True if the {v} contain {n}"),
        (
            "return {n} in {v}",
            "return any({x} == {n} for {x} in {v})",
            "for {x} in {v}:\n    if {x} == {n}:\n        return True\nreturn False",
        ),
        ("It stops at the first match.", "An empty list gives False."),
        lambda given, n: n in given,
        _EXAMPLE_LISTS,
    ),
    Operation(
        "total",
        LISTS,
        ("total", "add_up", "sum_all"),
        ("returns the sum of the {v}", "adds up all {v}"),
        (
            "return sum({v})",
            "{out} = 0\nfor {x} in {v}:\n    {out} += {x}\nreturn {out}",
        ),
        ("An empty list gives 0.", "It goes through the list once."),
        lambda given, _: sum(given),
        _EXAMPLE_LISTS,
    ),
    Operation(
        "largest",
        LISTS,
        ("largest", "find_max", "biggest"),
        ("returns the largest of the {v}", "finds the maximum of the {v}"),
        (
            "return max({v})",
            "return sorted({v})[-1]",
            "{out} = {v}[0]\nfor {x} in {v}:\n    if {x} > {out}:\n        {out} = {x}\nreturn {out}",
        ),
        ("The list must not be empty.", "It needs at least one number."),
        lambda given, _: max(given),
        _EXAMPLE_LISTS,
    ),
    Operation(
        "evens",
        LISTS,
        ("keep_even", "only_even", "even_ones"),
        ("returns the even {v}", "keeps only the even numbers among the {v}"),
        (
            "return [{x} for {x} in {v} if {x} % 2 == 0]",
            "{out} = []\nfor {x} in {v}:\n    if {x} % 2 == 0:\n        {out}.append({x})\nreturn {out}",
        ),
        ("Even numbers leave no remainder.", "The order of the list stays the same."),
        lambda given, _: [value for value in given if value % 2 == 0],
        _EXAMPLE_LISTS,
    ),
    Operation(
        "squares",
        LISTS,
        ("squares", "square_all", "to_squares"),
        ("returns the squares of the {v}", "squares all {v}"),
        (
            "return [{x} * {x} for {x} in {v}]",
            "return [{x} ** 2 for {x} in {v}]",
            "{out} = []\nfor {x} in {v}:\n    {out}.append({x} * {x})\nreturn {out}",
        ),
        ("A square is never negative.", "The result has the same length."),
        lambda given, _: [value * value for value in given],
        _EXAMPLE_LISTS,
    ),
    Operation(
        "repeat",
        TEXTS,
        ("repeat", "say_again", "repeat_it"),
        ("repeats the {v} {n} times", "returns the {v} written {n} times"),
        (
            "return {v} * {n}",
            'return "".join({v} for _ in range({n}))',
            '{out} = ""\nfor _ in range({n}):\n    {out} += {v}\nreturn {out}',
        ),
        ("Nothing is put in between.", "The copies follow each other directly."),
        lambda given, n: given * n,
        _EXAMPLE_TEXTS,
    ),
    Operation(
        "sum_to",
        COUNTS,
        ("sum_to", "add_up_to", "sum_first"),
        ("returns the sum of 1 to {v}", "adds up the integers from 1 to {v}"),
        (
            "return sum(range(1, {v} + 1))",
            "return {v} * ({v} + 1) // 2",
            "{out} = 0\nfor {x} in range(1, {v} + 1):\n    {out} += {x}\nreturn {out}",
        ),
        ("The last number is included.", "The range ends one later, so {v} is included."),
        lambda given, _: sum(range(given + 1)),
        _EXAMPLE_COUNTS,
    ),
)

_REQUESTS = (
    "Write a Python function {f}({v}) that {task}.",
    "In Python, write {f}({v}), which {task}.",
    "I need a function {f}({v}) that {task}.",
)
_OPENINGS = ("", "Here is the function:\n", "One way to write it:\n")
_LOOP_NAMES = ("x", "value", "item")
_ACCUMULATORS = ("result", "out")


@dataclass(frozen=True)
class CodeProblem:
    """One specification: an operation with its names and number (0 where it has none)."""

    operation: Operation
    function: str
    argument: str
    number: int

    @property
    def combination(self) -> str:
        """The combination that is held out as a whole: phrasing is not part of it."""
        return f"code/{self.operation.name}/{self.function}/{self.argument}/{self.number}"

    def prompt(self, draws: KeyedDraws) -> str:
        """Ask for the function in one of the ways."""
        return self._fill(draws.pick(_REQUESTS).replace("{task}", draws.pick(self.operation.tasks)))

    def answer(self, draws: KeyedDraws) -> str:
        """Write the function in one of the ways, said in one of the ways."""
        names = {"x": draws.pick(_LOOP_NAMES), "out": draws.pick(_ACCUMULATORS)}
        body = self._fill(draws.pick(self.operation.bodies), **names).replace("\n", "\n    ")
        code = f"```python\ndef {self.function}({self.argument}):\n    {body}\n```"
        note = self._fill(draws.pick(self.operation.notes))
        return draws.pick(_OPENINGS) + code + draws.pick(("", f"\n{note}"))

    def _fill(self, text: str, **names: str) -> str:
        return text.format(f=self.function, v=self.argument, n=self.number, **names)


def draw_problem(draws: KeyedDraws) -> CodeProblem:
    """Draw a problem."""
    operation = draws.pick(OPERATIONS)
    number = draws.pick(NUMBERS) if operation.takes_number else 0
    return CodeProblem(operation, draws.pick(operation.functions), draws.pick(operation.arguments), number)
