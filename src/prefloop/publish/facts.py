"""What a run says of itself to strangers: recipe and command without this machine's paths, pairs, results."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from prefloop.errors import UsageError
from prefloop.report.data import Part, plan
from prefloop.store.rundir import RunDir

# Two steps or more: `/no_think` in a system message is no path. A web address never matches, nor does `and/or`.
_PATH = re.compile(r"(?<![\w/.~])~?(?:/[^\s/'\"=,;:]+){2,}/?")
_WINDOWS = re.compile(r"[A-Za-z]:\\")
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>{}]*[^\s'\"<>{},]")
_SETTING = re.compile(r"(?P<name>[A-Za-z_][\w-]*(?:\.[\w-]+)*)=(?P<value>.*)", re.DOTALL)
# Of a server: where it is, and what is sent to it besides the question, which may name a user or an account.
_PRIVATE = {"url", "extra_body"}
HIDDEN = "…"


@dataclass(frozen=True)
class Facts:
    """A run that is read to be published.

    Attributes:
        recipe: as the run had it; `public(recipe)` is what may be shown.
        parts: the planned stages, with `_SUCCESS.json` where they are done.
    """

    run: RunDir
    manifest: dict[str, Any]
    recipe: dict[str, Any]
    parts: list[Part]

    @property
    def name(self) -> str:
        return str(self.manifest.get("name") or self.run.path.name)

    @property
    def retrieves(self) -> bool:
        """Whether it is a run of questions and documents, which has no pairs of answers."""
        return "corpus" in self.recipe

    @property
    def branches(self) -> list[str]:
        """The recipe's branches; one without a name where it has none."""
        return list(self.recipe.get("branches") or {}) or [""]

    def chosen(self) -> tuple[int, str]:
        """(round, branch) of the model that the run ends with; of an unfinished run, of the last that it trained."""
        select = next((p.success for p in self.parts if p.verb == "select" and p.success), None)
        if select is not None:
            return int(select["extra"]["round"]), str(select["extra"]["branch"])
        trained = sorted((p.round for p in self.parts if p.verb == "train" and p.success), reverse=True)
        return (trained or [1])[0], self.branches[0]

    def winner(self, round_number: int) -> str:
        """The branch whose model a finished round handed on."""
        measured = (self.success("evaluate", round_number).get("extra") or {}).get("evaluate") or {}
        return str(measured.get("winner") or self.branches[0])

    def way(self, branch: str) -> dict[str, Any]:
        """The sections rate, pair and train of a branch."""
        own: dict[str, Any] = (self.recipe.get("branches") or {}).get(branch) or {}
        return {name: own.get(name) or self.recipe.get(name) or {} for name in ("rate", "pair", "train")}

    def done(self, verb: str, round_number: int | None = None, branch: str | None = None) -> list[Part]:
        """The finished stages of a verb, by round; those of one round or branch if it is given."""
        found = [
            part
            for part in self.parts
            if part.verb == verb
            and part.success
            and round_number in (None, part.round)
            and (branch is None or part.branch in ("", branch))
        ]
        return sorted(found, key=lambda part: part.round)

    def success(self, verb: str, round_number: int | None = None, branch: str | None = None) -> dict[str, Any]:
        """`_SUCCESS.json` of the last finished stage of a verb; empty where there is none."""
        found = self.done(verb, round_number, branch)
        return (found[-1].success or {}) if found else {}

    def public_recipe(self) -> str:
        """The recipe as YAML."""
        import yaml

        return str(yaml.safe_dump(public(self.recipe), sort_keys=False, allow_unicode=True, width=110))

    def command(self) -> str:
        """The command that made the run."""
        import shlex

        return shlex.join(_argument(str(part)) for part in self.manifest.get("command") or [])

    def versions(self) -> dict[str, str]:
        """Package -> version, in the order of the manifest."""
        return {str(name): str(version) for name, version in (self.manifest.get("versions") or {}).items()}


def read(run_dir: Path) -> Facts:
    """The facts of a run, finished or not.

    Raises:
        UsageError: there is no run in this folder.
    """
    run = RunDir.peek(run_dir)
    manifest = run.read_manifest()
    if manifest is None:
        raise UsageError("there is no run here", where=str(run_dir), fix="give the --out folder of a run")
    return Facts(run, manifest, manifest.get("recipe") or {}, plan(run, manifest))


