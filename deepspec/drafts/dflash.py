"""DFlash: a parallel block draft without heads, learned by cross-entropy.

Two layouts of a block's positions go by this name. In the next-token one (the DeepSpec release, the default here) each
position predicts the token after it. In the published one each predicts the token in its own place, so that a block is
one longer than what it proposes. Serving engines differ in which they run.

Source: DFlash paper (arXiv 2602.06036) and spec page "Algorithms"; where they disagree, the page. Imports no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from deepspec.drafts.block.algorithm import BlockAlgorithm
from deepspec.drafts.block.config import BlockConfig
from deepspec.errors import IncompatibleDraft


class DFlashConfig(BlockConfig):
    """`draft:` of a recipe with `algorithm: dflash`."""

    algorithm: Literal["dflash"] = Field("dflash", description="The draft is a DFlash draft.")
    slots: Literal["next_token", "in_place"] = Field(
        "next_token", description="What a block's positions predict: the token after them, or the one in their place."
    )


class DFlash(BlockAlgorithm[DFlashConfig]):
    """The block draft as it is: the body and the target's head."""

    name = "dflash"
    Config = DFlashConfig

    def loss_weights(self, config: DFlashConfig) -> Mapping[str, float]:  # noqa: ARG002  # there is nothing to weigh
        """Cross-entropy; the distance to the target says how often a token would be accepted, and is only logged."""
        return {"ce": 1.0, "tv": 0.0}

    def block_size(self, config: DFlashConfig) -> int:
        """In place, the anchor's own position comes first and predicts nothing."""
        return config.num_draft_tokens + int(config.slots == "in_place")

    def owns(self, written: Mapping[str, Any]) -> bool:
        """Block drafts without heads."""
        return "block_size" in written and not (written.get("markov_rank") or written.get("enable_confidence_head"))

    def saved(self, config: DFlashConfig) -> dict[str, Any]:
        """In the public layout a DFlash draft is a DSpark draft without heads."""
        fields = {**super().saved(config), "block_size": self.block_size(config)}
        if config.slots == "in_place":
            fields["sample_from_anchor"] = False
        return fields | {"markov_rank": 0, "enable_confidence_head": False}

    def read(self, written: Mapping[str, Any], directory: Path) -> DFlashConfig:
        """Either layout."""
        if written.get("sample_from_anchor", True):
            return super().read(written, directory)
        config = super().read({**written, "sample_from_anchor": True}, directory)
        return config.model_copy(update={"slots": "in_place", "num_draft_tokens": config.num_draft_tokens - 1})

    def export_row(self, config: DFlashConfig) -> str:
        """The two layouts of a block are two kinds of draft for every engine."""
        return f"{self.name}, {config.slots}"

    def release(self, written: Mapping[str, Any], directory: Path, target_name: str) -> dict[str, Any]:
        """In the next-token layout only."""
        if written.get("sample_from_anchor") is False:
            raise IncompatibleDraft(
                "its positions predict in place, which this layout does not have.",
                where=f"{directory.name}/config.json",
                remedy="Train with draft.slots next_token for it.",
            )
        return super().release(written, directory, target_name)
