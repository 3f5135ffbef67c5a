"""A tiny target and stub drafts for the tests of decoding: never, always and partly right.

A stub knows the target and runs it over the whole text for every token: slow and simple, so that it can share no
mistake with the engine's caches. It also checks what the engine owes a drafter: contexts without gaps, right positions.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from deepspec.drafts.algorithm import Proposal
from deepspec.targets.model import Target
from tests.fixtures.targets import tiny_gemma4

VOCAB_SIZE = 40
STOPS = [1, 4, 11, 17]


def save_tiny_target(folder: Path, *, seed: int = 0, vocab_size: int = VOCAB_SIZE, context: int = 96) -> Path:
    """A random 2-layer Qwen3 in `folder`, with spread-out logits."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        eos_token_id=STOPS,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(folder)
    return folder


def save_windowed_target(folder: Path) -> Path:
    """A random 4-layer Gemma 4 in `folder`, whose windows are shorter than the answers."""
    return tiny_gemma4(
        folder, layer_types="sfsf", sliding_window=5, vocab_size=VOCAB_SIZE, eos_token_id=STOPS, scale=6.0
    )


class StubDrafter:
    """Proposes what the target itself thinks ("always"), the opposite ("never"), or that with noise ("partly")."""

    def __init__(
        self,
        target: Target,
        kind: Literal["never", "always", "partly"],
        *,
        num_draft_tokens: int = 3,
        with_confidence: bool = False,
    ) -> None:
        self.num_draft_tokens = num_draft_tokens
        self.layer_ids = target.layer_ids
        self.vocab_size = target.spec.vocab_size
        self._target = target
        self._kind = kind
        self._with_confidence = with_confidence
        self._texts: list[list[int]] = []
        self._states: list[list[torch.Tensor]] = []

    def allocate(self, rows: int, capacity: int) -> None:
        self._capacity = capacity
        self._texts = [[] for _ in range(rows)]
        self._states = [[] for _ in range(rows)]

    def reset(self, row: int) -> None:
        self._texts[row] = []
        self._states[row] = []

    def advance(self, rows, states_RQLD, input_ids_RQ, start_R, counts_R) -> None:
        for index, (row, start, count) in enumerate(zip(rows, start_R, counts_R, strict=True)):
            assert start == len(self._texts[row]), "a gap in the context"
            self._texts[row] += input_ids_RQ[index, :count].tolist()
            self._states[row].append(states_RQLD[index, :count].clone())
            assert len(self._texts[row]) <= self._capacity

    def propose(self, rows, anchor_ids_R, positions_R, sample) -> Proposal:
        texts = [[*self._texts[row], anchor] for row, anchor in zip(rows, anchor_ids_R.tolist(), strict=True)]
        assert [len(text) - 1 for text in texts] == list(positions_R)
        tokens, probs, confidences = [], [], []
        for position in range(self.num_draft_tokens):
            # Known before the position's token is drawn, as a confidence head's is.
            confidences.append(torch.tensor([random.Random(len(text) * 100 + text[-1]).random() for text in texts]))
            token_R, probs_RV = sample(self._opinions(texts), position)
            tokens.append(token_R)
            probs.append(probs_RV)
            for text, token in zip(texts, token_R.tolist(), strict=True):
                text.append(token)
        confidence_RK = torch.stack(confidences, 1) if self._with_confidence else None
        greedy = probs[0] is None
        return Proposal(torch.stack(tokens, 1), None if greedy else torch.stack(probs, 1), confidence_RK)

    def states_of(self, row: int) -> torch.Tensor:
        """All states handed over for a row, [T, L, D]."""
        return torch.cat(self._states[row])

    def _opinions(self, texts: list[list[int]]) -> torch.Tensor:
        """Logits [R, V] of the token after each text."""
        logits_RV = next_logits(self._target, texts)
        if self._kind == "always":
            return logits_RV
        if self._kind == "never":
            unlikely_RV = torch.full_like(logits_RV, -1e4)
            return unlikely_RV.scatter(1, logits_RV.argmin(dim=1, keepdim=True), 0.0)
        noise_RV = [
            torch.randn(self.vocab_size, generator=torch.Generator().manual_seed(len(text) * 1000 + text[-1]))
            for text in texts
        ]
        return logits_RV + 1.5 * torch.stack(noise_RV)


def next_logits(target: Target, texts: list[list[int]]) -> torch.Tensor:
    """Logits [R, V] after each text, by one forward without any cache; right padding cannot be seen."""
    lengths = [len(text) for text in texts]
    ids_RT = torch.tensor([text + [0] * (max(lengths) - len(text)) for text in texts])
    with torch.inference_mode():
        final_RTD = target.forward(ids_RT).final_BQD
        return target.logits(final_RTD[torch.arange(len(texts)), torch.tensor(lengths) - 1])


@dataclass(frozen=True)
class Ask:
    """A request."""

    id: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int


def some_requests(count: int, *, seed: int = 0, longest: int = 20, most_new: int = 24) -> list[Ask]:
    """Requests with different lengths, limits and seeds."""
    dice = random.Random(seed)
    return [
        Ask(
            id=f"r{index}",
            prompt_ids=tuple(dice.randrange(2, VOCAB_SIZE) for _ in range(dice.randint(1, longest))),
            max_new_tokens=dice.randint(1, most_new),
            seed=dice.randrange(2**63),
        )
        for index in range(count)
    ]
