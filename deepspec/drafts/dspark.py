"""DSpark: a parallel block draft with a sequential (Markov) head and a confidence head.

Source: DSpark paper (arXiv 2607.05147) and spec page "Algorithms"; where they disagree, the page. Imports no torch.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from deepspec.drafts.block.algorithm import BlockConfig, block_algorithm
from deepspec.drafts.layer_choice import chosen_layer_ids, chosen_mask_token
from deepspec.drafts.structure import BlockForm
from deepspec.targets.family import TargetSpec


class Config(BlockConfig):
    """`draft:` of a recipe with `algorithm: dspark`.

    Attributes:
        algorithm: "dspark".
        markov_rank: rank of the sequential head; 0: none.
        markov_head: how it uses the previous token.
        confidence_head: whether the draft also says how sure it is of each slot.
        confidence_head_with_markov: whether that head sees the previous token.
        ce_weight, tv_weight, confidence_weight: factors of the loss terms.
    """

    algorithm: Literal["dspark"] = "dspark"
    markov_rank: int = Field(256, ge=0)
    markov_head: Literal["vanilla", "gated", "rnn"] = "vanilla"
    confidence_head: bool = True
    confidence_head_with_markov: bool = True
    ce_weight: float = Field(0.1, ge=0)
    tv_weight: float = Field(0.9, ge=0)
    confidence_weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _check_loss(self) -> "Config":
        if not (self.ce_weight or self.tv_weight):
            raise ValueError("ce_weight and tv_weight are both 0: nothing would be learned")
        if not (self.markov_rank or self.confidence_head):
            raise ValueError("markov_rank is 0 and there is no confidence head: that is algorithm dflash")
        return self


def _form(config: Config, spec: TargetSpec) -> BlockForm:
    """Next-token slots: as many as tokens are proposed."""
    return BlockForm(
        block_size=config.num_draft_tokens,
        num_layers=config.num_layers,
        layer_ids=chosen_layer_ids(config.target_layer_ids, spec),
        mask_token_id=chosen_mask_token(config.mask_token_id, spec),
        num_anchors=config.num_anchors,
        markov_rank=config.markov_rank,
        markov_head=config.markov_head,
        confidence_head=config.confidence_head,
        confidence_head_with_markov=config.confidence_head_with_markov and config.markov_rank > 0,
    )


def _owns(config: Mapping[str, Any]) -> bool:
    return "block_size" in config and bool(config.get("markov_rank") or config.get("enable_confidence_head"))


def _factors(config: Config) -> Mapping[str, float]:
    factors = {"ce": config.ce_weight, "tv": config.tv_weight}
    if config.confidence_head:
        factors["confidence"] = config.confidence_weight
    return factors


def _config_of(form: BlockForm) -> Config:
    return Config(
        num_draft_tokens=form.num_draft_tokens,
        num_layers=form.num_layers,
        target_layer_ids=form.layer_ids,
        mask_token_id=form.mask_token_id,
        num_anchors=form.num_anchors,
        markov_rank=form.markov_rank,
        markov_head=form.markov_head,
        confidence_head=form.confidence_head,
        confidence_head_with_markov=form.confidence_head_with_markov,
    )


ALGORITHM = block_algorithm(
    name="dspark", config_class=Config, owns=_owns, form=_form, factors=_factors, config_of=_config_of
)
