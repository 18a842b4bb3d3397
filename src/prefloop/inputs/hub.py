"""Data sets of the hub, by `hub:` and a name, and what is said of those that cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from prefloop.errors import UsageError


def name_of(path: str) -> tuple[str, str | None]:
    """(data set or folder, configuration or file in it) of a `hub:` path."""
    name = path.removeprefix("hub:")
    if Path(name).exists() or name.count("/") != 2:
        return name, None
    name, _, config = name.rpartition("/")
    return name, config


def fetch_file(path: str, name: str, file: str) -> str:
    """One file of a hub data set, fetched: a set that comes with a script of its own cannot be read otherwise."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(hf_hub_download(name, file, repo_type="dataset"))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        gated = isinstance(error, GatedRepoError)
        raise UsageError(
            f"cannot fetch {file}: {str(error).strip().splitlines()[0]}",
            where=path,
            fix="accept the data set's terms on its page, then log in: hf auth login"
            if gated
            else "check the name and the connection, or download the file and name it here",
        ) from error


def load(path: str, split: str) -> Any:
    """The rows of `hub:ORG/NAME`, `hub:ORG/NAME/CONFIG`, or a data set folder. The library keeps them on disk.

    Raises:
        UsageError: there is no such data set, configuration or split, or it cannot be fetched.
    """
    import datasets

    name, config = name_of(path)
    try:
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        _refuse(path, split, error)


def _refuse(path: str, split: str, error: Exception) -> NoReturn:
    """Name, split, configuration or connection: the library's own words say which."""
    fixes = {
        "split": "set `split` to one that the data set has",
        "config": "name the configuration: hub:ORG/NAME/CONFIG",
        "reach": "check the connection, or fetch the data set first: hf download --repo-type dataset ORG/NAME",
        "gated": "accept the data set's terms on its page, then log in: hf auth login",
    }
    text = str(error)
    kind = next((kind for kind in ("gated", "split", "config") if kind in text.lower()), "reach")
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    raise UsageError(f"cannot load split {split!r}: {first}", where=path, fix=fixes[kind]) from error
