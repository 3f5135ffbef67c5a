"""How answers are drawn from the target's distribution: the one description that plain and speculative decoding share.

Torch-free: recipes import it.
"""

from pydantic import Field

from deepspec.config import Section

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: the distributions are one-hot and nothing is divided by almost zero."""


class Sampling(Section):
    """Temperature, truncation and seed of a decoding run; applied to the target's and the draft's logits alike."""

    temperature: float = Field(1.0, ge=0.0, description="0 (anything below 1e-5) is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="smallest set of tokens with this mass; 1 keeps all")
    top_k: int = Field(0, ge=0, description="only the k likeliest tokens; 0 keeps all")
    seed: int = Field(0, ge=0, lt=2**63)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def truncated(self) -> bool:
        """Whether top-k or top-p leaves tokens out."""
        return self.top_k > 0 or self.top_p < 1.0
