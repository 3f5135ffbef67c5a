"""Heads on top of the parallel backbone: a sequential one, which reads the previous token, and a confidence head.

Every sequential head adds a bias `W_2 u` to the backbone's logits, where the factor `u` (rank r) is made of the
previous token's row of `W_1` in one of three ways. The heads return factors, not biases: losses and decoding multiply
them with `W_2` themselves, so that no table of biases exists. Source: DSpark paper, spec page "Algorithms",
"Sequential and confidence heads"; parameter names are those of the public checkpoints.

Shapes: A anchors (or rows), K positions, D hidden, r rank, V vocabulary, N generic rows.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepspec.drafts.initialization import unset_embedding
from deepspec.losses.terms import wide


class VanillaHead(nn.Module):
    """`u_k = W_1[x_{k-1}]`."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.hidden_size = hidden_size
        self.markov_w1 = unset_embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, vocab_size, bias=False)

    def rows(self, previous: Tensor) -> Tensor:
        """Rows of `W_1` for token ids [...], [..., r]."""
        return F.embedding(previous, self.markov_w1.weight)

    def factors(self, rows_AKr: Tensor, hidden_AKD: Tensor) -> Tensor:  # noqa: ARG002
        """Factors of all positions at once, [A, K, r], given every position's previous token."""
        return rows_AKr

    def start(self, rows_Ar: Tensor) -> Tensor | None:  # noqa: ARG002
        """The state before position 0."""
        return None

    def step(self, rows_Ar: Tensor, hidden_AD: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:  # noqa: ARG002
        """Factor of one position [A, r], and the state for the next.

        Args:
            rows_Ar: `W_1` rows of the previous tokens.
            hidden_AD: the backbone's normed output at this position.
            state: from the position before (from `start` for position 0).
        """
        return rows_Ar, state


class GatedHead(VanillaHead):
    """`u_k = σ(W_g [h_k; W_1[x_{k-1}]]) ⊙ W_1[x_{k-1}]`."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int) -> None:
        super().__init__(vocab_size, hidden_size, rank)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def factors(self, rows_AKr: Tensor, hidden_AKD: Tensor) -> Tensor:
        return self.step(rows_AKr, hidden_AKD, None)[0]

    def step(self, rows_Ar: Tensor, hidden_AD: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return torch.sigmoid(self.gate_proj(torch.cat((hidden_AD, rows_Ar), dim=-1))) * rows_Ar, state


class RnnHead(VanillaHead):
    """A gated recurrence over positions: `[gate; cand; out] = W [s_{k-1}; W_1[x_{k-1}]; h_k]`, `u_k = tanh(out)`."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int) -> None:
        super().__init__(vocab_size, hidden_size, rank)
        self.joint_proj = nn.Linear(hidden_size + 2 * rank, 3 * rank)

    def factors(self, rows_AKr: Tensor, hidden_AKD: Tensor) -> Tensor:
        state = self.start(rows_AKr[:, 0])
        factors = []
        for position in range(rows_AKr.shape[1]):
            factor, state = self.step(rows_AKr[:, position], hidden_AKD[:, position], state)
            factors.append(factor)
        return torch.stack(factors, dim=1)

    def start(self, rows_Ar: Tensor) -> Tensor | None:
        return torch.zeros_like(rows_Ar)

    def step(self, rows_Ar: Tensor, hidden_AD: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        before = torch.zeros_like(rows_Ar) if state is None else state
        gate, candidate, output = self.joint_proj(torch.cat((before, rows_Ar, hidden_AD), dim=-1)).chunk(3, dim=-1)
        gate = torch.sigmoid(gate)
        return torch.tanh(output), gate * before + (1 - gate) * torch.tanh(candidate)


SEQUENTIAL_HEADS: Mapping[str, Callable[[int, int, int], VanillaHead]] = MappingProxyType(
    {"vanilla": VanillaHead, "gated": GatedHead, "rnn": RnnHead}
)


class ConfidenceHead(nn.Module):
    """Logit of the probability that a position is accepted, given that all before it were.

    Linear in `[h_k ; W_1[x_{k-1}]]`.

    Args:
        hidden_size: D.
        rank: r, or 0 when the head sees `h_k` alone.
    """

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.proj = nn.Linear(hidden_size + rank, 1)

    def forward(self, hidden_ND: Tensor, rows_Nr: Tensor | None) -> Tensor:
        """Logits [N], fp32 (the product itself is in the model's dtype).

        Args:
            hidden_ND: the backbone's normed output [..., D].
            rows_Nr: `W_1` rows of the previous tokens [..., r]; ignored when the head sees `h_k` alone.
        """
        features = torch.cat((hidden_ND, rows_Nr), dim=-1) if self.rank and rows_Nr is not None else hidden_ND
        logits: Tensor = self.proj(features).squeeze(-1)
        return logits if logits.dtype == torch.float64 else logits.float()


class Chain:
    """A proposed block that is drawn position by position; this one draws each independently of the others."""

    def logits(self, logits_RV: Tensor, hidden_RD: Tensor, previous_R: Tensor) -> Tensor:  # noqa: ARG002
        """What the next position is drawn from [R, V], fp32.

        Args:
            logits_RV: the body's, capped.
            hidden_RD: the body's normed output.
            previous_R: the token before: the anchor's for position 0, then the one just drawn.
        """
        return logits_RV

    def confidence(self, hidden_RKD: Tensor) -> Tensor | None:  # noqa: ARG002
        """How likely each position is accepted, given that all before it were, [R, K]; None without confidences."""
        return None


class HeadChain(Chain):
    """A block that is drawn with heads.

    Args:
        markov: the sequential head, if any.
        head_rV: its `W_2`, transposed.
        confidence: the confidence head, if any.
    """

    def __init__(self, markov: VanillaHead | None, head_rV: Tensor | None, confidence: ConfidenceHead | None) -> None:
        self._markov, self._head_rV, self._confidence = markov, head_rV, confidence
        self._rows: list[Tensor] = []
        self._state: Tensor | None = None

    def logits(self, logits_RV: Tensor, hidden_RD: Tensor, previous_R: Tensor) -> Tensor:
        if self._markov is None or self._head_rV is None:
            return logits_RV
        rows_Rr = self._markov.rows(previous_R)
        if not self._rows:
            self._state = self._markov.start(rows_Rr)
        self._rows.append(rows_Rr)
        factors_Rr, self._state = self._markov.step(rows_Rr, hidden_RD, self._state)
        if logits_RV.dtype == factors_Rr.dtype:
            return torch.addmm(logits_RV, factors_Rr, self._head_rV)
        return logits_RV + wide(torch.mm(factors_Rr, self._head_rV))

    def confidence(self, hidden_RKD: Tensor) -> Tensor | None:
        if self._confidence is None:
            return None
        rows_RKr = torch.stack(self._rows, dim=1) if self._rows else None
        return torch.sigmoid(self._confidence(hidden_RKD, rows_RKr))
