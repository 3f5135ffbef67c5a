"""What a challenger has to reach before it is promoted; the section `gates` of a recipe."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from deepspec.config import Section, execution_field, later_field
from deepspec.data.config import plain_endpoint


class Config(Section):
    """The gates' thresholds. The gain is measured on the gate split; the rest on the benchmarks, but for `min_tau`."""

    min_tau_gain: float = Field(
        0.0,
        ge=0.0,
        description="Tokens per round: the challenger's τ must exceed the champion's by more than this, beyond chance.",
    )
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1.0,
        description="Of all challengers that are no better than one champion, at most 1 - confidence are promoted,"
        " however many nights there are: each look at it spends a part.",
    )
    wanted_tau_gain: float = Field(
        0.2,
        gt=0.0,
        description="A gain that the gate should be able to see; where its prompts cannot show it, a warning says so.",
    )
    min_tau: float | None = Field(
        None, ge=1.0, description="The challenger's τ must reach this, champion or not; none asks for nothing."
    )
    min_benchmark_tau: dict[str, float] = Field({}, description="benchmark -> τ that the challenger must reach there")
    max_domain_loss: float | None = Field(
        0.1,
        ge=0.0,
        description="Tokens per round that a domain's τ may be lower than the champion's; refused where the interval"
        " of the difference lies wholly beyond; none asks for nothing.",
    )
    min_speedup: float | None = Field(
        1.0,
        ge=0.0,
        description="Tokens per second over plain decoding, mean over benchmarks: the lower end of the interval must"
        " exceed this, champion or not; none asks for nothing.",
    )
    max_calibration_error: float | None = Field(
        0.15,
        gt=0.0,
        le=1.0,
        description="Most mean expected calibration error of the draft's confidences, if it has any; none asks for"
        " nothing.",
    )
    servable: bool = Field(
        default=True,
        description="The draft must have no flaw in any format that holds such drafts; false asks for nothing.",
    )
    engines: tuple[Literal["vllm", "sglang"], ...] = later_field(
        (),
        key_absent=(),
        description="Engines that have to load the draft; none named: some format has to hold it.",
    )
    endpoint: str | None = later_field(
        None,
        key_absent=None,
        description="Base URL of a staging server that is given the draft and has to serve it as it was measured; none"
        " asks no server.",
    )
    approval: Literal["automatic", "manual"] = execution_field(
        "automatic",
        description="Who promotes what the gates accept: the run, or a person, for whom it ends as awaiting_approval.",
    )
    approval_hours: float = execution_field(
        72.0, gt=0.0, description="How long a run of a deployment waits for that person on Prefect's server."
    )

    @field_validator("min_benchmark_tau")
    @classmethod
    def _lengths(cls, value: dict[str, float]) -> dict[str, float]:
        for name, tau in value.items():
            if tau < 1.0:
                raise ValueError(f"{name}: τ is at least 1, got {tau:g}")
        return value

    @field_validator("endpoint")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        return None if value is None else plain_endpoint(value, "it")

    @model_validator(mode="after")
    def _asked(self) -> Self:
        if self.engines and not self.servable:
            raise ValueError("engines are named, and servable is false: nothing would ask them")
        return self
