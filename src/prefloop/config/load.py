"""From a YAML file and `a.b=c` overrides to a recipe, and from what is wrong in them to a message."""

from __future__ import annotations

import contextlib
import difflib
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from prefloop.config.base import Section
from prefloop.config.rag_recipe import RagRecipe
from prefloop.config.recipe import Recipe
from prefloop.errors import UsageError

AnyRecipe = Recipe | RagRecipe
"""Answers to prompts, or answers from retrieved documents: a recipe with `questions` is of the second kind."""

_Kind = TypeVar("_Kind", bound=Section)


def recipe_folder() -> Path:
    """Folder of the shipped recipes: inside the installed package, or beside `src` in a checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes, such as `quickstart` and `sandbox/judge-dpo`."""
    folder = recipe_folder()
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe given by path or by shipped name.

    Raises:
        UsageError: there is neither such a file nor such a recipe.
    """
    given = Path(name)
    if given.suffix in {".yaml", ".yml"} or given.is_file():
        if not given.is_file():
            raise UsageError("there is no such file", where=name, fix="check the path, or name a shipped recipe")
        return given
    shipped = recipe_folder() / f"{name}.yaml"
    if name in shipped_recipes():
        return shipped
    close = difflib.get_close_matches(name, shipped_recipes(), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UsageError(
        f"no recipe is called {name!r}",
        fix=f"{hint}give the path of a .yaml file or one of: {', '.join(shipped_recipes())}",
    )


def load_recipe(name: str, overrides: list[str] | None = None) -> AnyRecipe:
    """Read a recipe and apply `a.b=c` overrides, later ones last.

    Args:
        name: path of a YAML file, or a shipped name.
        overrides: values are YAML, so `train.lora=null`, `sample.n=8` and `model=org/name` mean what they look like.
            A plain value for a section that has a `path` sets its path.

    Raises:
        UsageError: file, key or value is wrong; says which, with the nearest known key.
    """
    path = recipe_path(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"not readable as YAML: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise UsageError("a recipe is a mapping of sections", where=str(path))
    # The type of a section first: its other settings are those of the new type.
    for override in sorted(overrides or [], key=lambda o: not o.partition("=")[0].endswith(".type")):
        _apply(data, override)
    return parse_recipe(data, where=name)


def parse_recipe(data: dict[str, Any], *, where: str) -> AnyRecipe:
    """Validate a recipe's data; every problem in one UsageError."""
    kind: type[Recipe] | type[RagRecipe] = RagRecipe if "questions" in data else Recipe
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UsageError("\n".join(explain(e, kind) for e in error.errors()), where=where) from None


def load_answering(name: str, overrides: list[str] | None = None) -> Recipe:
    """As `load_recipe`, where only a recipe of answers to prompts will do.

    Raises:
        UsageError: as there, or the recipe answers from retrieved documents.
    """
    recipe = load_recipe(name, overrides)
    if not isinstance(recipe, Recipe):
        raise UsageError(
            "is a recipe of questions and documents, and this takes recipes of answers to prompts alone",
            where=name,
            fix="with such a recipe `prefloop run` works, with --dry-run too",
        )
    return recipe


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe of either kind."""
    return TypeAdapter(AnyRecipe).json_schema()


def parse_section(kind: type[_Kind], data: dict[str, Any], overrides: list[str] | None = None) -> _Kind:
    """A single section, for a verb outside a run.

    Raises:
        UsageError: a key or value is wrong; says which, with the nearest known key.
    """
    for override in overrides or []:
        _apply(data, override)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UsageError("\n".join(explain(e, kind) for e in error.errors())) from None


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise UsageError(f"{override!r} is not of the form a.b=c", fix="for example sample.n=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"the value is not YAML: {text!r}", where=key) from error
    if isinstance(value, str):
        # YAML 1.1 reads 5e-5 as a text; people mean the number.
        with contextlib.suppress(ValueError):
            value = float(value) if "e" in value.lower() else value
    node = data
    for name in names[:-1]:
        inner = node.get(name)
        if inner is None or not isinstance(inner, dict):
            inner = {} if inner is None else {"path": inner}
        node[name] = inner
        node = inner
    old = node.get(names[-1])
    if names[-1] == "type" and old not in (None, value):
        # What was set for another type means nothing to this one.
        node.clear()
    if isinstance(old, dict) and "path" in old and isinstance(value, str):
        # Another retriever has its own passage encoder, pooling and similarity; a model keeps how it is run.
        node[names[-1]] = {"path": value} if names[-1] in _OF_THEIR_OWN else {**old, "path": value}
    else:
        node[names[-1]] = value


_OF_THEIR_OWN = {"retriever", "similarity"}
_UNIONS = {"rate", "judge", "objective"}


@cache
def _tags() -> frozenset[str]:
    """The values of `type` by which sections of a union are told apart."""
    kinds = [node["properties"].get("type", {}) for node in recipe_schema()["$defs"].values()]
    return frozenset(tag for kind in kinds for tag in [kind.get("const"), *kind.get("enum", [])] if tag)


def explain(error: Any, kind: type[Section]) -> str:
    """One line for one pydantic error: the setting, what is wrong, the nearest known name."""
    # pydantic puts the tag of a union behind its field (rate.judge.mode); people write rate.mode.
    loc = error["loc"]
    untagged = [part for i, part in enumerate(loc) if not (i and loc[i - 1] in _UNIONS and part in _tags())]
    place = ".".join(str(part) for part in untagged)
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1], kind)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"{place}: unknown setting; {hint}"
    if error["type"] == "missing":
        return f"{place}: is missing; it must be set in the recipe or as {place}=…"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch" and place.endswith("callable"):
        message = "write module:name, such as mymodule:myfunction for the function of that name in mymodule.py"
    given = error.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
    return f"{place or 'recipe'}: {message[0].lower()}{message[1:]}{shown}"


def _known_keys(loc: tuple[Any, ...], kind: type[Section]) -> list[str]:
    """The settings of the section at a place of the schema, following unions by their tag."""
    schema = kind.model_json_schema()
    node: dict[str, Any] = schema
    for part in loc:
        options = _options(schema, node)
        if options:
            node = next((n for n in options if _tagged(n, part)), next((n for n in options if "properties" in n), {}))
        if part in node.get("properties", {}):
            node = _resolve(schema, node["properties"][part])
        elif named := [*node.get("patternProperties", {}).values(), *filter(None, [node.get("additionalProperties")])]:
            node = _resolve(schema, named[0])  # a section under a name of the user's own
    node = next((n for n in _options(schema, node) if "properties" in n), node)
    return sorted(node.get("properties", {}))


def _options(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """The members of a union, those of a union inside it too: an optional section of several types is both."""
    found = []
    for option in node.get("oneOf") or node.get("anyOf") or []:
        resolved = _resolve(schema, option)
        found += _options(schema, resolved) or [resolved]
    return found


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    return schema["$defs"][reference.rsplit("/", 1)[1]] if reference else node


def _tagged(node: dict[str, Any], tag: Any) -> bool:
    return bool(node.get("properties", {}).get("type", {}).get("const") == tag)
