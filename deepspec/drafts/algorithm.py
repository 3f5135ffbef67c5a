"""What a draft algorithm is to the rest of the house: the contracts `Algorithm`, `Supervision` and `Drafter`.

An algorithm is one file that exports one `Algorithm` value and one line in the table of `deepspec.drafts`; nothing
else asks which algorithm it has. Training sees `supervise` and `loss`, decoding sees the `Drafter`, registry and export
see `save` and `load`. This module holds no torch code, so that recipes and plans can read it in milliseconds.

Shapes: R rows of a decoding batch, Q query positions, A anchors, K draft slots, L captured layers, D hidden,
V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from deepspec.config import Section
from deepspec.targets.family import TargetSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepspec.drafts.layers import DraftModule
    from deepspec.states.batch import PackedStates

    Ints: TypeAlias = Sequence[int] | Tensor
    """Integers per row: a list (free), or an integer tensor (read back once)."""

    Sample: TypeAlias = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
    """`sample(logits_RV fp32, slot)` -> (token_R int64, probs_RV fp32, or None when greedy)."""


class Supervision(Protocol):
    """What is to be learned from one micro-batch, known before the forward."""

    @property
    def totals(self) -> Mapping[str, float]:
        """Denominator of each loss term in this micro-batch; the optimizer step divides by their sum over all."""


@dataclass(frozen=True)
class LossOutput:
    """Loss of one micro-batch.

    Args:
        loss: scalar; each term is (its sum over this micro-batch) / totals[term], so that adding the losses of all
            micro-batches and ranks gives exactly the optimizer step's loss.
        sums: metrics as (sum, count), to be added over micro-batches and ranks and only then divided.
    """

    loss: "Tensor"
    sums: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Proposal:
    """What a drafter proposes for R rows.

    Args:
        tokens_RK: drafted tokens, int64.
        probs_RKV: the very fp32 distributions they were sampled from; None when greedy (one-hot).
        confidence_RK: raw probability per slot that it is accepted, given that all before it were; None without a
            confidence head.
    """

    tokens_RK: "Tensor"
    probs_RKV: "Tensor | None"
    confidence_RK: "Tensor | None"


class Drafter(Protocol):
    """A draft inside decoding: it keeps the context of each row and proposes tokens after it."""

    num_draft_tokens: int
    layer_ids: tuple[int, ...]
    vocab_size: int

    def allocate(self, rows: int, capacity: int) -> None:
        """Make room for `rows` requests of at most `capacity` context positions each; forgets everything."""

    def reset(self, row: int) -> None:
        """Forget the context of `row`: a new request starts there."""

    def advance(
        self, rows: "Ints", states_RQLD: "Tensor", input_ids_RQ: "Tensor", start_R: "Ints", counts_R: "Ints"
    ) -> None:
        """Take in the target's states of newly committed context positions.

        Args:
            rows: row numbers, without repeats.
            states_RQLD: raw layer outputs in the order of `layer_ids`, left-aligned in Q.
            input_ids_RQ: the tokens at these positions.
            start_R: first position of each row; equals the number of positions it has already.
            counts_R: how many of the Q are valid per row, 0 … Q.
        """

    def propose(self, rows: "Ints", anchor_ids_R: "Tensor", positions_R: "Ints", sample: "Sample") -> Proposal:
        """Draft the tokens after each row's anchor.

        Args:
            rows: row numbers, without repeats.
            anchor_ids_R: last committed token of each row, int64.
            positions_R: its position; all positions before it have been given to `advance`.
            sample: owns temperature, top-k, top-p and randomness; called once per slot, left to right.
        """


@dataclass(frozen=True)
class Algorithm:
    """One draft algorithm; see the `Drafter` and `Supervision` contracts for what its parts return.

    Args:
        name: its name in recipes (`draft.algorithm`).
        Config: its recipe section.
        owns: whether a draft directory's config.json was written by (or for) this algorithm.
        check: (config, spec): raises RecipeError for what a draft of this target cannot have, before anything runs.
        layer_ids: (config, spec) -> the decoder layers to capture; raises RecipeError for ids the target has not.
        num_draft_tokens: (config) -> tokens proposed per round.
        build: (config, spec) -> module on the current default device whose weights are NaN until initialised or loaded.
        initialize: (draft, target_embedding_VD, target_head_VD, seed): copy and freeze the target's tables, draw the
            rest.
        supervise: (batch, config, *, seed, step) -> Supervision; draws are keyed by (seed, step, document id).
        loss: (draft, batch, supervision, totals) -> LossOutput; `totals` are those of the whole optimizer step.
        drafter: (draft, config) -> Drafter over the draft's weights as they are now.
        save: (draft, directory, config, spec): write config.json and model.safetensors.
        load: (directory, spec, *, config=None, device="cpu", dtype="float32") -> draft; IncompatibleDraft when
            anything does not fit the target (or `config`, if given).
        read_config: (directory) -> the Config that a draft directory was written with; what the directory does not
            say (loss weights) has its default.
    """

    name: str
    Config: type[Section]
    owns: Callable[[Mapping[str, Any]], bool]
    check: Callable[[Any, TargetSpec], None]
    layer_ids: Callable[[Any, TargetSpec], tuple[int, ...]]
    num_draft_tokens: Callable[[Any], int]
    build: Callable[[Any, TargetSpec], "DraftModule"]
    initialize: Callable[["nn.Module", "Tensor", "Tensor", int], None]
    supervise: "Supervise"
    loss: Callable[["nn.Module", "PackedStates", Any, Mapping[str, float]], LossOutput]
    drafter: Callable[["nn.Module", Any], Drafter]
    save: Callable[["nn.Module", Path, Any, TargetSpec], None]
    load: "Load"
    read_config: Callable[[Path], Any]


class Supervise(Protocol):
    """See `Algorithm.supervise`."""

    def __call__(self, batch: "PackedStates", config: Any, *, seed: int, step: int) -> Supervision: ...


class Load(Protocol):
    """See `Algorithm.load`."""

    def __call__(
        self,
        directory: Path,
        spec: TargetSpec,
        *,
        config: Any | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> "nn.Module": ...
