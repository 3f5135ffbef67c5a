"""Which target a draft is made for; the section `target` of a recipe."""

from typing import Literal

from pydantic import Field

from deepspec.config import Section, location_field


class Config(Section):
    """The target model."""

    path: str = location_field(min_length=1, description="A directory in Hugging Face's layout.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="What the target computes in.")
