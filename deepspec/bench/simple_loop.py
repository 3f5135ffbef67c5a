"""Speculative decoding of one request as one would first write it: what `bench decode` compares with.

Hugging Face's model with its own growing cache and all hidden states, draws by `torch.multinomial`, and a verification
token by token. In its favour: it drafts with the very drafter that the engine uses, and reads nothing back that it
does not need. Nothing else may use this.

Shapes: Q verified positions, L captured layers, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepspec.drafts.algorithm import Drafter

_GREEDY_BELOW = 1e-5


class SimpleLoop:
    """One request at a time.

    Args:
        folder: the target's directory.
        drafter: the draft; its row 0 is used.
        temperature: of target and draft.
        device: where to compute.
        dtype: of the target's weights.
        seed: of the draws.
    """

    def __init__(
        self, folder: Path, drafter: Drafter, *, temperature: float, device: str, dtype: torch.dtype, seed: int = 0
    ) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        self._model = self._model.to(device).eval()
        self._drafter = drafter
        self._temperature = temperature
        self._device = device
        self._draws = torch.Generator(device).manual_seed(seed)

    @torch.inference_mode()
    def decode(self, prompt_ids: Sequence[int], max_new_tokens: int) -> tuple[list[int], int]:
        """Decode without stop tokens; returns the answer and the number of rounds."""
        from transformers import DynamicCache

        self._drafter.allocate(1, len(prompt_ids) + max_new_tokens + 2 * self._drafter.num_draft_tokens)
        cache = DynamicCache()
        ids_1Q = torch.tensor([list(prompt_ids)], device=self._device)
        logits_QV, states_1QLD = self._forward(ids_1Q, cache)
        output = [self._draw(self._distribution(logits_QV[-1]))]
        self._drafter.advance([0], states_1QLD, ids_1Q, [0], [len(prompt_ids)])
        rounds = 0
        while len(output) < max_new_tokens:
            position = len(prompt_ids) + len(output) - 1
            anchor_1 = torch.tensor([output[-1]], device=self._device)
            proposal = self._drafter.propose([0], anchor_1, [position], self._sample)
            ids_1Q = torch.cat([anchor_1[None], proposal.tokens_RK], dim=1)
            logits_QV, states_1QLD = self._forward(ids_1Q, cache)
            committed = self._verify(logits_QV, proposal.tokens_RK[0].tolist(), proposal.probs_RKV)
            if len(committed) < ids_1Q.shape[1]:
                # By how many to shorten: the one form that all releases of transformers take. 0 would empty it.
                cache.crop(len(committed) - ids_1Q.shape[1])
            self._drafter.advance([0], states_1QLD, ids_1Q, [position], [len(committed)])
            output += committed
            rounds += 1
        return output[:max_new_tokens], rounds

    def _forward(self, ids_1Q: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        output = self._model(input_ids=ids_1Q, past_key_values=cache, use_cache=True, output_hidden_states=True)
        states = [output.hidden_states[layer + 1] for layer in self._drafter.layer_ids]
        return output.logits[0], torch.stack(states, dim=2)

    def _distribution(self, logits_V: Tensor) -> Tensor:
        if self._temperature < _GREEDY_BELOW:
            return torch.nn.functional.one_hot(logits_V.argmax(-1), logits_V.shape[-1]).float()
        return torch.softmax(logits_V.float() / self._temperature, dim=-1)

    def _draw(self, probs_V: Tensor) -> int:
        return int(torch.multinomial(probs_V, 1, generator=self._draws))

    def _sample(self, logits_RV: Tensor, position: int) -> tuple[Tensor, Tensor]:
        del position
        probs_RV = self._distribution(logits_RV)
        return torch.multinomial(probs_RV, 1, generator=self._draws)[:, 0], probs_RV

    def _verify(self, logits_QV: Tensor, drafted: list[int], probs_RKV: Tensor | None) -> list[int]:
        """What is committed: the accepted drafts and the token after them."""
        if probs_RKV is None:
            raise TypeError("this loop's own `sample` returns distributions")
        p_QV = self._distribution(logits_QV)
        committed = []
        for position, token in enumerate(drafted):
            p, q = float(p_QV[position, token]), float(probs_RKV[0, position, token])
            if float(torch.rand((), generator=self._draws, device=self._device)) * q < p:
                committed.append(token)
                continue
            left_V = (p_QV[position] - probs_RKV[0, position]).clamp_min(0.0)
            return [*committed, self._draw(left_V if float(left_V.sum()) > 0 else p_QV[position])]
        return [*committed, self._draw(p_QV[len(drafted)])]
