"""A registered version's description: its verdict and its card, as far as MLflow holds them."""

import pytest

from deepspec.gates.verdict import Reason, Verdict
from deepspec.registry.mlflow.description import described, parts_of, verdict_part, with_page

MLFLOW_HOLDS = 5000
RULED_CARD = "# The card\n\n---\n\nBelow a rule of its own."


def a_verdict(num_reasons: int = 1) -> Verdict:
    sentence = "It is as good as it has to be."
    reasons = [
        Reason(gate=f"gate {number}", passed=True, measured=None, sentence=sentence) for number in range(num_reasons)
    ]
    return Verdict(accepted=True, reasons=reasons)


@pytest.mark.parametrize("card", ["", "# The card", RULED_CARD], ids=["no card", "card", "card with a rule"])
@pytest.mark.parametrize("num_reasons", [1, 400])
def test_a_description_is_taken_apart_into_what_it_was_made_of(card: str, num_reasons: int) -> None:
    verdict = verdict_part(a_verdict(num_reasons))
    assert parts_of(described(verdict, card)) == (verdict, card)


@pytest.mark.parametrize("card", ["# The card", RULED_CARD])
def test_a_card_alone_has_no_verdict(card: str) -> None:
    assert parts_of(described("", card)) == ("", card)
    assert parts_of(None) == ("", "")


@pytest.mark.parametrize("num_reasons", [1, 400])
def test_mlflow_holds_whatever_is_described(num_reasons: int) -> None:
    verdict, card = verdict_part(a_verdict(num_reasons)), "# The card\n" + "| a row |\n" * 2000
    said = described(verdict, card)
    assert len(said) <= MLFLOW_HOLDS
    assert said.startswith(verdict)
    assert said.endswith("| a row |\n… the rest is in README.md.")


def test_a_persons_text_that_fills_a_models_page_is_left_alone() -> None:
    theirs = "Ask Ada.\n" * 540
    assert with_page("# Page\n", theirs) == theirs
    assert with_page("# Page\n", None).startswith("# Page\n")
