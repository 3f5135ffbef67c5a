"""Eagle3: an autoregressive draft of one decoder layer, trained by unrolling it over its own outputs.

Source: EAGLE-3 paper (arXiv 2503.01840) and spec page "Algorithms"; where they disagree, the page. Imports no torch by
itself: what needs it is imported when it is first called.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from deepspec.config import Section
from deepspec.drafts.algorithm import Algorithm, Drafter, LossOutput
from deepspec.drafts.files.config_json import SavedAs
from deepspec.errors import IncompatibleDraft
from deepspec.targets.family import TargetSpec

if TYPE_CHECKING:
    from torch import nn

    from deepspec.drafts.unrolled.module import UnrolledDraft
    from deepspec.drafts.unrolled.supervision import UnrollSupervision
    from deepspec.states.batch import PackedStates, PackedTokens

_NUM_LAYERS_READ = 5
"""The DeepSpec release asserts it."""


class Eagle3Config(Section):
    """`draft:` of a recipe with `algorithm: eagle3`."""

    algorithm: Literal["eagle3"] = Field("eagle3", description="The draft is an Eagle3 draft.")
    num_draft_tokens: Annotated[int, SavedAs("ttt_length")] = Field(
        7, ge=1, le=64, description="Tokens proposed per round, and steps of the unroll (training-time test)."
    )
    num_layers: Annotated[int, SavedAs("draft_num_hidden_layers")] = Field(
        1, ge=1, description="Decoder layers of the draft."
    )
    target_layer_ids: Annotated[tuple[int, ...] | None, SavedAs("target_layer_ids")] = Field(
        None, description="The target's layers whose outputs the draft reads; none: the target's usual ones."
    )
    step_loss_decay: Annotated[float, SavedAs("step_loss_decay", absent=0.8, trained_with=True)] = Field(
        0.8, gt=0, description="Step s weighs step_loss_decay^s."
    )


class Eagle3(Algorithm):
    """A draft that reads its own outputs, in training as in decoding; it learns the target's whole distribution."""

    name = "eagle3"
    Config = Eagle3Config
    architecture = "Eagle3Model"
    units = MappingProxyType({"loss_soft_ce": "nats"})

    def module(self, config: Eagle3Config, spec: TargetSpec) -> "UnrolledDraft":
        from deepspec.drafts.unrolled.module import UnrolledDraft

        return UnrolledDraft(
            config.target_layer_ids or (), spec, num_layers=config.num_layers, num_steps=config.num_draft_tokens
        )

    def supervise(self, tokens: "PackedTokens", config: Eagle3Config, *, seed: int, step: int) -> "UnrollSupervision":  # noqa: ARG002
        """Nothing is drawn."""
        from deepspec.drafts.unrolled.supervision import unroll_supervision

        return unroll_supervision(tokens, num_steps=config.num_draft_tokens, step_decay=config.step_loss_decay)

    def loss(
        self,
        draft: "nn.Module",
        batch: "PackedStates",
        supervision: "UnrollSupervision",
        totals: Mapping[str, float],
    ) -> LossOutput:
        from deepspec.drafts.unrolled.module import unrolled_loss

        return unrolled_loss(draft, batch, supervision, totals)

    def drafter(self, draft: "nn.Module", config: Eagle3Config) -> Drafter:  # noqa: ARG002  # the draft knows its config
        from deepspec.drafts.unrolled.drafter import UnrolledDrafter
        from deepspec.drafts.unrolled.module import unrolled_draft

        return UnrolledDrafter(unrolled_draft(draft))

    def owns(self, written: Mapping[str, Any]) -> bool:
        """Drafts with a training-time-test length."""
        return "ttt_length" in written

    def export_row(self, config: Eagle3Config) -> str:
        """Every layer of ours reads the embedding, elsewhere only the first does: several layers are another draft."""
        return self.name if config.num_layers == 1 else f"{self.name}, several layers"

    def release(self, written: Mapping[str, Any], directory: Path, target_name: str) -> dict[str, Any]:
        """With five layers read, none of them the embedding; the target is named."""
        ids = written["target_layer_ids"]
        if len(ids) != _NUM_LAYERS_READ or min(ids) < 0:
            raise IncompatibleDraft(
                f"it reads the layers {ids}; this layout has exactly {_NUM_LAYERS_READ}, without the embedding.",
                where=f"{directory.name}/config.json",
                remedy="Train with five draft.target_layer_ids for it.",
            )
        return super().release(written, directory, target_name) | {"target_model_name_or_path": target_name}
