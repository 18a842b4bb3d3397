"""LLaMA-Factory's `dataset_info.json`: which file a data set is in, and what its columns and speakers are called.

    {"NAME": {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": true,
              "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "weight": "weight"},
              "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}}}

Of a ranking set the rows become the layout `sharegpt_pairs`, of any other `sharegpt`. A weight is read from the column
that `columns.weight` names (LLM-SBM's sets), or from one called weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.inputs.problems import nearest
from prefloop.store import atomic

REGISTRY = "dataset_info.json"

# Our name of a column -> LLaMA-Factory's name of it in `columns`, and what it is called where that says nothing.
_COLUMNS = {
    "conversations": ("messages", "conversations"),
    "system": ("system", "system"),
    "tools": ("tools", "tools"),
    "chosen": ("chosen", "chosen"),
    "rejected": ("rejected", "rejected"),
    "weight": ("weight", "weight"),
}
_SPEAKERS = {
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True)
class Entry:
    """A data set of the registry.

    Attributes:
        name: in the registry.
        file: its rows.
        layout: of `inputs.layouts`.
        columns: our name -> the file's.
        tags: role and content key of a turn, and the file's name of each speaker -> sharegpt's.
    """

    name: str
    file: Path
    layout: str
    columns: Mapping[str, str]
    role: str
    content: str
    speakers: Mapping[str, str]

    def plain(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """A row with the columns, keys and speakers that the layout has; other columns stay as they are."""
        theirs = {theirs: ours for ours, theirs in self.columns.items()}
        found: dict[str, Any] = {}
        for column, given in value.items():
            name = theirs.get(column, column)
            if column not in theirs and column in self.columns:
                name = f"{column} (not in columns)"  # another column stands for it
            if name in ("conversations", "chosen", "rejected"):
                given = [self._turn(turn) for turn in given] if isinstance(given, list) else self._turn(given)
            found[name] = given
        return found

    def _turn(self, turn: Any) -> Any:
        if not isinstance(turn, dict):
            return turn
        keys = {self.role: "from", self.content: "value"}
        renamed = {keys.get(key, key): part for key, part in turn.items()}
        speaker = renamed.get("from")
        if isinstance(speaker, str):
            renamed["from"] = self.speakers.get(speaker, speaker)
        return renamed


def is_registry(path: str) -> bool:
    """Whether a path names a registry and not a file of rows."""
    return Path(path).name == REGISTRY


def read_entry(path: str, name: str | None) -> Entry:
    """A data set of a registry.

    Args:
        path: the registry.
        name: of the data set; None where there is one alone.

    Raises:
        UsageError: the registry or the file is not there, there are several sets, or one of another kind.
    """
    if not Path(path).is_file():
        raise UsageError("there is no such file", where=path, fix="check the path")
    try:
        registry = atomic.read_json(Path(path))
    except ValueError as error:
        raise UsageError(f"is no JSON: {error}", where=path, fix="write it again") from error
    if not isinstance(registry, dict) or not all(isinstance(entry, dict) for entry in registry.values()):
        raise UsageError("is no list of data sets", where=path, fix='write {"NAME": {"file_name": …}}')
    known = ", ".join(registry) or "none"
    if name is None:
        if len(registry) != 1:
            fix = "set preferences.name to one of them"
            raise UsageError(f"holds {len(registry)} data sets ({known}), and none is named", where=path, fix=fix)
        name = next(iter(registry))
    if name not in registry:
        meant = nearest(name, list(registry))
        fix = f"did you mean {meant!r}?" if meant else "name one of them in preferences.name"
        raise UsageError(f"has no data set {name!r}; there are: {known}", where=path, fix=fix)
    return _entry(path, name, registry[name])


def _entry(path: str, name: str, given: Mapping[str, Any]) -> Entry:
    where = f"{path}, {name}"
    if (there := next((key for key in _ELSEWHERE if key in given), None)) is not None:
        fix = "fetch it, or name a hub set by preferences.path=hub:ORG/NAME"
        raise UsageError(f"lies elsewhere ({there})", where=where, fix=fix)
    if (formatting := given.get("formatting", "alpaca")) != "sharegpt":
        fix = "write conversations (formatting sharegpt), or name the file itself in preferences.path"
        raise UsageError(f"is of formatting {formatting}, which is not read by its registry", where=where, fix=fix)
    file = Path(path).parent / str(given.get("file_name") or "")
    if not file.is_file():
        raise UsageError(f"its file {given.get('file_name')!r} is not there", where=where, fix="correct file_name")
    columns, tags = (given.get(part) or {} for part in ("columns", "tags"))
    if not isinstance(columns, dict) or not isinstance(tags, dict):
        raise UsageError("columns and tags map names to names", where=where, fix='write "columns": {"messages": …}')
    ranking = bool(given.get("ranking"))
    return Entry(
        name=name,
        file=file,
        layout="sharegpt_pairs" if ranking else "sharegpt",
        columns={ours: str(columns.get(key) or default) for ours, (key, default) in _COLUMNS.items()},
        role=str(tags.get("role_tag", "from")),
        content=str(tags.get("content_tag", "value")),
        speakers={str(tags.get(tag, ours)): ours for tag, ours in _SPEAKERS.items()},
    )
