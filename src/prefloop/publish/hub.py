"""Upload of an exported folder to the Hugging Face hub. Nothing is uploaded unless it is asked for by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from prefloop.errors import PrefloopError, UsageError


def push(folder: Path, name: str, kind: Literal["dataset", "model"], *, private: bool = True, api: Any = None) -> str:
    """Upload a folder as one commit, to a repository that is made if it is not there.

    Args:
        folder: as exported; all of it is uploaded.
        name: ORG/NAME.
        private: of a repository that is made; one that is there keeps what it is.
        api: a `huggingface_hub.HfApi`; one with the login of this machine without it.

    Returns:
        The repository's address.

    Raises:
        UsageError: this is no name of a repository.
        PrefloopError: the hub refuses, or cannot be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UsageError(f"{name!r} is no repository of the hub", where="--push", fix="write ORG/NAME")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi() if api is None else api
    try:
        address = api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=str(folder), commit_message="Export from prefloop")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise PrefloopError(
            f"the hub did not take it: {str(error).strip().splitlines()[0]}",
            where=name,
            fix=f"check the network and log in (hf auth login); the export itself lies in {folder}",
        ) from error
    return str(address)
