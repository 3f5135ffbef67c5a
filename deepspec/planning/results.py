"""The estimate of a run as values: what `deepspec plan` shows, `plan --json` prints, and a budget limits.

Not here: how it is computed (estimate.py, memory.py). A field whose JSON key has no unit has one in its name here.
"""

from typing import Literal, TypeAlias

from pydantic import ConfigDict, Field

from deepspec.evaluation.results import Number
from deepspec.gates.detectable import Detectable
from deepspec.store.records import JsonRecord

Work: TypeAlias = Literal["capture", "training"]
"""What takes a GPU's time; where states are live, their capture is part of the training."""
Mode: TypeAlias = Literal["offline", "online"]


class StatesEstimate(JsonRecord):
    """The target's states.

    Attributes:
        bytes_by_layout: what they take in files, by codec, and as `reference_bf16`.
        codec: the recipe's.
        captured_tokens: of the train split.
        supervised_tokens: those of them that are trained on.
        mode: files, or a live target, as the run resolves it.
    """

    model_config = ConfigDict(populate_by_name=True)

    bytes_by_layout: dict[str, int] = Field(alias="bytes")
    codec: str
    captured_tokens: int
    supervised_tokens: int
    mode: str


class Recommendation(JsonRecord):
    """The mode of states that fits the numbers, and why, in a sentence."""

    mode: Mode
    reason: str


class PlaceEstimate(JsonRecord):
    """What is written to one place.

    Attributes:
        place: a folder or URL.
        needed_bytes: of what the run writes there.
        free_bytes: None: not known (object storage).
        enough: whether it fits, with all else on the same disk; None: not known.
    """

    place: str
    needed_bytes: int
    free_bytes: int | None
    enough: bool | None


class RoomEstimate(JsonRecord):
    """Room on disk: artifacts in the store, checkpoints in the home."""

    store: PlaceEstimate
    home: PlaceEstimate


class GpuEstimate(JsonRecord):
    """Time and money on a named GPU.

    Attributes:
        name: of `deepspec.planning.gpus.GPUS`.
        num_gpus: how many work at once.
        assumed_utilisation: share of the GPU's peak rate.
        hours: wall clock, by work.
        gpu_hours: of all GPUs together.
        cost: in `currency`; None without a price.
        currency: the recipe's.
    """

    model_config = ConfigDict(populate_by_name=True)

    name: str
    num_gpus: int = Field(alias="num")
    assumed_utilisation: Number
    hours: dict[Work, Number]
    gpu_hours: Number
    cost: Number | None
    currency: str


class TrainingMemory(JsonRecord):
    """What the peak of a training process consists of.

    Attributes:
        weights_gradients_moments_bytes: of the draft, this process's share.
        tables_bytes: embedding and output matrix, which the draft shares with the target.
        target_bytes: the target's other weights, where the process holds them.
        largest_moment_bytes: what the largest micro-batch, capture or validation takes on top.
    """

    model_config = ConfigDict(populate_by_name=True)

    weights_gradients_moments_bytes: int = Field(alias="weights_gradients_moments")
    tables_bytes: int = Field(alias="tables")
    target_bytes: int = Field(alias="target")
    largest_moment_bytes: int = Field(alias="largest_moment")


class MicroBatch(JsonRecord):
    """The largest micro-batch: how many documents, how many tokens."""

    documents: int
    tokens: int


class GpuFit(JsonRecord):
    """Whether one GPU's memory is enough.

    Attributes:
        gpu_bytes: what can be used of it.
        training, capture: whether each fits.
        lower: recipe fields that lower the training's peak.
    """

    gpu_bytes: int
    training: bool
    capture: bool
    lower: tuple[str, ...]


class MemoryEstimate(JsonRecord):
    """Peak memory.

    Attributes:
        device: `cpu` or `cuda`.
        training_bytes: of each training process.
        training: what that consists of.
        micro_batch: the largest.
        capture_bytes: of the capture of states.
        fits: only for a named GPU.
    """

    device: str
    training_bytes: int
    training: TrainingMemory
    micro_batch: MicroBatch
    capture_bytes: int
    fits: GpuFit | None = None


class Estimate(JsonRecord):
    """What a run will take.

    Attributes:
        recipe: its name.
        target: path or published name.
        conversations: how many there are before splits and filters.
        mean_tokens: of one of them.
        tokens: of all of them.
        states: tokens and bytes of the target's states.
        recommendation: which mode of states to choose.
        flops: floating point operations, by work.
        room: None: not asked for.
        gpu: only for a named GPU.
        memory: None: not asked for.
        gate: what the gate's prompts can show.
        wanted_tau_gain: what the recipe wants them to show.
        not_loaded: engine that the gate asks -> why it loads no such draft, whatever is trained; None: it asks none.
    """

    recipe: str
    target: str
    conversations: int
    mean_tokens: Number
    tokens: int
    states: StatesEstimate
    recommendation: Recommendation
    flops: dict[Work, Number]
    room: RoomEstimate | None = None
    gpu: GpuEstimate | None = None
    memory: MemoryEstimate | None = None
    gate: Detectable | None = None
    wanted_tau_gain: Number | None = None
    not_loaded: dict[str, str] | None = None
