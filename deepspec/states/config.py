"""How target states are kept. Decides their bytes, so it is part of artifact keys."""

from typing import Literal

from pydantic import Field, model_validator

from deepspec.config import Section, location_field, renamed_field


class Config(Section):
    """Where training gets the target's states from, and how they are stored."""

    mode: Literal["auto", "offline", "online"] = Field(
        "auto",
        description="offline: captured once, read from files; online: the target runs in the training loop, nothing is "
        "kept; auto: offline if they fit into max_bytes.",
    )
    max_bytes: int = Field(10**12, ge=0, description="Largest states that auto keeps as files.")
    codec: Literal["bf16", "int8", "int4"] = Field(
        "bf16", description="bf16 is exact for a bf16 target; int8 takes 0.53 of its bytes, int4 0.31."
    )
    shard_tokens: int = Field(65536, ge=1, description="Tokens per file.")
    row_group_tokens: int = renamed_field(
        4096,
        was="block_tokens",
        ge=1,
        description="Tokens per row group, the unit of reading and of shuffling.",
    )
    captured: str | None = location_field(
        None,
        min_length=1,
        description="Folder of files that vLLM's extract_hidden_states wrote of these tokens, taken instead of running "
        "the target. Their content is part of the key.",
    )

    @model_validator(mode="after")
    def _check_together(self) -> "Config":
        if self.captured is not None and self.mode == "online":
            raise ValueError("captured names files, which mode online would not read: take offline or auto")
        return self
