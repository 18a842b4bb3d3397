"""Answers token by token, as the page of `prefloop inspect-cut` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from prefloop.train.spoken import Spoken, texts


class Pieces:
    """Tokens are bytes; as with SentencePiece, the space in front of the first one is not shown."""

    def __init__(self, *tokens: bytes) -> None:
        self.tokens = tokens

    def decode(self, ids: Sequence[int], **settings: Any) -> str:
        return b"".join(self.tokens[i] for i in ids).decode(errors="replace").removeprefix(" ")


def test_tokens_add_up_to_the_answer() -> None:
    euro = "€".encode()
    tokenizer = Pieces(b" It", b" costs", b" 5", euro[:1], euro[1:2], euro[2:], b".", b"</s>")
    found = texts(tokenizer, range(8))
    assert found == ["It", " costs", " 5", "", "", "€", ".", "</s>"]
    answer: Any = Spoken({}, found, [0.0] * 8, [0.0] * 8)  # type: ignore[typeddict-item]
    assert answer.at([0, 1]) == {0}
    assert answer.at([2, 10, 11, 12]) == {1, 5, 6, 7}
    assert answer.at([500]) == {7}
    for place in (-1, "a", 1.5):
        with pytest.raises(ValueError, match="no place"):
            answer.at([place])


def test_what_is_no_text_at_all_is_shown_as_such() -> None:
    assert texts(Pieces(b"a", b"\xe2"), range(2)) == ["a", "\N{REPLACEMENT CHARACTER}"]
