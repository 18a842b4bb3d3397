"""The layout of a batch, by hand and by property."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.engine.layout import Piece, concatenated, next_tokens, shared
from prefloop.engine.logprob import response_lengths, sequence_logprobs

IDS = st.lists(st.integers(0, 50), min_size=1, max_size=6)
ROWS = st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=4)


def test_by_hand():
    layout = concatenated([([5, 6], [[7, 8, 9], [10]]), ([11], [[12]])], pad_id=0)
    assert layout.input_ids_BT.tolist() == [[5, 6, 7, 8, 9], [5, 6, 10, 0, 0], [11, 12, 0, 0, 0]]
    assert layout.attention_mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert layout.position_ids_BT.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert layout.source_N.tolist() == [1, 2, 3, 6, 10]  # the position before each scored token
    assert layout.targets_N.tolist() == [7, 8, 9, 10, 12]
    assert layout.response_N.tolist() == [0, 0, 0, 1, 2]
    assert layout.responses == 3
    assert response_lengths(layout).tolist() == [3, 1, 1]
    assert sequence_logprobs(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), layout).tolist() == [7.0, 8.0, 16.0]


def test_next_tokens_reads_a_prompt_once():
    layout = next_tokens([([5, 6], [[7], [8], [9, 10]]), ([5, 6], [[11]]), ([5], [[6, 7]])], pad_id=0)
    assert layout.input_ids_BT.tolist() == [[5, 6, 0], [5, 6, 9]]  # the last row reads (5, 6) as well
    assert layout.source_N.tolist() == [1, 1, 4, 5, 1, 0, 1]
    assert layout.targets_N.tolist() == [7, 8, 9, 10, 11, 6, 7]
    assert layout.response_N.tolist() == [0, 1, 2, 2, 3, 4, 4]


def test_shared_by_hand():
    rows = [([5, 6], [[7, 8, 9], [10], [11, 12]]), ([13], [[14, 15]])]
    layout = shared(rows, pad_id=0)
    assert layout.input_ids_BT.tolist() == [[5, 6, 7, 8, 11, 13, 14]]  # last tokens are never read
    assert layout.position_ids_BT.tolist() == [[0, 1, 2, 3, 2, 0, 1]]  # restart behind the prompt
    assert layout.pieces == (
        (Piece(2), Piece(2, 0), Piece(1, 0), Piece(2)),
    )  # one response: one piece with its prompt
    assert layout.source_N.tolist() == [1, 2, 3, 1, 1, 4, 5, 6]
    assert layout.targets_N.tolist() == [7, 8, 9, 10, 11, 12, 14, 15]
    assert layout.response_N.tolist() == [0, 0, 0, 1, 2, 2, 3, 3]
    padded = shared(rows, pad_id=0, kind="dense")
    assert padded.input_ids_BT.tolist() == [[5, 6, 7, 8, 11], [13, 14, 0, 0, 0]]
    assert padded.attention_mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert padded.pieces == ((Piece(2), Piece(2, 0), Piece(1, 0)), (Piece(2),))
    assert padded.source_N.tolist() == [1, 2, 3, 1, 1, 4, 5, 6]


@given(ROWS)
@pytest.mark.parametrize("kind", ["segments", "dense"])
def test_pieces_of_a_shared_layout_are_prompts_and_what_follows_them(kind, rows):
    layout, plain = shared(rows, pad_id=0, kind=kind), concatenated(rows, pad_id=0)
    assert layout.targets_N.tolist() == plain.targets_N.tolist()
    assert layout.response_N.tolist() == plain.response_N.tolist()
    assert layout.responses == plain.responses
    if kind == "segments":
        assert layout.attention_mask_BT.all()  # nothing padded
    # What each position has read, by its pieces, and where it says that it stands.
    read = {}
    width = layout.input_ids_BT.shape[1]
    for b, pieces in enumerate(layout.pieces):
        start, texts = 0, []
        for piece in pieces:
            before = [] if piece.prefix is None else texts[piece.prefix]
            own = layout.input_ids_BT[b, start : start + piece.length].tolist()
            for i in range(piece.length):
                read[b * width + start + i] = [*before, *own[: i + 1]]
                assert layout.position_ids_BT[b, start + i] == len(before) + i
            texts.append([*before, *own])
            start += piece.length
        assert layout.attention_mask_BT[b].tolist() == [1] * start + [0] * (width - start)
    expected = [[*p, *c[:i]] for p, completions in rows for c in completions for i in range(len(c))]
    assert [read[source] for source in layout.source_N.tolist()] == expected


@given(ROWS)
@pytest.mark.parametrize("build", [concatenated, next_tokens])
def test_every_scored_token_stands_behind_its_own_prefix(build, rows):
    layout = build(rows, pad_id=0)
    width = layout.input_ids_BT.shape[1]
    expected = [(p, c) for p, completions in rows for c in completions]
    assert layout.responses == len(expected)
    found = {r: [] for r in range(layout.responses)}
    for source, target, response in zip(
        layout.source_N.tolist(), layout.targets_N.tolist(), layout.response_N.tolist()
    ):
        prompt, completion = expected[response]
        read = layout.input_ids_BT[source // width, : source % width + 1].tolist()
        assert layout.attention_mask_BT[source // width, : source % width + 1].all()
        assert read == [*prompt, *completion][: len(prompt) + len(found[response])]
        found[response].append(target)
    assert list(found.values()) == [list(c) for _, c in expected]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([([1], [[2]]), ([], [[1]])], "row 1: empty prompt"),
        ([([1], [])], "row 0: a prompt without completions"),
        ([([1], [[2], []])], "row 0, completion 1: empty completion"),
    ],
)
@pytest.mark.parametrize("build", [concatenated, next_tokens, shared])
def test_refuses_what_cannot_be_scored(build, rows, message):
    with pytest.raises(ValueError, match=message):
        build(rows, pad_id=0)


def test_to_moves_the_tensors():
    layout = concatenated([([5], [[7]])], pad_id=0).to("meta")
    assert layout.source_N.device.type == layout.input_ids_BT.device.type == "meta"
    assert layout.responses == 1
