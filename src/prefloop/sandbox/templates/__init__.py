"""The sandbox's prompt templates: each file renders to the text of one user message, exactly as in training.

judge-pairwise.j2: instruction, first, second; labels A and B.
judge-pointwise.j2: instruction, answer; labels 1 to 5.
criticism.j2: instruction, judgment; the model then writes the answer that the judgment speaks of.
"""

from functools import cache
from pathlib import Path

import jinja2

FOLDER = Path(__file__).parent


@cache
def _template(name: str) -> jinja2.Template:
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string((FOLDER / name).read_text("utf-8"))


def render(name: str, **variables: str) -> str:
    """Render one of the files of this folder, for example "judge-pairwise.j2"; a missing variable raises."""
    return _template(name).render(**variables)
