"""DSpark: a parallel block draft with a sequential (Markov) head and a confidence head.

It adds two heads to a block draft. The Markov head biases each position's logits by the token before it (`W_2 u_k`; the
factor `u_k` is made of that token's row of `W_1`), so that positions drawn left to right agree with each other. The
confidence head gives a logit per position: how likely the target accepts it. The draft learns by cross-entropy and by
the distance to the target's distribution; the confidence, by how likely the drawn token would be accepted.

Source: DSpark paper (arXiv 2607.05147) and spec page "Algorithms"; where they disagree, the page. Imports no torch by
itself. Not here: how the heads are made of their weights (`block/heads.py`).

Shapes: R rows of a decoding batch, A anchors, K draft positions, N supervised positions, D hidden, r rank,
V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from deepspec.drafts.algorithm import Cost, LossOutput
from deepspec.drafts.block.algorithm import BlockAlgorithm
from deepspec.drafts.block.config import BlockConfig
from deepspec.drafts.files.config_json import SavedAs
from deepspec.targets.family import TargetSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepspec.drafts.block.heads import Chain, ConfidenceHead, VanillaHead
    from deepspec.drafts.block.module import BlockDraft, BlockOutput
    from deepspec.drafts.block.supervision import BlockSupervision
    from deepspec.states.batch import PackedStates


class DSparkConfig(BlockConfig):
    """`draft:` of a recipe with `algorithm: dspark`."""

    algorithm: Literal["dspark"] = Field("dspark", description="The draft is a DSpark draft.")
    markov_rank: Annotated[int, SavedAs("markov_rank", absent=0)] = Field(
        256, ge=0, description="Rank of the sequential head; 0: none."
    )
    markov_head: Annotated[Literal["vanilla", "gated", "rnn"], SavedAs("markov_head_type", absent="vanilla")] = Field(
        "vanilla", description="How the sequential head uses the previous token."
    )
    confidence_head: Annotated[bool, SavedAs("enable_confidence_head", absent=False)] = Field(
        default=True, description="Whether the draft also has a confidence for each position."
    )
    confidence_head_with_markov: Annotated[bool, SavedAs("confidence_head_with_markov", absent=False)] = Field(
        default=True, description="Whether the confidence head sees the previous token."
    )
    ce_weight: float = Field(0.1, ge=0, description="Weight of the cross-entropy in the loss.")
    tv_weight: float = Field(0.9, ge=0, description="Weight of the distance to the target in the loss.")
    confidence_weight: float = Field(1.0, ge=0, description="Weight of the confidence's term in the loss.")

    @model_validator(mode="after")
    def _check_loss(self) -> "DSparkConfig":
        if not (self.ce_weight or self.tv_weight):
            raise ValueError("ce_weight and tv_weight are both 0: nothing would be learned")
        if not (self.markov_rank or self.confidence_head):
            raise ValueError("markov_rank is 0 and there is no confidence head: that is algorithm dflash")
        return self


class DSpark(BlockAlgorithm[DSparkConfig]):
    """A block draft whose positions know the token before them, and how likely they are accepted."""

    name = "dspark"
    Config = DSparkConfig
    units = MappingProxyType({**BlockAlgorithm.units, "loss_confidence": "nats"})

    def heads(self, config: DSparkConfig, spec: TargetSpec) -> Mapping[str, "nn.Module"]:
        """The sequential head and the confidence head."""
        from deepspec.drafts.block.heads import SEQUENTIAL_HEADS, ConfidenceHead

        heads: dict[str, nn.Module] = {}
        rank = config.markov_rank
        if rank:
            heads["markov_head"] = SEQUENTIAL_HEADS[config.markov_head](spec.vocab_size, spec.hidden_size, rank)
        if config.confidence_head:
            heads["confidence_head"] = ConfidenceHead(
                spec.hidden_size, rank if config.confidence_head_with_markov else 0
            )
        return heads

    def predict(
        self, draft: "BlockDraft", hidden_AKD: "Tensor", previous_AK: "Tensor", rows_N: "Tensor"
    ) -> "BlockOutput":
        """In training the token before is the true one: all positions at once."""
        markov, confidence = _heads_of(draft)
        output = super().predict(draft, hidden_AKD, previous_AK, rows_N)
        previous_Nr = None
        if markov is not None:
            previous_AKr = markov.rows(previous_AK)
            previous_Nr = previous_AKr.flatten(0, 1)[rows_N]
            factors_Nr = markov.factors(previous_AKr, hidden_AKD).flatten(0, 1)[rows_N]
            output = output._replace(factors_Nr=factors_Nr, factor_head_Vr=markov.markov_w2.weight)
        if confidence is not None:
            output = output._replace(confidence_N=confidence(output.hidden_ND, previous_Nr))
        return output

    def loss_weights(self, config: DSparkConfig) -> Mapping[str, float]:
        """Cross-entropy, distance to the target, and the confidence's term where there is one."""
        weights = {"ce": config.ce_weight, "tv": config.tv_weight}
        return {**weights, "confidence": config.confidence_weight} if config.confidence_head else weights

    def loss(
        self,
        draft: "nn.Module",
        batch: "PackedStates",
        supervision: "BlockSupervision",
        totals: Mapping[str, float],
    ) -> LossOutput:
        """The block draft's terms, and the confidence's: its label is the probability of being accepted."""
        from deepspec.drafts.block.loss import BlockLoss
        from deepspec.losses import terms

        output: BlockOutput = draft(batch, supervision)
        loss = BlockLoss(output, batch, supervision, totals)
        if output.confidence_N is not None:
            loss.add("confidence", terms.confidence_loss(output.confidence_N, loss.acceptance_N))
            error_N = (output.confidence_N.detach().sigmoid() - loss.acceptance_N).double()
            loss.log("confidence_abs_error", error_N.abs())
            loss.log("confidence_bias", error_N)
        return loss.output()

    def chain(self, draft: "BlockDraft") -> "Callable[[], Chain]":
        """In decoding the token before is the one just drawn."""
        from deepspec.drafts.block.heads import HeadChain

        markov, confidence = _heads_of(draft)
        head_rV = None if markov is None else markov.markov_w2.weight.detach().t().contiguous()
        return lambda: HeadChain(markov, head_rV, confidence)

    def cost(self, config: DSparkConfig, spec: TargetSpec) -> Cost:
        """`W_1` and `W_2` are as long as the vocabulary; `W_2` is multiplied with every row's factor."""
        cost, table = super().cost(config, spec), spec.vocab_size * config.markov_rank
        return replace(cost, parameters=cost.parameters + 2 * table, row_flops=cost.row_flops + 6.0 * table)

    def owns(self, written: Mapping[str, Any]) -> bool:
        """Block drafts with a head."""
        return "block_size" in written and bool(written.get("markov_rank") or written.get("enable_confidence_head"))

    def export_row(self, config: DSparkConfig) -> str:
        """By its sequential head."""
        return f"{self.name}, {config.markov_head if config.markov_rank else 'no'} head"

    def saved(self, config: DSparkConfig) -> dict[str, Any]:
        """The heads as they are: without a sequential head the confidence cannot see the token before."""
        fields = super().saved(config)
        if not config.markov_rank:
            del fields["markov_head_type"]
            fields["confidence_head_with_markov"] = False
        return fields

    def required(self, config: DSparkConfig) -> dict[str, Any]:
        """What a head's input is, is asked only where there is that head."""
        fields = super().required(config)
        if not config.confidence_head:
            del fields["confidence_head_with_markov"]
        return fields


def _heads_of(draft: "BlockDraft") -> "tuple[VanillaHead | None, ConfidenceHead | None]":
    return getattr(draft, "markov_head", None), getattr(draft, "confidence_head", None)
