"""What a training run computes (`Config`), and how it is executed (`TrainingExecution`).

`Config` decides the resulting weights and is part of artifact keys; `TrainingExecution` is not. Defaults: spec page
"Algorithms", Defaults.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepspec.config import (
    ExecutionSection,
    Section,
    execution_field,
    later_field,
    location_field,
    renamed_field,
)

Share = Annotated[float, Field(ge=0, lt=1)]


class Config(Section):
    """Optimizer, schedule, length of training, and how its best checkpoint is chosen."""

    lr: float = Field(6e-4, gt=0, description="Peak learning rate.")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="AdamW's two decay rates.")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    warmup_share: Share = Field(0.04, description="Share of the steps with a linearly rising learning rate.")
    max_grad_norm: float = renamed_field(
        1.0, was="grad_norm", gt=0, description="Gradients are scaled down to at most this global norm."
    )
    num_documents_per_step: int = renamed_field(
        512, was="batch_documents", ge=1, description="Documents per optimizer step."
    )
    num_epochs: int = Field(10, ge=1, description="Passes over the documents.")
    num_steps: int | None = Field(None, ge=1, description="Optimizer steps; overrides num_epochs.")
    init_from: str | None = location_field(
        None,
        min_length=1,
        description="Draft to start from: champion, an artifact (train/1f3a), a registered version (models:/name/3) or "
        "a directory; none: from new weights. Its content is part of the key, not its name.",
    )
    control_every: int | None = execution_field(
        None,
        ge=2,
        description="With init_from champion: each training after so many less one that started from a champion starts"
        " from new weights, as a control; none: only the first does.",
    )
    seed: int = Field(0, ge=0, description="Of the initial weights, the data order and all draws.")
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of forward and backward; the optimizer's own weights are always float32."
    )
    validate_every_steps: int | None = Field(
        500, ge=1, description="Real decoding on the validation split every so often; none: the last weights are taken."
    )
    num_validation_prompts: int = Field(32, ge=1, description="Prompts of one validation.")
    validation_max_new_tokens: int = Field(256, ge=1, description="Longest answer of a validation.")
    validation_temperature: float = Field(1.0, ge=0, description="Sampling temperature of a validation; 0 is greedy.")
    patience_validations: int | None = Field(
        None, ge=1, description="Validations without improvement after which training stops; none: never."
    )

    @model_validator(mode="after")
    def _control_of_what(self) -> "Config":
        if self.control_every is not None and self.init_from != "champion":
            raise ValueError(f"control_every is {self.control_every}, but init_from is not champion: all are alike")
        return self


class TrainingExecution(ExecutionSection):
    """Devices, processes, micro-batches and checkpoints: nothing of it changes what is learned, to rounding.

    What is computed together rounds together: `micro_batch_tokens` is in a draft's key where it is not the default.
    """

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one.")
    num_processes: int = Field(1, ge=1, description="Training processes, one per GPU.")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp: each process has all weights; fsdp: they divide weights, gradients and moments."
    )
    num_shards: int | None = Field(
        None, ge=1, description="fsdp: processes that hold one copy together, a divisor of num_processes; none: all."
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads of each process; none: its share of the cores."
    )
    micro_batch_tokens: int = later_field(
        16384, key_absent=16384, ge=1, description="Tokens per forward and backward; a longer document is alone."
    )
    attention: Literal["auto", "sdpa", "flex"] = Field(
        "auto", description="Kernel of the draft's attention; auto: flex attention on a GPU, sdpa elsewhere."
    )
    compile: bool = Field(
        default=False, description="Compile the draft's layers: a minute once, then faster steps on a GPU."
    )
    recompute_activations: bool = Field(
        default=False, description="Compute a layer's inner activations again in the backward: less memory, more time."
    )
    states_disk_bytes: int = Field(
        20 * 10**9, ge=0, description="States from object storage that are kept on the local disk; 0 keeps none."
    )
    checkpoint_every_steps: int = Field(200, ge=1, description="How much work a crash can cost at most.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints kept, besides the best one.")
    lease_wait_seconds: float = Field(60.0, ge=0, description="How long to wait for a run that is still saving.")

    @model_validator(mode="after")
    def _check_together(self) -> "TrainingExecution":
        if self.num_shards is not None and self.parallel != "fsdp":
            raise ValueError(f"num_shards is {self.num_shards}, but parallel is {self.parallel}: only fsdp has shards")
        if self.attention == "flex" and self.device == "cpu":
            raise ValueError("attention is flex, which has no backward on device cpu: take auto or sdpa")
        if self.num_shards is not None and self.num_processes % self.num_shards:
            raise ValueError(
                f"num_shards is {self.num_shards}, which does not divide num_processes ({self.num_processes})"
            )
        return self
