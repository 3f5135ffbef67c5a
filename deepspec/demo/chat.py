"""Short everyday questions and answers, composed by filling the blanks of templates.

A problem is an intent with a topic and an occasion. An answer opens, gives two of the topic's tips in either order, and
closes with a word about the occasion; every choice makes another good answer. Nothing here is taken from a data set.
"""

from dataclasses import dataclass

from deepspec.demo.draws import KeyedDraws


@dataclass(frozen=True)
class Intent:
    """A kind of question.

    Args:
        name: distinguishes it in held-out combinations.
        questions: ways to ask, with `{topic}` and `{occasion}`.
        openings: ways to begin the answer.
        topics: what is asked about, with tips that each stand alone.
        occasions: the circumstances, with the sentence that an answer closes with.
    """

    name: str
    questions: tuple[str, ...]
    openings: tuple[str, ...]
    topics: tuple[tuple[str, tuple[str, ...]], ...]
    occasions: tuple[tuple[str, str], ...]


INTENTS = (
    Intent(
        "cook",
        (
            "What can I cook with {topic} {occasion}?",
            "I have {topic} at home. What should I make {occasion}?",
        ),
        ("There are many good ways to use {topic}.", "You can do a lot with {topic}."),
        (
            ("rice", ("Fry it with an egg and peas.", "Stir it into a warm soup.", "Serve it with beans and lime.")),
            ("eggs", ("Make an omelet with cheese.", "Boil them and add salt.", "Bake them in tomato sauce.")),
            ("potatoes", ("Roast them with oil and salt.", "Mash them with butter.", "Fry thin slices in a pan.")),
            ("beans", ("Cook a stew with tomatoes.", "Mix them into a salad.", "Mash them and fill a wrap.")),
            ("carrots", ("Grate them for a salad.", "Roast them with honey.", "Cook a soup with ginger.")),
        ),
        (
            ("for a quick lunch", "It will be ready in a few minutes."),
            ("for two people", "A small pan is enough for two."),
            ("for the whole family", "Make a bit more so that all have enough."),
            ("on a cold evening", "Something warm is best when it is cold."),
            ("for a picnic", "Take it with you in a closed box."),
            ("without an oven", "All you need is one pan on the stove."),
        ),
    ),
    Intent(
        "clean",
        ("How do I clean {topic} {occasion}?", "What is a good way to clean {topic} {occasion}?"),
        ("That is easier than it looks.", "It only takes a few steps."),
        (
            (
                "a wool sweater",
                ("Wash it by hand in cold water.", "Press the water out gently.", "Dry it flat on a towel."),
            ),
            ("the windows", ("Wipe them with warm water.", "Dry them with old paper.", "Start at the top.")),
            (
                "white shoes",
                ("Brush off the dry dirt first.", "Rub them with soap and water.", "Let them dry in the shade."),
            ),
            (
                "a wooden table",
                ("Use a damp cloth, not a wet one.", "Wipe along the grain.", "Rub in a little oil at the end."),
            ),
            (
                "the oven",
                ("Spread a paste of baking soda.", "Wait an hour before you wipe.", "Soak the rack in hot water."),
            ),
        ),
        (
            ("before guests come", "Begin early so that it is dry in time."),
            ("without strong chemicals", "No strong chemicals are needed for this."),
            ("in ten minutes", "With a little speed ten minutes will do."),
            ("for the first time", "Try it on a small spot first."),
            ("with vinegar", "A spoon of vinegar in the water helps."),
            ("every week", "If you do it weekly, it stays easy."),
        ),
    ),
    Intent(
        "learn",
        ("How can I learn {topic} {occasion}?", "I want to learn {topic} {occasion}. Where do I start?"),
        ("Start small and keep going.", "You can begin today."),
        (
            ("the guitar", ("Learn three chords first.", "Play along with slow songs.", "Tune it before you play.")),
            ("Spanish", ("Learn ten words a day.", "Listen to simple songs.", "Speak aloud from the start.")),
            ("chess", ("Solve short puzzles.", "Play slow games and review them.", "Learn the basic endgames.")),
            ("drawing", ("Draw simple shapes first.", "Copy things on your desk.", "Fill a page without erasing.")),
            (
                "swimming",
                ("Practice breathing in shallow water.", "Use a board for your kicks.", "Rest after each length."),
            ),
        ),
        (
            ("in ten minutes a day", "Ten minutes a day add up quickly."),
            ("at home", "You do not have to leave home for it."),
            ("with a friend", "With a friend it is twice the fun."),
            ("on weekends", "Keep a fixed hour on your weekends."),
            ("as a child", "Children learn best when it feels like play."),
            ("without a teacher", "Record yourself, since no teacher is there."),
        ),
    ),
)


@dataclass(frozen=True)
class ChatProblem:
    """One question: an intent with a topic and an occasion."""

    intent: Intent
    topic: tuple[str, tuple[str, ...]]
    occasion: tuple[str, str]

    @property
    def combination(self) -> str:
        """The combination that is held out as a whole: phrasing is not part of it."""
        return f"chat/{self.intent.name}/{self.topic[0]}/{self.occasion[0]}"

    def prompt(self, draws: KeyedDraws) -> str:
        """Ask in one of the ways."""
        return draws.pick(self.intent.questions).format(topic=self.topic[0], occasion=self.occasion[0])

    def answer(self, draws: KeyedDraws) -> str:
        """Answer in one of the ways."""
        opening = draws.pick(self.intent.openings).format(topic=self.topic[0])
        tips = draws.two(self.topic[1])
        closing = self.occasion[1]
        if draws.below(3) == 0:
            return "\n".join((opening, *(f"- {tip}" for tip in tips), closing))
        return " ".join((opening, *tips, closing))


def draw_problem(draws: KeyedDraws) -> ChatProblem:
    """Draw a problem."""
    intent = draws.pick(INTENTS)
    return ChatProblem(intent, draws.pick(intent.topics), draws.pick(intent.occasions))
