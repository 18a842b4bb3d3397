"""What all sections of a recipe share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


def path_shorthand(data: Any, *names: str) -> Any:
    """`model: NAME` says the same as `model: {path: NAME}`."""
    if not isinstance(data, dict):
        return data
    return {k: {"path": v} if k in names and isinstance(v, str) else v for k, v in data.items()}


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    # Defaults are validated too: 32 and 32.0 must not give two fingerprints.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