def public(value: Any) -> Any:
    """A value without what concerns this machine alone.

    Absolute paths keep their last name only. Addresses of servers and what is sent to them besides the question are
    left out, wherever they stand, as they may be nobody's business.
    """
    if isinstance(value, dict):
        return {key: HIDDEN if key in _PRIVATE and item else public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if not isinstance(value, str):
        return value
    value = _ADDRESS.sub(HIDDEN, value)
    # An argument of the command is often name=path, and a path may hold blanks.
    name, equals, last = value.rpartition("=")
    prefix = "hub:" if last.startswith("hub:") else ""
    path = last.removeprefix(prefix)
    if os.path.isabs(path) or path.startswith("~") or _WINDOWS.match(path):
        return f"{name}{equals}{prefix}{PurePath(path.replace(chr(92), '/')).name}"
    return _PATH.sub(lambda match: PurePath(match.group()).name, value)


def _argument(text: str) -> str:
    """An argument of the command as it may be shown; a setting may hold a whole section: `rate.model={path: …}`."""
    import yaml

    setting = _SETTING.fullmatch(text)
    if setting is None:
        return str(public(text))
    name, value = setting["name"], setting["value"]
    if _PRIVATE & set(name.split(".")):
        return f"{name}={HIDDEN}"
    try:
        section = yaml.safe_load(value)
    except yaml.YAMLError:
        section = None
    if isinstance(section, dict | list):
        shown = yaml.safe_dump(
            public(section), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
        )
        return f"{name}={shown.strip()}"
    # What no YAML reader understands is not shown where it might be private.
    return f"{name}={HIDDEN}" if "extra_body" in value else str(public(text))


def pairs(facts: Facts, branch: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(split, round, row) of all pairs and single answers of a branch, in the order that they were made in.

    Rows whose prompts the run measured on are in the split `test`; nothing of them was trained on.

    Raises:
        UsageError: no pairs are there yet.
    """
    if facts.retrieves:
        raise UsageError(
            "is a run of questions and documents: it makes no pairs of answers",
            where=str(facts.run.path),
            fix="export its reader (--what model); `prefloop inspect` shows the rows of its stages",
        )
    stages = facts.done("pair", branch=branch) or facts.done("preferences")
    first = next(stages[0].folder.rows(), {}) if stages else {}
    if facts.done("judgments", branch=branch) or "completion" in first:
        raise UsageError(
            "the run learned from written judgments, and made no pairs",
            where=str(facts.run.path),
            fix="its judgments lie in the stage's Parquet files (prefloop inspect RUN)",
        )
    if not stages:
        raise UsageError(
            "the run has no pairs yet", where=str(facts.run.path), fix="run it at least up to them: prefloop pair"
        )
    kept_out = _kept_out(facts)
    for stage in stages:
        for row in stage.folder.rows():
            yield "test" if row["prompt_id"] in kept_out else "train", stage.round, row


def check_branch(facts: Facts, branch: str | None) -> str:
    """The branch, or the chosen model's where none is named.

    Raises:
        UsageError: the recipe has no such branch.
    """
    if branch is None:
        return facts.chosen()[1]
    if branch not in facts.branches:
        known = ", ".join(name for name in facts.branches if name) or "it has none"
        raise UsageError(f"the recipe has no branch {branch!r} ({known})", where="--branch", fix="name one of them")
    return branch


def _kept_out(facts: Facts) -> set[str]:
    """Prompts of given preferences that are measured on, as `bench.kept_out` has them."""
    from prefloop.pairs.splits import holdout

    evaluate = facts.recipe.get("evaluate") or {}
    if not facts.recipe.get("preferences") or evaluate.get("prompts") is not None:
        return set()
    ids = {row["prompt_id"] for part in facts.done("preferences") for row in part.folder.rows()}
    return holdout(ids, evaluate["holdout"])


def hub_id(path: str | None) -> str | None:
    """A model's id on the hub; None where the recipe names a folder or the embedded model."""
    named = bool(path) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(path)) is not None
    return str(path) if named and not Path(str(path)).exists() else None
