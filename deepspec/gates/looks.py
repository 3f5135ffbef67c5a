"""How much error a night may spend: many challengers are tried against one champion, and one may win by luck.

Look k at a champion is tested at α / (k (k + 1)), of an α of 1 - `gates.confidence`. These add up to α over any number
of looks, so the probability that any challenger which is no better is ever promoted over that champion is at most α,
whatever its looks have to do with each other. The next champion begins with a whole α of its own.

Source: Boole's inequality, spent as in Foster and Stine (2008), "α-investing", JRSS B 70, and Tian and Ramdas (2021),
"Online control of the familywise error rate", section 2, with γ_k = 1 / (k (k + 1)).
"""

FIRST = 1
"""The number of the first look."""


def error_of(look: int, confidence: float) -> float:
    """The α that a look may spend.

    Args:
        look: from 1.
        confidence: over all looks at one champion.
    """
    return (1.0 - confidence) / (look * (look + 1))
