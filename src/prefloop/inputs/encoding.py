"""Bytes as text: files that are packed, and what is said of those that are not UTF-8."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import BinaryIO, cast

from prefloop.inputs.problems import Problem, raw_json

BOM = b"\xef\xbb\xbf"


def suffix_of(path: str) -> str:
    """The ending that says how a file is written, in small letters; a `.gz` behind it only says that it is packed."""
    return Path(path.lower().removesuffix(".gz")).suffix


def opened(path: str) -> BinaryIO:
    """A file's bytes, unpacked where its name ends in `.gz`."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.lower().endswith(".gz") else open(path, "rb")


def encoding_problem(path: str, row: int | None, offset: int, data: bytes, bad: int) -> Problem:
    """`offset` of the byte in the file, `bad` its place in `data` (the line, or the head of the file)."""
    guess = guess_encoding(data)
    reason = f"not UTF-8 at byte {offset} (0x{data[bad]:02x}); it looks like {guess}"
    fix = f"convert the file: iconv -f {guess} -t UTF-8 {path} > converted{Path(path).suffix}"
    raw = None if row is None else raw_json(data.decode("utf-8", "backslashreplace"))
    return Problem("encoding", path, row, None, reason, fix, raw=raw, level="fatal" if row is None else "error")


def guess_encoding(data: bytes) -> str:
    """The likely encoding of bytes that are not UTF-8, by its name in iconv."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    if data.count(0) > len(data) // 4:
        return "UTF-16LE" if data[1:2] == b"\0" else "UTF-16BE"
    high = [i for i, byte in enumerate(data) if byte > 127]
    # A letter with an accent stands alone among ASCII in Western text; runs of high bytes are another script's.
    alone = sum(1 for i in high if (i == 0 or data[i - 1] < 128) and (i + 1 == len(data) or data[i + 1] < 128))
    western = 2 * alone >= len(high)
    for name, codec in [("WINDOWS-1252", "cp1252")] if western else [("GB18030", "gb18030"), ("SHIFT_JIS", "cp932")]:
        try:
            data.decode(codec)
        except UnicodeDecodeError:
            continue
        return name
    return "ISO-8859-1"


def utf16_problem(path: str) -> Problem | None:
    """UTF-16 has newlines of two bytes, so no line of it means anything: one problem for the whole file."""
    with opened(path) as f:
        head = f.read(4096)
    if not guess_encoding(head).startswith("UTF-16"):
        return None
    return encoding_problem(path, None, 0, head, 0)
