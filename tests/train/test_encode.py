"""Rows to ids, in every form that an objective takes, and rejects with reasons."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from training_runs import make_rows, run

from prefloop.engine.tokens import end_of_turn_ids
from prefloop.errors import PrefloopError, UsageError
from prefloop.train.encode import Encoder, Example
from tiny_models import load_tiny, tiny_model_folder


def encode(rows: list[Any], max_length: int = 200, takes: Any = "pairs") -> tuple[list[Example], list[Any]]:
    model, tokenizer = load_tiny("llama")
    encoder = Encoder(tokenizer, end_of_turn_ids(tokenizer, model.generation_config)[0], max_length, takes)
    found = [item for _, item in encoder(rows)]
    return [e for f in found if isinstance(f, list) for e in f], [f for f in found if not isinstance(f, list)]


def test_answers_end_with_the_end_of_turn() -> None:
    (pair,), rejects = encode(make_rows(1, weights=True))
    _, tokenizer = load_tiny("llama")
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert not rejects
    for ids in pair.responses:
        assert ids[-1] == eot
        assert eot not in ids[:-1]
    assert pair.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert pair.weight == make_rows(1, weights=True)[0]["weight"]
    assert (pair.margin, pair.label) == (0.0, 1.0)


def test_rejects_have_reasons_and_the_row() -> None:
    rows = make_rows(5)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["chosen"] = [{"role": "assistant", "content": "kind " * 60}]
    rows[3]["chosen"] = [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "yes"}]
    rows[4]["prompt"] = [{"role": "assistant", "content": "I begin"}]
    pairs, rejects = encode(rows, max_length=60)
    assert [p.id for p in pairs] == [rows[0]["id"]]
    assert [r["id"] for r in rejects] == [r["id"] for r in rows[1:]]
    assert rejects[0]["reason"] == "the chosen and the rejected answer are the same tokens"
    assert rejects[1]["reason"] == "more tokens than max_length 60"
    assert "chosen is to be one assistant turn, not ['user', 'assistant']" in rejects[2]["reason"]
    assert "ends with the user's turn" in rejects[3]["reason"]
    assert json.loads(rejects[0]["row"]) == rows[1]


def test_an_empty_answer_is_trained_on_only_where_it_ended() -> None:
    rows = make_rows(4)
    for row, side, finish in (
        (rows[1], "chosen", "length"),
        (rows[2], "rejected", "length"),
        (rows[3], "rejected", "stop"),
    ):
        row[side] = [{"role": "assistant", "content": ""}]  # type: ignore[literal-required]
        row[f"{side}_finish"] = finish  # type: ignore[literal-required]
    pairs, rejects = encode(rows)
    assert [p.id for p in pairs] == [rows[0]["id"], rows[3]["id"]]
    assert len(pairs[1].responses[1]) == 1, "the end of turn"
    assert [(r["id"], r["reason"]) for r in rejects] == [
        (rows[1]["id"], "the chosen answer is empty and was cut off"),
        (rows[2]["id"], "the rejected answer is empty and was cut off"),
    ]


def length(pair: Example) -> int:
    return len(pair.prompt_ids) + max(map(len, pair.responses))


def test_a_row_is_counted_whole_or_not_at_all() -> None:
    rows = make_rows(20)
    longest = max(length(p) for p in encode(rows)[0])
    pairs, rejects = encode(rows, max_length=longest)
    assert (len(pairs), len(rejects)) == (20, 0)
    pairs, rejects = encode(rows, max_length=longest - 1)
    assert len(pairs) + len(rejects) == 20
    assert {length(p) for p in encode(rows)[0]} - {length(p) for p in pairs} == {longest}


@pytest.mark.parametrize(
    ("column", "value"), [("weight", math.inf), ("weight", 1e31), ("margin", math.nan), ("label", math.nan)]
)
def test_numbers_must_be_finite(column: str, value: float) -> None:
    rows = make_rows(2)
    rows[1][column] = value  # type: ignore[literal-required]
    with pytest.raises(UsageError, match=f"row {rows[1]['id']}: .* is no {column}"):
        encode(rows)


def test_rejects_are_written_and_counted(tmp_path: Path) -> None:
    rows = make_rows(6)
    rows[2]["rejected"] = rows[2]["chosen"]
    validation = make_rows(3, seed=1)
    validation[0]["rejected"] = validation[0]["chosen"]
    result = run(tmp_path / "t", tiny_model_folder("llama"), rows, validation=validation)
    assert result["rejected"] == {"the chosen and the rejected answer are the same tokens": 2}
    assert (result["rows"], result["pairs"], result["validation_pairs"]) == (9, 5, 2)
    written = pq.read_table(tmp_path / "t" / "rejects.parquet").to_pylist()
    assert [r["id"] for r in written] == [rows[2]["id"], validation[0]["id"]]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrefloopError, match=r"nothing is left.*'more tokens than max_length 3': 2") as error:
        run(tmp_path / "t", tiny_model_folder("llama"), make_rows(2), max_length=3)
    assert "max_length" in str(error.value)
    assert pq.read_table(tmp_path / "t" / "rejects.parquet").num_rows == 2


def test_a_weight_is_not_negative() -> None:
    rows = make_rows(2)
    rows[1]["weight"] = -0.5
    with pytest.raises(UsageError, match=f"row {rows[1]['id']}: a weight of -0.5 would train away"):
        encode(rows)


def test_a_label_is_a_probability() -> None:
    rows = make_rows(2)
    rows[0]["label"] = 0.25
    assert encode(rows)[0][0].label == 0.25
    rows[1]["label"] = 1.5
    with pytest.raises(UsageError, match=f"row {rows[1]['id']}: a label of 1.5"):
        encode(rows)


def several(prompts: int, answers: int) -> list[Any]:
    """All pairs of `answers` scored answers to each of `prompts` prompts, together as the loop writes them."""
    rows = []
    for prompt in make_rows(prompts):
        texts = [r["chosen"] for r in make_rows(answers, seed=len(rows) + 1)]
        for i in range(answers):
            for j in range(i + 1, answers):
                rows.append({**prompt, "id": f"{prompt['id']}-{i}{j}", "chosen": texts[i], "rejected": texts[j],
                             "score_chosen": float(-i), "score_rejected": float(-j)})  # fmt: skip
    return rows


def test_answers_are_the_chosen_ones_each_once() -> None:
    rows = several(3, 3)
    examples, rejects = encode(rows, takes="answers")
    pairs, _ = encode(rows)
    assert [e.responses for e in examples] == [(r,) for r in dict.fromkeys(p.responses[0] for p in pairs)]
    assert len(examples) == 6, "of three answers the first two are chosen somewhere"
    assert {r["reason"] for r in rejects} == {"the same answer to the same prompt as in an earlier row"}
    assert {e.id for e in examples} | {r["id"] for r in rejects} == {r["id"] for r in rows}, "nothing is lost"


def test_unpaired_answers_stand_beside_a_stranger() -> None:
    rows = several(3, 2)
    examples, rejects = encode(rows, takes="unpaired")
    pairs, _ = encode(rows)
    assert not rejects
    assert [e.responses[0] for e in examples] == [r for p in pairs for r in p.responses]
    assert [e.label for e in examples] == [1.0, 0.0] * 3
    own = {p.prompt_ids: p.responses for p in pairs}
    for example in examples:
        assert example.responses[1] not in own[example.prompt_ids]
        place = 0 if example.label else 1
        assert any(example.responses[1] == responses[place] for responses in own.values()), "of its own kind"
    assert len({e.id for e in examples}) == 6


def test_an_unpaired_answer_has_half_of_its_pairs_margin() -> None:
    rows = make_rows(2)
    rows[0]["margin"] = 3.0
    assert [e.margin for e in encode(rows, takes="unpaired")[0]] == [1.5, 1.5, 0.0, 0.0]


@pytest.mark.parametrize(("objective", "unread"), [("kto", ["label"]), ("sft", ["margin", "label"]), ("dpo", [])])
def test_columns_that_an_objective_does_not_read_are_told(
    objective: str, unread: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_rows(4)
    rows[1]["margin"], rows[1]["label"] = 2.0, 0.3
    rows[2]["margin"], rows[2]["label"] = 0.0, 1.0  # what a row without them has
    run(tmp_path / "t", tiny_model_folder("llama"), rows, objective=objective)
    told = [m for m in caplog.messages if "does not read" in m]
    assert sorted(told) == sorted(f"1 rows have a {column}, which this objective does not read" for column in unread)


def test_a_stranger_is_cut_to_the_room_there_is() -> None:
    rows = make_rows(2)
    rows[0]["chosen"] = rows[0]["rejected"] = [{"role": "assistant", "content": "kind " * 30}]
    rows[0]["chosen"] = [{"role": "assistant", "content": "kind " * 31}]
    rows[1]["prompt"] = [{"role": "user", "content": "please " * 30}]
    longest = max(length(p) for p in encode(rows)[0])
    for example in encode(rows, max_length=longest, takes="unpaired")[0]:
        assert length(example) <= longest


def test_one_prompt_alone_has_no_stranger() -> None:
    rows = several(1, 3)
    examples, rejects = encode(rows, takes="unpaired")
    assert not examples
    assert len(rejects) == len(rows)
    assert "all rows have the same prompt" in rejects[0]["reason"]


def test_lists_are_in_the_order_of_the_scores() -> None:
    rows = several(3, 4)
    examples, rejects = encode(rows, takes="lists")
    assert not rejects
    assert [len(e.responses) for e in examples] == [4, 4, 4]
    for example in examples:
        best_pairs = [p for p in encode(rows)[0] if p.prompt_ids == example.prompt_ids]
        assert example.responses == (best_pairs[0].responses[0], *(p.responses[1] for p in best_pairs[:3]))


def test_lists_that_cannot_be_made() -> None:
    rows = several(2, 3)
    rows[1]["score_rejected"] = -1.0
    examples, rejects = encode(rows, takes="lists")
    assert len(examples) == 1
    assert [r["id"] for r in rejects] == [r["id"] for r in rows[:3]], "all rows of the prompt"
    assert "one answer of the prompt has two scores" in rejects[0]["reason"]
    rows[4]["weight"] = 2.0
    assert "several weights" in encode(rows, takes="lists")[1][3]["reason"]
    rows[2]["score_rejected"] = -1.0
    assert "the same score" in encode(rows, takes="lists")[1][0]["reason"]
    with pytest.raises(UsageError, match="do not stand together"):
        encode([rows[3], rows[0], rows[4]], takes="lists")
    rows[3]["score_chosen"] = None
    with pytest.raises(UsageError, match=f"row {rows[3]['id']}: no score"):
        encode(rows, takes="lists")
