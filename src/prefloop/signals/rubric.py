"""Rubrics: what a judge looks at, and what its ratings mean. YAML, shipped ones and the user's own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from prefloop.config.base import Section
from prefloop.errors import UsageError

FOLDER = "signals/rubrics"


class Criterion(Section):
    """One thing to look at.

    Attributes:
        name: stands in records.
        description: goes into the prompt, as the end of the sentence "what counts: …".
        weight: relative to the other criteria.
    """

    name: str = Field(pattern=r"^[\w-]+$")
    description: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


class Rubric(Section):
    """Criteria and a scale.

    Attributes:
        name: stands in records.
        criteria: at least one, names all different.
        scale: rating -> what it means. Ratings follow on one another and have one digit each: a rating is then one
            token to most models, and the probabilities of two ratings can be compared.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    criteria: tuple[Criterion, ...] = Field(min_length=1)
    scale: dict[int, str] = Field(min_length=2)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        names = [criterion.name for criterion in self.criteria]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two criteria are called {twice[0]}")
        levels = sorted(self.scale)
        if levels[0] < 0 or levels[-1] > 9 or levels != list(range(levels[0], levels[-1] + 1)):
            raise ValueError(f"scale: ratings of one digit that follow on one another are needed, not {levels}")
        return self

    @property
    def ratings(self) -> tuple[int, ...]:
        """The ratings, lowest first."""
        return tuple(sorted(self.scale))

    def only(self, criterion: Criterion) -> Rubric:
        """The same scale for one of the criteria."""
        return self.model_copy(update={"criteria": (criterion.model_copy(update={"weight": 1.0}),)})

    def values(self) -> dict[str, Any]:
        """What a template sees: name, criteria (name, description, weight), weighted, scale ([rating, meaning])."""
        weights = {criterion.weight for criterion in self.criteria}
        return {
            "name": self.name,
            "criteria": [criterion.model_dump() for criterion in self.criteria],
            "weighted": len(weights) > 1,
            "scale": [[rating, self.scale[rating]] for rating in self.ratings],
        }


def load(name: str | None) -> Rubric:
    """A rubric.

    Args:
        name: None or `default` for the built-in one, another shipped one, or a YAML file. A name without a path
            separator and without a suffix is a shipped one.

    Raises:
        UsageError: there is no such rubric, or the file does not hold one.
    """
    name = "default" if name is None else name
    shipped = resources.files("prefloop") / FOLDER
    if not Path(name).suffix and "/" not in name and "\\" not in name:
        file = shipped / f"{name}.yaml"
        if not file.is_file():
            known = sorted(entry.name.removesuffix(".yaml") for entry in shipped.iterdir())
            raise UsageError(
                f"no shipped rubric is called {name!r}",
                where="rubric",
                fix=f"use {', '.join(known)}, or a file with its suffix, such as {name}.yaml",
            )
        return _parse(file.read_text(encoding="utf-8"), f"rubric {name}")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the rubric: {error}", where=name, fix="give a UTF-8 YAML file") from error
    return _parse(text, name)


def _parse(text: str, where: str) -> Rubric:
    fix = "write name, criteria (a list of name, description and perhaps weight) and scale (rating: meaning)"
    try:
        return Rubric.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UsageError(f"not readable as YAML: {error}", where=where, fix=fix) from error
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc']) or 'rubric'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        ]
        raise UsageError("; ".join(faults), where=where, fix=fix) from None
