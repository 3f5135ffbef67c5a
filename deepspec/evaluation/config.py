"""What a draft is judged on, and how; the section `evaluate` of a recipe. Torch-free."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from deepspec.config import Section
from deepspec.decoding.config import Sampling

GATE = "gate"
"""What the run's own held-out split is called beside the benchmarks."""


class Benchmark(Section):
    """A set of prompts that no draft is trained on; a plain path in the recipe stands for `{path: …}`."""

    path: str = Field(
        min_length=1,
        description="JSON lines, Parquet or a `datasets` id, with `turns` or `messages`",
        json_schema_extra={"location": True},
    )
    share: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="seeded share of the rows, by content, that is held out; the rest may be trained on",
    )
    num_prompts: int | None = Field(None, ge=1, description="a seeded choice of at most so many of the held-out rows")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value


class Calibration(Section):
    """How the confidence head's temperatures are fitted and judged (Sequential Temperature Scaling)."""

    num_width_bins: int = Field(20, ge=2, description="equal-width bins of the fitted calibration error")
    num_mass_bins: int = Field(15, ge=2, description="equal-mass bins of the second, reported one")
    min_temperature: float = Field(0.1, gt=0.0)
    max_temperature: float = Field(10.0, gt=0.0)
    num_temperatures: int = Field(201, ge=3, description="points of the search, spaced evenly in the logarithm")
    num_rows: int = Field(8, ge=1, description="prompts decoded at once while confidences are collected")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_temperature >= self.max_temperature:
            raise ValueError("min_temperature must be below max_temperature")
        return self


class Config(Section):
    """Benchmarks, splits, sampling and sizes of an evaluation."""

    seed: int = Field(0, ge=0, description="of held-out shares, of the choice of prompts and of resampling")
    benchmarks: dict[str, Benchmark] = Field({}, description="name -> prompts")
    num_gate_prompts: int = Field(64, ge=1, description="prompts of the gate split that decide about promotion")
    num_calibration_prompts: int = Field(128, ge=2, description="prompts of the calibration split that are decoded")
    num_warmup_prompts: int = Field(2, ge=0, description="decoded first, both ways, and not counted")
    max_new_tokens: int = Field(2048, ge=1, description="limit of one answer in tokens")
    sampling: Sampling = Sampling()
    max_skipped: float = Field(
        0.05, ge=0.0, le=1.0, description="share of a benchmark's prompts that may be too long for the target"
    )
    num_bootstrap_samples: int = Field(1000, ge=100, description="resamples of prompts behind each interval")
    calibration: Calibration = Calibration()

    @field_validator("benchmarks")
    @classmethod
    def _usable_names(cls, value: dict[str, Benchmark]) -> dict[str, Benchmark]:
        for name in value:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"{name!r} is no name: letters, digits, dot, dash and underscore")
            if name == GATE:
                raise ValueError(f"{GATE!r} is the name of the run's own held-out split")
        return value
