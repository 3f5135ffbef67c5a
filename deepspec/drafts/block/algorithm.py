"""What the algorithms with a block-parallel draft share: an `Algorithm` made of a form and the factors of its losses.

Imports no torch by itself: what needs it is imported when it is first called.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from deepspec.config import Section
from deepspec.drafts.algorithm import Algorithm, Drafter
from deepspec.drafts.files.config_json import block_config, block_form, check_fields, check_fits, read_draft_config
from deepspec.drafts.layer_choice import chosen_layer_ids
from deepspec.drafts.structure import BlockForm
from deepspec.targets.family import TargetSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepspec.drafts.block.module import BlockDraft
    from deepspec.drafts.block.supervision import BlockSupervision
    from deepspec.states.batch import PackedStates


class BlockConfig(Section):
    """The fields that every block draft's recipe section has.

    Attributes:
        num_draft_tokens: γ, tokens proposed per round.
        num_layers: decoder layers of the draft.
        target_layer_ids: the target's layers whose outputs the draft reads; None: the target's usual ones.
        mask_token_id: an id the tokenizer does not use, for the slots to be filled; None: the family's.
        num_anchors: most blocks trained per document and step.
        loss_decay_gamma: slot k weighs exp(-k / loss_decay_gamma) in every loss term.
    """

    num_draft_tokens: int = Field(7, ge=1, le=64)
    num_layers: int = Field(5, ge=1)
    target_layer_ids: tuple[int, ...] | None = None
    mask_token_id: int | None = Field(None, ge=0)
    num_anchors: int = Field(512, ge=1)
    loss_decay_gamma: float = Field(4.0, gt=0)


def block_algorithm(
    *,
    name: str,
    config_class: type[BlockConfig],
    owns: Callable[[Mapping[str, Any]], bool],
    form: Callable[[Any, TargetSpec], BlockForm],
    factors: Callable[[Any], Mapping[str, float]],
    config_of: Callable[[BlockForm], BlockConfig],
) -> Algorithm:
    """An algorithm with a block-parallel draft.

    Args:
        name, config_class, owns: see `Algorithm`.
        form: (config, spec) -> the draft's structure.
        factors: (config) -> what each loss term is multiplied with; a term with factor 0 is only logged.
        config_of: (form) -> the config whose form it is.
    """

    def check(config: BlockConfig, spec: TargetSpec) -> None:
        form(config, spec)

    def build(config: BlockConfig, spec: TargetSpec) -> "BlockDraft":
        from deepspec.drafts import initialization
        from deepspec.drafts.block.module import BlockDraft

        return initialization.build(lambda: BlockDraft(form(config, spec), spec))

    def initialize(draft: "nn.Module", embedding_VD: "Tensor", head_VD: "Tensor", seed: int) -> None:
        from deepspec.drafts import initialization
        from deepspec.drafts.block.module import block_draft

        initialization.initialize(draft, block_draft(draft).spec.initializer_range, embedding_VD, head_VD, seed)

    def supervise(batch: "PackedStates", config: BlockConfig, *, seed: int, step: int) -> "BlockSupervision":
        from deepspec.drafts.block.supervision import block_supervision

        return block_supervision(
            batch,
            num_slots=config.num_draft_tokens,
            num_anchors=config.num_anchors,
            decay_gamma=config.loss_decay_gamma,
            factors=factors(config),
            seed=seed,
            step=step,
        )

    def loss(draft: "nn.Module", batch: "PackedStates", supervision: Any, totals: Mapping[str, float]) -> Any:
        from deepspec.drafts.block.module import block_loss

        return block_loss(draft, batch, supervision, totals)

    def drafter(draft: "nn.Module", config: BlockConfig) -> Drafter:  # noqa: ARG001  # the draft knows its form
        from deepspec.drafts.block.drafter import BlockDrafter
        from deepspec.drafts.block.module import block_draft

        return BlockDrafter(block_draft(draft))

    def save(draft: "nn.Module", directory: Path, config: BlockConfig, spec: TargetSpec) -> None:
        from deepspec.drafts.block.module import block_draft
        from deepspec.drafts.files import weights_file as draft_directory

        dtype = str(block_draft(draft).fc.weight.dtype).removeprefix("torch.")
        draft_directory.save(draft, directory, block_config(form(config, spec), spec, dtype))

    def load(
        directory: Path,
        spec: TargetSpec,
        *,
        config: BlockConfig | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> "nn.Module":
        import torch

        from deepspec.drafts import initialization
        from deepspec.drafts.block.module import BlockDraft
        from deepspec.drafts.files.weights_file import load_weights

        written = read_draft_config(directory)
        found = block_form(written, directory)
        check_fits(written, spec, directory)
        if config is not None:
            _check_form(found, form(config, spec), directory)
        with torch.device(device):
            draft = initialization.build(lambda: BlockDraft(found, spec)).to(getattr(torch, dtype))
        load_weights(draft, directory)
        return draft

    return Algorithm(
        name=name,
        Config=config_class,
        owns=owns,
        check=check,
        layer_ids=lambda config, spec: chosen_layer_ids(config.target_layer_ids, spec),
        num_draft_tokens=lambda config: int(config.num_draft_tokens),
        build=build,
        initialize=initialize,
        supervise=supervise,
        loss=loss,
        drafter=drafter,
        save=save,
        load=load,
        read_config=lambda directory: config_of(block_form(read_draft_config(directory), directory)),
    )


def _check_form(found: BlockForm, wanted: BlockForm, directory: Path) -> None:
    check_fields(
        {
            "block_size": (found.block_size, wanted.block_size),
            "sample_from_anchor": (not found.in_place, not wanted.in_place),
            "num_hidden_layers": (found.num_layers, wanted.num_layers),
            "target_layer_ids": (list(found.layer_ids), list(wanted.layer_ids)),
            "mask_token_id": (found.mask_token_id, wanted.mask_token_id),
            "markov_rank": (found.markov_rank, wanted.markov_rank),
            "markov_head_type": (found.markov_head, wanted.markov_head),
            "enable_confidence_head": (found.confidence_head, wanted.confidence_head),
            "confidence_head_with_markov": (found.confidence_head_with_markov, wanted.confidence_head_with_markov),
        },
        directory,
    )
