"""The 16 data sets of Cocktail (Dai et al., Findings of ACL 2024): known checksums, and how one is fetched.

None of them is part of this package. A set is fetched from the hub when somebody asks for `cocktail:NAME`, and its
licence is told each time; a zip that lies here already is recognised by its checksum.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from prefloop.errors import UsageError

PREFIX = "cocktail:"
OWNER = "IR-Cocktail"

# MD5 of the zip, as Cocktail's README gives it.
SETS = {
    "msmarco": "985926f3e906fadf0dc6249f23ed850f",
    "dl19": "d652af47ec0e844af43109c0acf50b74",
    "dl20": "3afc48141dce3405ede2b6b937c65036",
    "trec-covid": "1e1e2264b623d9cb7cb50df8141bd535",
    "nfcorpus": "695327760647984c5014d64b2fee8de0",
    "nq": "a10bfe33efdec54aafcc974ac989c338",
    "hotpotqa": "74467760fff8bf8fbdadd5094bf9dd7b",
    "fiqa": "4e1e688539b0622630fb6e65d39d26fa",
    "webis-touche2020": "d58ec465ccd567d8f75edb419b0faaed",
    "cqadupstack": "d48d963bc72689c765f381f04fc26f8b",
    "dbpedia-entity": "43292f4f1a1927e2e323a4a7fa165fc1",
    "scidocs": "4058c0915594ab34e9b2b67f885c595f",
    "fever": "98b631887d8c38772463e9633c477c69",
    "climate-fever": "5734d6ac34f24f5da496b27e04ff991a",
    "scifact": "b5b8e24ccad98c9ca959061af14bf833",
    "nq-utd": "2e12e66393829cd4be715718f99d2436",
}

NOTICE = (
    "Cocktail's data and code are for academic use only, by their README; NQ-UTD is called MIT besides. The rewrites "
    "are Llama 2's output, under its licence; the human texts keep the terms of the data set that they come from, and "
    "NQ-UTD's were collected from web pages and social networks, whose authors hold the rights."
)


def md5(path: str | Path) -> str:
    """MD5 of a file: it tells a published file again, and protects against nothing."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def recognise(path: str | Path) -> str | None:
    """The name of the Cocktail set that a zip is, unchanged; None of any other file."""
    place = Path(path)
    if not place.is_file() or place.suffix != ".zip":
        return None
    found = md5(place)
    return next((name for name, known in SETS.items() if known == found), None)


def fetch(name: str) -> Path:
    """The zip of a set in the hub's cache, downloaded where it is not there.

    Args:
        name: one of `SETS`, with or without `cocktail:`.

    Raises:
        UsageError: there is no such set, it cannot be had, or its checksum is not the published one.
    """
    name = name.removeprefix(PREFIX)
    if name not in SETS:
        raise UsageError(f"there is no such set; there are {', '.join(SETS)}", where=PREFIX + name, fix="name one")
    from huggingface_hub import errors, snapshot_download

    repo = f"{OWNER}/{name}"
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=["*.zip"]))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"is not in the local cache and not to be had ({type(error).__name__})",
            where=PREFIX + name,
            fix=f"fetch it once where there is a network (and no HF_HUB_OFFLINE): hf download --repo-type dataset "
            f"{repo}; or give the zip: --corpus {name}.zip",
        ) from error
    zips = sorted(folder.rglob("*.zip"))
    sums = {file: md5(file) for file in zips}
    for file, found in sums.items():
        if found == SETS[name]:
            return file
    what = "; ".join(f"{file.name} has MD5 {found}" for file, found in sums.items()) or "there is no zip"
    raise UsageError(
        f"is not the published file: {what}, not {SETS[name]}",
        where=str(folder),
        fix="remove it from the cache and fetch it again; a file that you trust is read with --corpus FILE",
    )
