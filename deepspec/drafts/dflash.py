"""DFlash: a parallel block draft without heads, learned by cross-entropy.

Two layouts of a block's positions go by this name: with next-token slots (the DeepSpec release, the default here) each
position predicts the token after it; in the published one each predicts the token in its own place, so that a block is
one longer than what it proposes. Serving engines differ in which they run.

Source: DFlash paper (arXiv 2602.06036) and spec page "Algorithms"; where they disagree, the page. Imports no torch.
"""

from collections.abc import Mapping
from typing import Any, Literal

from deepspec.drafts.block.algorithm import BlockConfig, block_algorithm
from deepspec.drafts.layer_choice import chosen_layer_ids, chosen_mask_token
from deepspec.drafts.structure import BlockForm
from deepspec.targets.family import TargetSpec


class Config(BlockConfig):
    """`draft:` of a recipe with `algorithm: dflash`.

    Attributes:
        algorithm: "dflash".
        slots: what a block's positions predict: "next_token" or "in_place".
    """

    algorithm: Literal["dflash"] = "dflash"
    slots: Literal["next_token", "in_place"] = "next_token"


def _form(config: Config, spec: TargetSpec) -> BlockForm:
    in_place = config.slots == "in_place"
    return BlockForm(
        block_size=config.num_draft_tokens + int(in_place),
        num_layers=config.num_layers,
        layer_ids=chosen_layer_ids(config.target_layer_ids, spec),
        mask_token_id=chosen_mask_token(config.mask_token_id, spec),
        num_anchors=config.num_anchors,
        in_place=in_place,
    )


def _owns(config: Mapping[str, Any]) -> bool:
    return "block_size" in config and not (config.get("markov_rank") or config.get("enable_confidence_head"))


def _factors(config: Config) -> Mapping[str, float]:  # noqa: ARG001  # there is nothing to weigh
    # The total variation says how often a token would be accepted; it is only logged.
    return {"ce": 1.0, "tv": 0.0}


def _config_of(form: BlockForm) -> Config:
    return Config(
        num_draft_tokens=form.num_draft_tokens,
        num_layers=form.num_layers,
        target_layer_ids=form.layer_ids,
        mask_token_id=form.mask_token_id,
        num_anchors=form.num_anchors,
        slots="in_place" if form.in_place else "next_token",
    )


ALGORITHM = block_algorithm(
    name="dflash", config_class=Config, owns=_owns, form=_form, factors=_factors, config_of=_config_of
)
