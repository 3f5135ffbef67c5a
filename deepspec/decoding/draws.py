"""The randomness and the distributions of an engine's rows: which token is drawn, which draft is accepted.

One object per engine. It holds a table of uniform numbers per row, hands the drafter the `sample` function whose q is
tested afterwards, and verifies the proposal. Greedy decoding takes the same path without any distribution.

Legend: R rows, K draft positions, Q = K+1 verified positions, V vocabulary, P positions of an answer, U purposes,
X what a table has for a position.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepspec.decoding.config import Sampling
from deepspec.decoding.random import Purpose, proposal_uniforms, uniforms
from deepspec.decoding.sampling import draw, likeliest, probabilities
from deepspec.decoding.verify import verify_greedy, verify_sampled
from deepspec.drafts.algorithm import Proposal


class TokenDraws:
    """Draws tokens for rows (`lanes`) of a batch.

    Args:
        sampling: temperature and truncation, for target and draft alike.
        vocab_size: V; the value V itself stands for "no token: NaN".
        device: where logits will be.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, device: torch.device) -> None:
        self._sampling = sampling
        self._vocab_size = vocab_size
        self._device = device
        self._table_RPU = torch.zeros((0, 0, len(Purpose)), dtype=torch.float64, device=device)
        self._proposals_RPK = torch.zeros((0, 0, 0), dtype=torch.float64, device=device)
        self._uniforms_RQU = self._table_RPU
        self._proposal_uniforms_R: Sequence[Tensor] = ()
        self._doubt: Tensor | None = None

    def allocate(self, rows: int, num_positions: int, num_draft_tokens: int) -> None:
        """Make room for answers of at most `num_positions` tokens, overrun included, drafted K at a time."""
        if self._sampling.greedy:
            return
        if self._table_RPU.shape[0] < rows or self._table_RPU.shape[1] < num_positions:
            sizes = (len(Purpose), num_draft_tokens)
            self._table_RPU, self._proposals_RPK = (
                torch.zeros((rows, num_positions, size), dtype=torch.float64, device=self._device) for size in sizes
            )

    def refill(self, lanes: Sequence[int], answers: Sequence[tuple[int, int]]) -> None:
        """Lay out the numbers of new requests, given as (seed, positions)."""
        if self._sampling.greedy:
            return
        for lane, (seed, num_positions) in zip(lanes, answers, strict=True):
            self._table_RPU[lane, :num_positions] = torch.from_numpy(uniforms(seed, num_positions)).to(self._device)
            if num_draft_tokens := self._proposals_RPK.shape[2]:
                proposals = torch.from_numpy(proposal_uniforms(seed, num_positions, num_draft_tokens))
                self._proposals_RPK[lane, :num_positions] = proposals.to(self._device)

    def plain(self, lanes: list[int], offsets: list[int], logits_R1V: Tensor) -> Tensor:
        """The target's own next token of each row.

        Args:
            lanes: the rows.
            offsets: number of that token in its answer.
            logits_R1V: the target's logits.

        Returns:
            int64 [R]; V where the logits are NaN.
        """
        if self._sampling.greedy:
            return likeliest(logits_R1V[:, 0])
        uniforms_R1U = self._gather(self._table_RPU, lanes, offsets, 1)
        return draw(probabilities(logits_R1V[:, 0], self._sampling), uniforms_R1U[:, 0, Purpose.BONUS])

    def start(self, lanes: list[int], offsets: list[int], num_draft_tokens: int) -> "TokenDraws":
        """Begin a round; the result is the `sample` function for the drafter.

        Args:
            lanes: the rows.
            offsets: number in its answer of the first token each row can gain.
            num_draft_tokens: K.
        """
        self._doubt = None
        if not self._sampling.greedy:
            self._uniforms_RQU = self._gather(self._table_RPU, lanes, offsets, num_draft_tokens + 1)
            self._proposal_uniforms_R = self._gather(self._proposals_RPK, lanes, offsets, 1)[:, 0].unbind(1)
        return self

    def __call__(self, logits_RV: Tensor, position: int) -> tuple[Tensor, Tensor | None]:
        """Draw the draft token of `position`, 0-based: [R], and its fp32 distribution [R, V] (None: greedy)."""
        if self._sampling.greedy:
            peak_R, token_R = logits_RV.max(dim=-1)
            self._doubt = peak_R if self._doubt is None else self._doubt + peak_R
            return token_R, None
        probs_RV = probabilities(logits_RV, self._sampling)
        # NaN draws V; V-1 keeps the drafter's lookups in range until `verify` reports it.
        token_R = draw(probs_RV, self._proposal_uniforms_R[position]).clamp_(max=self._vocab_size - 1)
        return token_R, probs_RV

    def verify(self, logits_RQV: Tensor, proposal: Proposal, num_proposed_R: Tensor | None = None) -> Tensor:
        """Verify a proposal.

        Args:
            logits_RQV: the target's logits after anchor and drafts.
            proposal: made with this round's `sample`, cut to its first Q - 1 positions.
            num_proposed_R: int64, how many of them are verified; None: all.

        Returns:
            int64 [R, 2 + K]: accepted drafts (-1: the draft's numbers are NaN, or it did not return the distribution
            that it drew from), bonus token (V: the target's are NaN), drafted tokens. One tensor, so that one read
            brings all of it to the host.
        """
        drafted_RK = proposal.tokens_RK
        if self._sampling.greedy:
            verification = verify_greedy(likeliest(logits_RQV), drafted_RK, num_proposed_R)
            broken_R = None if self._doubt is None else self._doubt.isnan()
        else:
            if proposal.probs_RKV is None:
                raise TypeError("a drafter that samples returns the distributions it drew from")
            verification = verify_sampled(
                probabilities(logits_RQV, self._sampling),
                proposal.probs_RKV,
                drafted_RK,
                self._uniforms_RQU[:, : drafted_RK.shape[1], Purpose.ACCEPT],
                self._uniforms_RQU[:, : drafted_RK.shape[1] + 1, Purpose.BONUS],
                num_proposed_R,
            )
            q_RK = proposal.probs_RKV.gather(-1, drafted_RK.unsqueeze(-1)).squeeze(-1)
            broken_R = (q_RK > 0).all(dim=1).logical_not()
        accepted_R = verification.accepted_R if broken_R is None else verification.accepted_R.masked_fill(broken_R, -1)
        return torch.cat([accepted_R.unsqueeze(1), verification.bonus_R.unsqueeze(1), drafted_RK], dim=1)

    def _gather(self, table_RPX: Tensor, lanes: list[int], offsets: list[int], count: int) -> Tensor:
        """What a table has for the next `count` positions of each row, [R, count, X]."""
        if len(lanes) == 1:
            lane, offset = lanes[0], offsets[0]
            return table_RPX[lane : lane + 1, offset : offset + count]
        lane_R1 = torch.tensor(lanes, device=self._device).unsqueeze(1)
        offset_R1 = torch.tensor(offsets, device=self._device).unsqueeze(1)
        return table_RPX[lane_R1, offset_R1 + torch.arange(count, device=self._device)]
