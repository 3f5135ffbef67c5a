"""What the algorithms with a block-parallel draft share: the base class `BlockAlgorithm`. Imports no torch by itself.

An algorithm says what it adds: `heads` to the network, what they make of a block in training (`predict`) and in
decoding (`chain`), terms to the loss, and what all that costs. By default nothing is added: DFlash.

Shapes: A anchors, K draft positions, N supervised positions, D hidden, V vocabulary.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from deepspec.drafts.algorithm import Algorithm, Cost, Drafter, LossOutput
from deepspec.drafts.block.config import BlockConfig
from deepspec.drafts.layer_choice import chosen_mask_token
from deepspec.errors import IncompatibleDraft
from deepspec.targets.family import TargetSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepspec.drafts.block.heads import Chain
    from deepspec.drafts.block.module import BlockDraft, BlockOutput
    from deepspec.drafts.block.supervision import BlockSupervision
    from deepspec.states.batch import PackedStates, PackedTokens

ConfigT = TypeVar("ConfigT", bound=BlockConfig)


class BlockAlgorithm(Algorithm, Generic[ConfigT]):
    """An algorithm whose draft proposes all tokens of a block in one pass."""

    architecture = "DSparkModel"
    units = MappingProxyType({"loss_ce": "nats"})
    memory_fields = ("num_anchors",)

    # What an algorithm of this kind says.

    @abstractmethod
    def loss_weights(self, config: ConfigT) -> Mapping[str, float]:
        """What each loss term is multiplied with; a term of weight 0 is only logged. "ce" and "tv" are always there."""

    def block_size(self, config: ConfigT) -> int:
        """Draft input positions of a block, of which the last `num_draft_tokens` predict."""
        return config.num_draft_tokens

    def heads(self, config: ConfigT, spec: TargetSpec) -> Mapping[str, "nn.Module"]:  # noqa: ARG002
        """Modules besides the body, by name; their parameters are trained and saved with the draft's."""
        return {}

    def predict(
        self,
        draft: "BlockDraft",
        hidden_AKD: "Tensor",
        previous_AK: "Tensor",  # noqa: ARG002  # for heads that read it
        rows_N: "Tensor",
    ) -> "BlockOutput":
        """The end of the draft's forward: what its loss needs of the supervised positions.

        Args:
            draft: with its heads.
            hidden_AKD: the body's normed output at all predicting positions.
            previous_AK: token before each position's label, int64.
            rows_N: which of the A·K positions are supervised, int64.
        """
        return draft.output(hidden_AKD.flatten(0, 1)[rows_N])

    def chain(self, draft: "BlockDraft") -> "Callable[[], Chain]":  # noqa: ARG002  # for heads that read it
        """What draws a proposed block, position by position; see `Chain`."""
        from deepspec.drafts.block.heads import Chain

        return Chain

    # What follows from it.

    def resolve(self, config: ConfigT, spec: TargetSpec) -> ConfigT:
        resolved: ConfigT = super().resolve(config, spec)
        return resolved.model_copy(update={"mask_token_id": chosen_mask_token(config.mask_token_id, spec)})

    def cost(self, config: ConfigT, spec: TargetSpec) -> Cost:
        return replace(super().cost(config, spec), max_anchors=config.num_anchors)

    def module(self, config: ConfigT, spec: TargetSpec) -> "BlockDraft":
        from deepspec.drafts.block.module import BlockDraft

        return BlockDraft(
            config, spec, block_size=self.block_size(config), heads=self.heads(config, spec), predict=self.predict
        )

    def supervise(self, tokens: "PackedTokens", config: ConfigT, *, seed: int, step: int) -> "BlockSupervision":
        from deepspec.drafts.block.supervision import block_supervision

        return block_supervision(tokens, config, loss_weights=self.loss_weights(config), seed=seed, step=step)

    def loss(
        self,
        draft: "nn.Module",
        batch: "PackedStates",
        supervision: "BlockSupervision",
        totals: Mapping[str, float],
    ) -> LossOutput:
        from deepspec.drafts.block.loss import BlockLoss

        return BlockLoss(draft(batch, supervision), batch, supervision, totals).output()

    def drafter(self, draft: "nn.Module", config: ConfigT) -> Drafter:  # noqa: ARG002  # the draft knows its config
        from deepspec.drafts.block.drafter import BlockDrafter
        from deepspec.drafts.block.module import block_draft

        return BlockDrafter(block_draft(draft), self.chain(block_draft(draft)))

    def read(self, written: Mapping[str, Any], directory: Path) -> ConfigT:
        """In the next-token layout."""
        if not written.get("sample_from_anchor", True):
            raise IncompatibleDraft(
                f"its positions predict in place, which {self.name} does not do.",
                where=f"{directory.name}/config.json",
                remedy="Use a draft whose sample_from_anchor is true.",
            )
        config: ConfigT = super().read(written, directory)
        return config

    def release(self, written: Mapping[str, Any], directory: Path, target_name: str) -> dict[str, Any]:
        """Which token a position predicts is said under both names: where neither is there, readers differ."""
        slots = {"sample_from_anchor": True, "dspark_bonus_anchor": False}
        return super().release(written, directory, target_name) | slots
