"""Scheduled decoding is lossless in a batch, too: what was proposed and thrown away decides nothing afterwards.

The constructed case: a proposal's token says how sure its draft is of the next one, hence how much of the other row is
verified, hence how far that row is a round later, hence whether this very position is verified then. Were the position
drawn with the same number again, the token would decide about itself.
"""

from typing import Any

import pytest
import torch
from decoding_stubs import VOCAB_SIZE, Ask, StubDrafter, save_tiny_target
from safetensors.torch import load_file, save_file

from deepspec.decoding.engine import Engine
from deepspec.decoding.scheduler import PrefixScheduler, Scheduler, StaticThreshold
from deepspec.decoding.step_costs import Curve, StepCosts
from deepspec.drafts.algorithm import Proposal
from deepspec.targets.model import Target

NUM_PAIRS = 400
LOW = VOCAB_SIZE // 2
"""Half of the tokens are lower; the target draws all of them equally often."""
SURE, UNSURE = 0.99, 0.01
THIS, OTHER = 7, 8
"""The prompts of the two rows."""

THREE_DRAFTS = StepCosts({2: Curve((2.0, 5.0, 6.0, 8.0), (1.0, 1.0, 99.0, 99.0))}, Curve((1.0,), (1.0,)))
"""A step costs the same up to three verified drafts of two rows, and far too much beyond."""
TEMPERATURES = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def uniform_target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A target that draws every token with the same probability."""
    folder = save_tiny_target(tmp_path_factory.mktemp("target"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros_like(weights["lm_head.weight"])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return Target.load(folder, layer_ids=(-1, 0))


class TellingDrafter(StubDrafter):
    """Proposes as the target draws, but for a first token that is nearly always rejected; its confidences tell."""

    def __init__(self, target: Target) -> None:
        super().__init__(target, "always", num_draft_tokens=3, with_confidence=True)

    def propose(self, rows: Any, anchor_ids_R: Any, positions_R: Any, sample: Any) -> Proposal:
        texts = [[*self._texts[row], anchor] for row, anchor in zip(rows, anchor_ids_R.tolist(), strict=True)]
        begun = [len(text) for text in texts]
        tokens, probs, confidences = [], [], []
        for step in range(self.num_draft_tokens):
            pairs = list(zip(texts, begun, strict=True))
            confidences.append(torch.tensor([self._confidence(text, start, step) for text, start in pairs]))
            logits_RV = torch.zeros(len(texts), VOCAB_SIZE)
            for row, (text, start) in enumerate(pairs):
                if (text[0], start, step) == (THIS, 2, 0):
                    logits_RV[row, 1:] = -1e4
            token_R, probs_RV = sample(logits_RV, step)
            tokens.append(token_R)
            probs.append(probs_RV)
            for text, token in zip(texts, token_R.tolist(), strict=True):
                text.append(token)
        return Proposal(torch.stack(tokens, 1), torch.stack(probs, 1), torch.stack(confidences, 1))

    def _confidence(self, text: list[int], start: int, step: int) -> float:
        """In round 1 the second token of this row says whether the third is sure; later the other row is, if ahead."""
        first_round = start == 2
        if text[0] == THIS:
            if first_round and step == 2:
                return SURE if text[-1] < LOW else UNSURE
            return 0.95 if first_round or step == 0 else UNSURE
        if first_round:
            return 0.8 if step == 0 else UNSURE
        return SURE if start == 4 else UNSURE


def share_of_low_tokens(target: Target, scheduler: Scheduler | None, *, limit: int = 4) -> float:
    """How often the third token of the first row is a low one; of the other row `limit` tokens are wanted."""
    engine = Engine(target, TellingDrafter(target), scheduler=scheduler, rows=2, stop_ids=())
    low = 0
    for pair in range(NUM_PAIRS):
        asked = [Ask("this", (THIS,), 4, 2 * pair), Ask("other", (OTHER,), limit, 2 * pair + 1)]
        answers = {completion.id: completion for completion in engine.run(asked)}
        low += answers["this"].output_ids[2] < LOW
    return low / NUM_PAIRS


@pytest.mark.parametrize(
    ("scheduler", "limit"),
    [
        pytest.param(None, 4, id="all"),
        pytest.param(StaticThreshold(0.5), 4, id="threshold"),
        pytest.param(PrefixScheduler(THREE_DRAFTS, TEMPERATURES), 4, id="scheduled"),
        # The other row ends a round earlier if it got a draft verified; alone, this one is not drafted for.
        pytest.param(
            PrefixScheduler(THREE_DRAFTS, TEMPERATURES, modes={1: "none", 2: "scheduled"}), 3, id="stops drafting"
        ),
    ],
)
def test_a_token_that_was_thrown_away_does_not_decide_about_itself(
    uniform_target: Target, scheduler: Scheduler | None, limit: int
) -> None:
    # Drawn with one number in both rounds, it comes out in 0.75 of the pairs: ten standard deviations too often.
    deviation = (share_of_low_tokens(uniform_target, scheduler, limit=limit) - 0.5) / (0.25 / NUM_PAIRS) ** 0.5
    assert abs(deviation) < 4
