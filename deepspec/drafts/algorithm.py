"""The contract of a draft algorithm: the abstract class `Algorithm`, what its methods take and what they return.

An algorithm is one class in one file and one line in the table of `deepspec.drafts`; nothing else asks which algorithm
it has. Training calls `supervise` and `loss`, decoding the `Drafter`, planning `cost`, registry and export `save`,
`load` and `release`. This module and the algorithms' own import no torch, so that recipes and plans can read them in
milliseconds: methods that compute import what they need.

Shapes: R rows of a decoding batch, Q query positions, A anchors, K draft positions, L captured layers, D hidden,
V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from deepspec.config import Section
from deepspec.drafts.files.config_json import (
    check_fields,
    check_fits,
    draft_config,
    read_draft_config,
    read_fields,
    saved_fields,
)
from deepspec.drafts.layer_choice import chosen_layer_ids
from deepspec.errors import IncompatibleDraft, RecipeError
from deepspec.targets import parameter_counts
from deepspec.targets.family import TargetSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from deepspec.drafts.layers import DraftModule
    from deepspec.states.batch import PackedStates, PackedTokens

    Ints: TypeAlias = Sequence[int] | Tensor
    """Integers per row: a list (free), or an integer tensor (read back once)."""

    Sample: TypeAlias = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
    """`sample(logits_RV fp32, position)` -> (token_R int64, probs_RV fp32, or None when greedy)."""


class Supervision(Protocol):
    """What is to be learned from one micro-batch, known before the forward and without states."""

    def to(self, device: "torch.device | str") -> "Supervision":
        """The same with its tensors on `device`."""

    @property
    def totals(self) -> Mapping[str, float]:
        """Denominator of each loss term in this micro-batch; the optimizer step divides by their sum over all."""


@dataclass(frozen=True)
class LossOutput:
    """Loss of one micro-batch.

    Args:
        loss: scalar; each term is (its sum over this micro-batch) / totals[term], so that adding the losses of all
            micro-batches and ranks gives exactly the optimizer step's loss.
        sums: metrics as (sum, count), fp64 [2] on the loss's device: to be added over micro-batches and ranks and only
            then read back and divided. The same names from every micro-batch.
    """

    loss: "Tensor"
    sums: "dict[str, Tensor]"


@dataclass(frozen=True)
class Proposal:
    """What a drafter proposes for R rows.

    Args:
        tokens_RK: drafted tokens, int64.
        probs_RKV: the very fp32 distributions they were sampled from; None when greedy (one-hot).
        confidence_RK: raw probability per position that it is accepted, given that all before it were; None without a
            confidence head.
    """

    tokens_RK: "Tensor"
    probs_RKV: "Tensor | None"
    confidence_RK: "Tensor | None"


@dataclass(frozen=True)
class Cost:
    """What a draft takes, from shapes alone; a row is one position of a document that predicts one token.

    Args:
        parameters: trained weights of its layers and heads; the projection of the states and norms are not counted.
        row_flops: of training on one row, forward and backward.
        token_flops: of training on one token of context.
        rows_per_anchor: rows for each supervised position that is trained on.
        max_anchors: most such positions of a document; None: all.
    """

    parameters: float
    row_flops: float
    token_flops: float
    rows_per_anchor: int
    max_anchors: int | None = None

    def rows(self, num_supervised: int) -> int:
        """Rows of a document with that many supervised tokens."""
        anchors = num_supervised if self.max_anchors is None else min(self.max_anchors, num_supervised)
        return anchors * self.rows_per_anchor


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
            sample: owns temperature, top-k, top-p and randomness; called once per position, left to right.
        """


