"""What all sections of the settings share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A group of settings; unknown keys are refused and values cannot be changed later."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
