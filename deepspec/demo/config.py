"""Sizes of the demo's own inputs. Imports pydantic only.

The demo's own values stand in `recipes/demo-inputs.yaml`. They are tuned for two cores, where a small target learns
more in a given time by being narrow and taking many small steps than by being wide.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from deepspec.config import Section
from deepspec.training.config import Config as TrainConfig

Size = Annotated[int, Field(ge=1)]


class Corpus(Section):
    """How many conversations of which kinds are composed."""

    seed: int = Field(0, ge=0, description="of all draws")
    held_out: float = Field(0.15, gt=0, lt=1, description="share of the combinations kept for the benchmarks")
    num_conversations: int = Field(1000, ge=3, description="conversations for the pipeline, a third of each kind")
    num_target_conversations: int = Field(6000, ge=3, description="other conversations, for the target's own training")
    num_benchmark_prompts: int = Field(16, ge=1, description="different prompts of each benchmark")


class Tokenizer(Section):
    """The tokenizer's size."""

    vocab_size: int = Field(704, ge=261, description="all 256 bytes, the special tokens, and merges")


class TargetShape(Section):
    """The target's shape, by the names of Hugging Face's Qwen3 configuration, and what its training counts."""

    num_hidden_layers: Size = 12
    hidden_size: Size = 128
    intermediate_size: Size = 320
    num_attention_heads: Size = 4
    num_key_value_heads: Size = 2
    head_dim: int = Field(32, ge=2, multiple_of=2)
    max_position_embeddings: Size = 1024
    rope_theta: float = Field(10_000.0, gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0)
    initializer_range: float = Field(0.09, gt=0, description="hidden_size^-0.5; at 0.02 it learns far slower")
    prompt_loss_weight: float = Field(0.2, ge=0, le=1, description="of a prompt's token; an answer's token has 1")

    @model_validator(mode="after")
    def _share_heads_evenly(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        return self


class Config(Section):
    """Everything that the demo's inputs are made of."""

    name: str = Field("demo", pattern=r"^[a-z0-9-]+$", description="folder of the inputs, below the home")
    corpus: Corpus = Corpus()
    tokenizer: Tokenizer = Tokenizer()
    target: TargetShape = TargetShape()
    train: TrainConfig = TrainConfig(
        lr=4e-3, betas=(0.9, 0.95), num_documents_per_step=4, num_epochs=1, warmup_share=0.05, validate_every_steps=None
    )
