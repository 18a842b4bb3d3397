"""Write docs/recipe.md from the recipe's schema: `python docs/make_recipe_page.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefloop.config import recipe_schema

PAGE = Path(__file__).parent / "recipe.md"
HEAD = """# Recipe settings

Made from `prefloop.config` by `docs/make_recipe_page.py`. A recipe is a YAML file of these sections; a setting can be
changed on the command line as `a.b=c`. A recipe with `questions` is a
`RagRecipe`, every other one a `Recipe`. `prefloop run NAME --print-config` prints a recipe with every setting, and
`prefloop schema` the JSON Schema for editors.

A section that has a `path` may be given as that path alone: `model: ORG/NAME`.
"""


def page() -> str:
    sections = recipe_schema()["$defs"]
    first = ("Recipe", "RagRecipe")
    parts = [HEAD, *(_section(name, sections.pop(name)) for name in first)]
    parts += [_section(name, section) for name, section in sections.items()]
    return "\n".join(parts)


def _section(name: str, section: dict[str, Any]) -> str:
    rows = [f"\n## {name}\n", section.get("description", "").replace("\n\n", " ") + "\n"]
    rows += ["| setting | type | default | what it is |", "|---|---|---|---|"]
    for setting, field in section.get("properties", {}).items():
        needed = setting in section.get("required", [])
        default = "**required**" if needed else f"`{json.dumps(field.get('default'))}`"
        if isinstance(field.get("default"), dict):
            default = "see there"
        what = field.get("description", "").replace("|", "\\|")
        rows.append(f"| `{setting}` | {_type(field)} | {default} | {what} |")
    return "\n".join(rows)


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    options = field.get("anyOf") or field.get("oneOf")
    if options:
        return " or ".join(_type(option) for option in options)
    if field.get("type") == "array":
        if "prefixItems" in field:
            return f"[{', '.join(map(_type, field['prefixItems']))}]"
        return f"list of {_type(field['items'])}"
    if field.get("type") == "object":
        return "mapping"
    return str(field.get("type", "any"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