class Algorithm(ABC):
    """One draft algorithm, without state: its methods take the algorithm's own Config.

    Every Config has `algorithm`, `num_draft_tokens`, `num_layers` and `target_layer_ids`. A field that a draft's
    config.json contains is marked with `SavedAs`; saving, loading and comparing follow from the mark.

    Attributes:
        name: its name in recipes (`draft.algorithm`).
        Config: its recipe section.
        architecture: what config.json calls the network, without the family's prefix.
        units: metric -> unit, of those of its metrics that have one.
        memory_fields: fields of the Config that take less memory in training when they are lowered.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Section]]
    architecture: ClassVar[str]
    units: ClassVar[Mapping[str, str]] = MappingProxyType({})
    memory_fields: ClassVar[tuple[str, ...]] = ()

    # What a recipe asks for, with a target.

    def resolve(self, config: Any, spec: TargetSpec) -> Any:
        """The config with all that its target answers filled in.

        Raises:
            RecipeError: a draft of this target cannot have what the config asks for.
        """
        return config.model_copy(update={"target_layer_ids": self.layer_ids(config, spec)})

    def layer_ids(self, config: Any, spec: TargetSpec) -> tuple[int, ...]:
        """The decoder layers to capture; RecipeError for ids that the target does not have."""
        return chosen_layer_ids(config.target_layer_ids, spec)

    def num_draft_tokens(self, config: Any) -> int:
        """Tokens proposed per round."""
        return int(config.num_draft_tokens)

    def cost(self, config: Any, spec: TargetSpec) -> Cost:
        """What such a draft takes, without torch; here for one that trains layers of the target's shape only."""
        layers = parameter_counts(spec)["layers"] / spec.num_layers * config.num_layers
        projection = len(self.layer_ids(config, spec)) * spec.hidden_size**2
        # Of the head: twice forward (draft and target), once backward through the draft's (its weights are frozen).
        return Cost(
            parameters=layers,
            row_flops=6.0 * (layers + spec.vocab_size * spec.hidden_size),
            token_flops=6.0 * (0.25 * layers + projection),
            rows_per_anchor=self.num_draft_tokens(config),
        )

    # The network.

    @abstractmethod
    def module(self, config: Any, spec: TargetSpec) -> "DraftModule":
        """The network of a resolved config; its weights are not set yet."""

    def build(self, config: Any, spec: TargetSpec) -> "DraftModule":
        """A draft on the current default device whose weights are NaN until initialised or loaded."""
        from deepspec.drafts import initialization

        resolved = self.resolve(config, spec)
        return initialization.build(lambda: self.module(resolved, spec))

    def initialize(self, draft: "DraftModule", embedding_VD: "Tensor", head_VD: "Tensor", seed: int) -> None:
        """Copy and freeze the target's tables, draw the rest."""
        from deepspec.drafts import initialization

        initialization.initialize(draft, draft.spec.initializer_range, embedding_VD, head_VD, seed)

    # Training and decoding.

    @abstractmethod
    def supervise(self, tokens: "PackedTokens", config: Any, *, seed: int, step: int) -> Supervision:
        """What is learned from a micro-batch, on the CPU; draws are keyed by (seed, step, document id)."""

    @abstractmethod
    def loss(
        self, draft: "nn.Module", batch: "PackedStates", supervision: Any, totals: Mapping[str, float]
    ) -> LossOutput:
        """Loss and metrics of one micro-batch.

        Args:
            draft: from `build`, or what wraps it for several processes.
            batch: packed documents with their states.
            supervision: from `supervise`.
            totals: denominators of the whole optimizer step.
        """

    @abstractmethod
    def drafter(self, draft: "nn.Module", config: Any) -> Drafter:
        """The draft inside decoding, with its weights as they are now."""

    # The draft as files.

    @abstractmethod
    def owns(self, written: Mapping[str, Any]) -> bool:
        """Whether a draft directory's config.json was written by (or for) this algorithm."""

    def saved(self, config: Any) -> dict[str, Any]:
        """What config.json says of a resolved config, under its names there."""
        return saved_fields(config)

    def required(self, config: Any) -> dict[str, Any]:
        """What config.json must say for other readers: they have no default for it, or not the same one.

        Our defaults (`SavedAs`) are no help to others: whatever is saved is required, unless an algorithm knows better.
        """
        return self.saved(config)

    def read(self, written: Mapping[str, Any], directory: Path) -> Any:
        """The Config that a config.json was written with; what it does not say (loss weights) has its default.

        Raises:
            IncompatibleDraft: a field is missing or of another type.
        """
        return read_fields(self.Config, written, directory)

    def read_config(self, directory: Path) -> Any:
        """The Config that a draft directory was written with; see `read`."""
        return self.read(read_draft_config(directory), directory)

    def save(self, draft: "DraftModule", directory: Path, config: Any, spec: TargetSpec) -> None:
        """Write config.json and model.safetensors.

        Raises:
            IncompatibleDraft: a weight is not finite.
        """
        from deepspec.drafts.files import weights_file

        resolved = self.resolve(config, spec)
        dtype = str(draft.fc.weight.dtype).removeprefix("torch.")
        weights_file.save(
            draft, directory, draft_config(spec, self.architecture, resolved.num_layers, dtype) | self.saved(resolved)
        )

    def load(
        self, directory: Path, spec: TargetSpec, *, config: Any = None, device: str = "cpu", dtype: str = "float32"
    ) -> "DraftModule":
        """The draft in a directory.

        Raises:
            IncompatibleDraft: anything does not fit the target (or `config`, if given).
        """
        import torch

        from deepspec.drafts import initialization
        from deepspec.drafts.files.weights_file import check_shapes, check_size, load_weights, read_shapes, weights_of

        found = self.read_for(directory, spec, config=config)
        # What config.json says takes no memory, and hardly time, before the weights' header says the same.
        shapes = read_shapes(directory)
        check_size(found.num_layers, shapes, directory)
        with torch.device(device):
            draft = initialization.build(
                lambda: self.module(found, spec), lambda draft: check_shapes(draft, shapes, weights_of(directory))
            ).to(getattr(torch, dtype))
        load_weights(draft, directory)
        return draft

    def read_for(
        self, directory: Path, spec: TargetSpec, *, config: Any = None, written: Mapping[str, Any] | None = None
    ) -> Any:
        """The Config that a draft directory was written with, if it is one of a draft for this target.

        Args:
            directory: the draft's.
            spec: the target.
            config: what it is compared with, if given.
            written: what its config.json says, in our own words; None: it is in our own words.

        Raises:
            IncompatibleDraft: config.json does not fit the target (or `config`, if given).
        """
        written = read_draft_config(directory) if written is None else written
        found = self.read(written, directory)
        check_fits(written, spec, directory)
        if config is not None:
            check_fields(self.Config, self.saved(found), self.saved(self.resolve(config, spec)), directory)
        self.check_resolves(found, spec, directory)
        return found

    def check_resolves(self, config: Any, spec: TargetSpec, directory: Path) -> None:
        """See that a Config that was read from a directory is one for a target.

        Raises:
            IncompatibleDraft: a draft of this target cannot be like that; names the field.
        """
        try:
            self.resolve(config, spec)
        except RecipeError as error:
            field = (error.where or "").rpartition(".")[2]
            raise IncompatibleDraft(
                f"field {field}: {error.what}" if field else error.what,
                where=f"{directory.name}/config.json",
                remedy="Check that config.json and weights are of one draft.",
            ) from error

    def export_row(self, config: Any) -> str:  # noqa: ARG002  # for algorithms with several layouts
        """Its row in the table of what engines load (`deepspec.export.matrix`)."""
        return self.name

    def release(self, written: Mapping[str, Any], directory: Path, target_name: str) -> dict[str, Any]:  # noqa: ARG002
        """The config.json of a draft in the layout of the public DeepSpec checkpoints.

        Args:
            written: its config.json as we write it.
            directory: of the draft, for messages.
            target_name: what the target is called.

        Raises:
            IncompatibleDraft: the layout cannot hold such a draft.
        """
        return dict(written)


def ints(values: "Ints") -> list[int]:
    """Row numbers and positions as a list: what a drafter's bookkeeping needs."""
    return list(values) if isinstance(values, Sequence) else values.tolist()
