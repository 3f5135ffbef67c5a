"""Arithmetic word problems with worked steps, composed by filling the blanks of templates.

A problem is a scenario with an item and numbers. Its answers differ in the derivation (where arithmetic allows
several), in how each step is said, and in layout; all of them reach the same result. Nothing here is taken from a data
set.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from deepspec.demo.draws import KeyedDraws

NAMES = ("Ana", "Ben", "Carla", "Dev", "Emi", "Finn", "Gita", "Hugo", "Ines", "Jon", "Kim", "Leo", "Mia", "Nils")
ITEMS = ("pens", "apples", "marbles", "cards", "shells", "stickers", "books", "buttons", "beads", "pears", "stamps")
LARGEST = 60
"""No number in a problem or its steps is larger: a small target has to learn these facts in a minute."""

_FEW = tuple(range(2, 7))
_SOME = tuple(range(2, 10))
_MANY = tuple(range(11, 30))
_TENS = (20, 30, 40, 50, 60)


@dataclass(frozen=True)
class Step:
    """One line of work.

    Args:
        result: the letter its value gets.
        work: `left operator right`, where the sides are letters or small integers and the operator is + - * or /.
        phrasings: ways to say it; `{work}` becomes the equation with its value.
    """

    result: str
    work: str
    phrasings: tuple[str, ...]


@dataclass(frozen=True)
class Scenario:
    """A kind of story.

    Args:
        name: distinguishes it in held-out combinations.
        numbers: the values that each of the letters a, b, c may take.
        stories: ways to tell it and to ask.
        derivations: ways to solve it; the last step of each gives `q`.
        endings: ways to state the result.
    """

    name: str
    numbers: tuple[tuple[int, ...], ...]
    stories: tuple[str, ...]
    derivations: tuple[tuple[Step, ...], ...]
    endings: tuple[str, ...]


# Steps begin with words of the story: a step that says where its numbers come from is easier to follow, and to learn.
SCENARIOS = (
    Scenario(
        "packs",
        (_FEW, _FEW, _SOME),
        (
            "{name} buys {a} packs of {b} {item} and gives {c} to {friend}. How many {item} are left?",
            "A pack has {b} {item}. {name} buys {a} packs and gives {c} to {friend}. How many {item} are left?",
        ),
        (
            (
                Step("p", "a * b", ("{name} buys {a} packs of {b} {item}: {work}.", "In the packs are {work} {item}.")),
                Step(
                    "q", "p - c", ("{name} gives {c} to {friend}: {work}.", "Without the {c} there are {work} {item}.")
                ),
            ),
        ),
        ("{name} has {q} {item} left.",),
    ),
    Scenario(
        "collect",
        (_MANY, _SOME, _SOME),
        (
            "{name} has {a} {item}, finds {b} more and loses {c}. How many {item} does {name} have now?",
            "{name} has {a} {item}, gets {b} from {friend} and loses {c}. How many {item} are there now?",
        ),
        (
            (
                Step("p", "a + b", ("{name} has {a} {item} and gets {b}: {work}.", "First add: {work}.")),
                Step("q", "p - c", ("{name} loses {c}: {work}.", "Then take away: {work}.")),
            ),
            (
                Step("p", "a - c", ("{name} has {a} {item} and loses {c}: {work}.", "First take away: {work}.")),
                Step("q", "p + b", ("{name} gets {b}: {work}.", "Then add: {work}.")),
            ),
        ),
        ("{name} now has {q} {item}.",),
    ),
    Scenario(
        "change",
        (_FEW, _SOME, _TENS),
        (
            "{name} buys {a} {item} for {b} coins each and pays with {c} coins. How many coins come back?",
            "The {item} cost {b} coins each. {name} buys {a} {item} and pays with {c} coins. How much is the change?",
        ),
        (
            (
                Step("p", "a * b", ("{name} buys {a} {item} for {b} coins: {work}.", "The {item} cost {work} coins.")),
                Step("q", "c - p", ("{name} pays with {c} coins: {work}.", "The change is {work} coins.")),
            ),
        ),
        ("{name} gets {q} coins back.",),
    ),
    Scenario(
        "rows",
        (_FEW, _SOME, _SOME),
        (
            "{name} lays {item} in {a} rows of {b} and has {c} {item} over. How many {item} does {name} have?",
            "There are {a} rows of {b} {item}, and {c} {item} beside them. How many {item} are there?",
        ),
        (
            (
                Step("p", "a * b", ("There are {a} rows of {b} {item}: {work}.", "The rows have {work} {item}.")),
                Step(
                    "q",
                    "p + c",
                    ("With the other {c} there are {work} {item}.", "Adding the rest gives {work} {item}."),
                ),
            ),
        ),
        ("There are {q} {item}.",),
    ),
    Scenario(
        "more",
        (_MANY, _SOME),
        (
            "{name} has {a} {item}. {friend} has {b} {item} more than {name}. How many {item} do they have together?",
            "{name} has {a} {item}, and {friend} has {b} more {item}. How many {item} do the two have in total?",
        ),
        (
            (
                Step("p", "a + b", ("{friend} has {b} more: {work}.", "{friend} has {work} {item}.")),
                Step("q", "a + p", ("Together they have {work} {item}.", "{name} has {a} {item}: {work}.")),
            ),
            (
                Step(
                    "p", "2 * a", ("Twice {a} {item} is {work} {item}.", "{name} has {a} {item}, so two times: {work}.")
                ),
                Step("q", "p + b", ("{friend} has {b} more: {work}.", "Adding the difference gives {work} {item}.")),
            ),
        ),
        ("Together they have {q} {item}.",),
    ),
)

_REQUESTS = ("", " Show the steps.", " Explain how.")
_OPENINGS = ("Let us work it out. ", "Step by step: ", "")
_CLOSINGS = ("So the answer is {q}.", "{ending}")


@dataclass(frozen=True)
class ArithmeticProblem:
    """One word problem: a scenario, its item, numbers and people."""

    scenario: Scenario
    item: str
    numbers: tuple[int, ...]
    name: str
    friend: str

    @property
    def combination(self) -> str:
        """The combination that is held out as a whole: people and phrasing are not part of it."""
        return f"arithmetic/{self.scenario.name}/{self.item}/{self.numbers}"

    @property
    def result(self) -> int:
        """What every right answer ends with."""
        return self._values(self.scenario.derivations[0])["q"]

    def prompt(self, draws: KeyedDraws) -> str:
        """Tell the story in one of its ways."""
        return self._say(draws.pick(self.scenario.stories), self._letters()) + draws.pick(_REQUESTS)

    def answer(self, draws: KeyedDraws) -> str:
        """Solve it in one of the ways, said in one of the ways."""
        derivation = draws.pick(self.scenario.derivations)
        values = self._values(derivation)
        lines = []
        for step in derivation:
            left, operator, right = step.work.split()
            equation = f"{values.get(left, left)} {operator} {values.get(right, right)} = {values[step.result]}"
            lines.append(self._say(draws.pick(step.phrasings), values, work=equation))
        closing = draws.pick(_CLOSINGS).replace("{ending}", draws.pick(self.scenario.endings))
        end = self._say(closing, values)
        if draws.below(3) == 0:
            return "\n".join([*(f"{place}. {line}" for place, line in enumerate(lines, 1)), end])
        return draws.pick(_OPENINGS) + " ".join([*lines, end])

    def _letters(self) -> dict[str, int]:
        return dict(zip("abc", self.numbers, strict=False))

    def _values(self, derivation: tuple[Step, ...]) -> dict[str, int]:
        values = self._letters()
        for step in derivation:
            values[step.result] = _compute(step.work, values)
        return values

    def _say(self, text: str, values: Mapping[str, int], **more: str) -> str:
        return text.format(name=self.name, friend=self.friend, item=self.item, **values, **more)

    def usable(self) -> bool:
        """Whether every step of every derivation is a whole number from 2 to `LARGEST`."""
        try:
            values = [value for way in self.scenario.derivations for value in self._values(way).values()]
        except ArithmeticError:
            return False
        return all(2 <= value <= LARGEST for value in values)


def _compute(work: str, values: Mapping[str, int]) -> int:
    left_side, operator, right_side = work.split()
    left = values[left_side] if left_side in values else int(left_side)
    right = values[right_side] if right_side in values else int(right_side)
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if left % right:
        raise ArithmeticError(f"{left} / {right} is not a whole number.")
    return left // right


def draw_problem(draws: KeyedDraws) -> ArithmeticProblem:
    """Draw a usable problem."""
    while True:
        scenario = draws.pick(SCENARIOS)
        item = draws.pick(ITEMS)
        numbers = tuple(draws.pick(choices) for choices in scenario.numbers)
        name, friend = draws.two(NAMES)
        problem = ArithmeticProblem(scenario, item, numbers, name, friend)
        if problem.usable():
            return problem
