"""DSpark: a parallel block draft with a sequential (Markov) head and a confidence head.

Source: DSpark paper (arXiv 2607.05147) and spec page "Algorithms"; where they disagree, the page. Imports no torch by
itself: what needs it is imported when it is first called.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from deepspec.config import Section
from deepspec.drafts.algorithm import Algorithm, Drafter, LossOutput
from deepspec.drafts.directory_config import form_of, read_draft_config
from deepspec.drafts.form import BlockForm
from deepspec.drafts.layer_choice import chosen_layer_ids, chosen_mask_token
from deepspec.targets.family import TargetSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepspec.drafts.anchors import BlockSupervision
    from deepspec.states.batch import PackedStates


class Config(Section):
    """`draft:` of a recipe with `algorithm: dspark`.

    Attributes:
        algorithm: "dspark".
        num_draft_tokens: γ, tokens proposed per round; equals the block size (next-token slots).
        num_layers: decoder layers of the draft.
        target_layer_ids: the target's layers whose outputs the draft reads; None: the target's usual ones.
        mask_token_id: an id the tokenizer does not use, for the slots to be filled; None: the family's.
        num_anchors: most blocks trained per document and step.
        markov_rank: rank of the sequential head.
        markov_head: how it uses the previous token.
        confidence_head: whether the draft also says how sure it is of each slot.
        confidence_head_with_markov: whether that head sees the previous token.
        ce_weight, tv_weight, confidence_weight: factors of the loss terms.
        loss_decay_gamma: slot k weighs exp(-k / loss_decay_gamma) in every term.
    """

    algorithm: Literal["dspark"] = "dspark"
    num_draft_tokens: int = Field(7, ge=1, le=64)
    num_layers: int = Field(5, ge=1)
    target_layer_ids: tuple[int, ...] | None = None
    mask_token_id: int | None = Field(None, ge=0)
    num_anchors: int = Field(512, ge=1)
    markov_rank: int = Field(256, ge=1)
    markov_head: Literal["vanilla", "gated", "rnn"] = "vanilla"
    confidence_head: bool = True
    confidence_head_with_markov: bool = True
    ce_weight: float = Field(0.1, ge=0)
    tv_weight: float = Field(0.9, ge=0)
    confidence_weight: float = Field(1.0, ge=0)
    loss_decay_gamma: float = Field(4.0, gt=0)

    @model_validator(mode="after")
    def _check_weights(self) -> "Config":
        if not (self.ce_weight or self.tv_weight):
            raise ValueError("ce_weight and tv_weight are both 0: nothing would be learned")
        return self


def _form(config: Config, spec: TargetSpec) -> BlockForm:
    return BlockForm(
        block_size=config.num_draft_tokens,
        num_layers=config.num_layers,
        layer_ids=_layer_ids(config, spec),
        mask_token_id=chosen_mask_token(config.mask_token_id, spec),
        num_anchors=config.num_anchors,
        markov_rank=config.markov_rank,
        markov_head=config.markov_head,
        confidence_head=config.confidence_head,
        confidence_head_with_markov=config.confidence_head_with_markov,
    )


def _owns(config: Mapping[str, Any]) -> bool:
    return "block_size" in config and bool(config.get("markov_rank"))


def _layer_ids(config: Config, spec: TargetSpec) -> tuple[int, ...]:
    return chosen_layer_ids(config.target_layer_ids, spec)


def _num_draft_tokens(config: Config) -> int:
    return config.num_draft_tokens


def _build(config: Config, spec: TargetSpec) -> "nn.Module":
    from deepspec.drafts import block

    return block.build(_form(config, spec), spec)


def _initialize(draft: "nn.Module", target_embedding_VD: "Tensor", target_head_VD: "Tensor", seed: int) -> None:
    from deepspec.drafts import block

    block.initialize(block.block_draft(draft), target_embedding_VD, target_head_VD, seed)


def _supervise(batch: "PackedStates", config: Config, *, seed: int, step: int) -> "BlockSupervision":
    from deepspec.drafts.anchors import block_supervision

    factors = {"ce": config.ce_weight, "tv": config.tv_weight}
    if config.confidence_head:
        factors["confidence"] = config.confidence_weight
    return block_supervision(
        batch,
        num_slots=config.num_draft_tokens,
        num_anchors=config.num_anchors,
        decay_gamma=config.loss_decay_gamma,
        factors=factors,
        seed=seed,
        step=step,
    )


def _loss(
    draft: "nn.Module", batch: "PackedStates", supervision: "BlockSupervision", totals: Mapping[str, float]
) -> LossOutput:
    from deepspec.drafts import block

    return block.block_loss(draft, batch, supervision, totals)


def _drafter(draft: "nn.Module", config: Config) -> Drafter:  # noqa: ARG001  # the draft knows its form
    from deepspec.drafts.block import block_draft
    from deepspec.drafts.block_drafter import BlockDrafter

    return BlockDrafter(block_draft(draft))


def _save(draft: "nn.Module", directory: Path, config: Config, spec: TargetSpec) -> None:  # noqa: ARG001  # same
    from deepspec.drafts import directory as draft_directory
    from deepspec.drafts.block import block_draft

    draft_directory.save(block_draft(draft), directory)


def _load(
    directory: Path,
    spec: TargetSpec,
    *,
    config: Config | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> "nn.Module":
    from deepspec.drafts import directory as draft_directory

    form = None if config is None else _form(config, spec)
    return draft_directory.load(directory, spec, form=form, device=device, dtype=dtype)


def _read_config(directory: Path) -> Config:
    form = form_of(read_draft_config(directory), directory)
    return Config(
        num_draft_tokens=form.block_size,
        num_layers=form.num_layers,
        target_layer_ids=form.layer_ids,
        mask_token_id=form.mask_token_id,
        num_anchors=form.num_anchors,
        markov_rank=form.markov_rank,
        markov_head=form.markov_head,
        confidence_head=form.confidence_head,
        confidence_head_with_markov=form.confidence_head_with_markov,
    )


ALGORITHM = Algorithm(
    name="dspark",
    Config=Config,
    owns=_owns,
    layer_ids=_layer_ids,
    num_draft_tokens=_num_draft_tokens,
    build=_build,
    initialize=_initialize,
    supervise=_supervise,
    loss=_loss,
    drafter=_drafter,
    save=_save,
    load=_load,
    read_config=_read_config,
)
