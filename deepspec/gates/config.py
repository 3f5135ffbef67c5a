"""What a challenger has to reach before it is promoted; the section `gates` of a recipe."""

from pydantic import Field

from deepspec.config import Section


class Config(Section):
    """The gates' thresholds, all measured on the gate split."""

    min_tau_gain: float = Field(
        0.0,
        ge=0.0,
        description="Tokens per round: the challenger's τ must exceed the champion's by more than this; a tie refuses.",
    )
    min_tau: float | None = Field(
        None, ge=1.0, description="The challenger's τ must reach this, champion or not; none asks for nothing."
    )
