"""What identifies the prompts, preferences or questions of a section, for the fingerprint of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.config import PreferencesSection, PromptsSection
from prefloop.config.rag import QuestionsSection
from prefloop.errors import UsageError
from prefloop.inputs import hub
from prefloop.inputs.llamafactory import is_registry, read_entry
from prefloop.inputs.readers import container_of, format_of
from prefloop.retrieve.corpus import located
from prefloop.store.fingerprint import Memo, code_digest, file_digest, folder_digest

_HOLDS = {PromptsSection: "prompts", PreferencesSection: "preferences", QuestionsSection: "questions"}


def identity(
    section: PromptsSection | PreferencesSection | QuestionsSection, seed: int = 0, memo: Memo | None = None
) -> dict[str, Any]:
    """Everything about a source of rows that changes what is read from it: its content, not its name.

    A file or a local folder is known by its digest (`content`); a hub set by the commit that the local cache holds
    (`content` is `hub:ORG/NAME@COMMIT`, or ends in `?unresolved` where nothing was fetched yet); the sandbox by its
    code (`code`) and the seed. Reads files, asks no network.

    Args:
        section: where they come from.
        seed: the recipe's; a `sandbox:` set is drawn by it.
        memo: remembers the digests of files.

    Raises:
        UsageError: there is no such file or folder, or its name does not say the format.
    """
    prompts = isinstance(section, PromptsSection)
    if isinstance(section, PromptsSection) and section.format == "passages":
        return section.model_dump(exclude={"path"}) | {"content": collection_digest(section.path, memo)}
    if isinstance(section, PreferencesSection) and is_registry(section.path):
        entry = read_entry(section.path, section.name)
        read = {"columns": dict(entry.columns), "speakers": dict(entry.speakers), "keys": [entry.role, entry.content]}
        settings = section.model_dump(exclude={"path", "split", "name"})
        return settings | read | {"layout": entry.layout, "content": file_digest(entry.file, memo)}
    container = format_of(section.path, section.format) if prompts else container_of(section.path)
    settings = section.model_dump(exclude={"path", "split"}) | {"container": container}
    if container == "sandbox":
        return settings | {"path": section.path, "code": code_digest("sandbox"), "seed": seed}
    if container == "hub":
        name, config = hub.name_of(section.path)
        return settings | {"split": section.split, "config": config, "content": _hub_content(name, memo)}
    path = Path(section.path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "there is no such file"
        raise UsageError(what, where=section.path, fix=f"name a file of {_HOLDS[type(section)]}")
    return settings | {"content": file_digest(path, memo)}


def collection_digest(path: str, memo: Memo | None = None) -> str:
    """What identifies passages, queries and judgments by their content.

    Raises:
        UsageError: there is no such collection.
    """
    place = located(path)
    if not place.exists():
        fix = "give a folder of BEIR's layout, its zip, or a file of passages"
        raise UsageError("there is no such collection", where=path, fix=fix)
    return (folder_digest if place.is_dir() else file_digest)(place, memo)


def _hub_content(name: str, memo: Memo | None) -> str:
    if Path(name).is_dir():
        return folder_digest(name, memo)
    if Path(name).is_file():
        return file_digest(name, memo)
    # constants is the one light module of huggingface_hub: it reads HF_HOME and HF_HUB_CACHE, and imports no client.
    from huggingface_hub import constants

    folder = constants.REPO_ID_SEPARATOR.join(["datasets", *name.split("/")])
    branch = constants.DEFAULT_REVISION
    reference = Path(constants.HF_HUB_CACHE, folder, "refs", branch)
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else None
    return f"hub:{name}@{commit}" if commit else f"hub:{name}@{branch}?unresolved"
