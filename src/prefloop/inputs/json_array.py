"""The items of a JSON array, one after another: a file of gigabytes needs the memory of one item and one chunk."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

CHUNK = 1 << 20
_BLANK = " \t\n\r"


class BrokenJsonError(ValueError):
    """`line` and `column` (from 1) are those of the file."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.line, self.column = line, column


class BadBytesError(ValueError):
    """Bytes that are not UTF-8: `data[bad]` is at `offset` of what was read."""

    def __init__(self, offset: int, data: bytes, bad: int) -> None:
        super().__init__(f"not UTF-8 at byte {offset}")
        self.offset, self.data, self.bad = offset, data, bad


def items(stream: BinaryIO, hook: Callable[[list[tuple[str, Any]]], Any]) -> Iterator[Any]:
    """The items of the array that the stream holds.

    Args:
        stream: behind a byte-order mark; its first character that is no white space is `[`.
        hook: makes an object of its pairs; a ValueError of it is a broken item.

    Raises:
        BrokenJsonError: the text is no JSON array, or something stands behind it.
        BadBytesError: it is no UTF-8.
        RecursionError: an item is nested too deeply.
    """
    window = _Window(stream)
    decoder = json.JSONDecoder(object_pairs_hook=hook)
    window.skip()
    window.position += 1  # [
    if window.skip() == "]":
        window.position += 1
        window.end()
        return
    while True:
        yield window.item(decoder)
        mark = window.skip()
        if mark not in (",", "]"):
            raise window.broken("Expecting ',' delimiter", window.position)
        window.position += 1
        if mark == "]":
            window.end()
            return
        window.skip()


class _Window:
    """The part of the text from somewhere before the current item to the end of what was read."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.text, self.position = "", 0
        self.finished = False
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._bytes = 0
        # Lines and characters of the last line before the window.
        self._lines, self._columns = 0, 0

    def skip(self) -> str:
        """Go to the next character that is no white space, and return it; "" at the end."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in _BLANK:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more(CHUNK):
                return ""

    def item(self, decoder: json.JSONDecoder) -> Any:
        """The value that begins here. What breaks off at the window's end is tried again with twice as much."""
        size = CHUNK
        while True:
            begin = self.position
            try:
                value, end = decoder.raw_decode(self.text, begin)
            except json.JSONDecodeError as error:
                # `more` moves the window: places are kept relative to the item's begin.
                if not self.more(size):
                    raise self.broken(error.msg, self.position + error.pos - begin) from None
            except ValueError as error:
                raise self.broken(str(error), begin) from error
            else:
                # A number may go on behind the window's end.
                whole = end < len(self.text) and self.text[end] in f",]{_BLANK}"
                if whole or not self.more(size):
                    self.position += end - begin
                    return value
            size *= 2

    def end(self) -> None:
        """Nothing but white space may follow."""
        if self.skip():
            raise self.broken("Extra data", self.position)

    def more(self, size: int) -> bool:
        """Drop what lies behind, and read on; False at the end of the stream."""
        if self.finished:
            return False
        data = self.stream.read(size)
        self.finished = not data
        pending = self._decode.getstate()[0]
        try:
            new = self._decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            whole = pending + data
            start = max(0, error.start - 2000)
            near = whole[start : error.start + 2000]
            offset = self._bytes - len(pending) + error.start
            raise BadBytesError(offset, near, error.start - start) from None
        self._bytes += len(data)
        gone = self.text[: self.position]
        lines = gone.count("\n")
        self._lines += lines
        self._columns = len(gone) - gone.rfind("\n") - 1 if lines else self._columns + len(gone)
        self.text, self.position = self.text[self.position :] + new, 0
        return bool(data)

    def broken(self, message: str, at: int) -> BrokenJsonError:
        before = self.text[:at]
        lines = before.count("\n")
        column = at - before.rfind("\n") if lines else self._columns + at + 1
        return BrokenJsonError(message, self._lines + lines + 1, column)
