"""Votes, ratings and rankings of people: what becomes of them, what is refused, and that nothing is lost."""

import csv
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config import PreferencesSection
from prefloop.errors import UsageError
from prefloop.inputs.preferences import PreferenceReader, read_votes
from prefloop.inputs.validate import validate_file
from prefloop.records import prompt_id

Q = [{"role": "user", "content": "Which?"}]


def vote(a, b, verdict, voter=None, prompt="Which?", **more):
    return {"prompt": prompt, "answer_a": a, "answer_b": b, "vote": verdict, "voter": voter, **more}


def rating(answer, number, voter=None, prompt="Which?"):
    return {"prompt": prompt, "answer": answer, "rating": number, "voter": voter}


def record(*responses, fields=None, **more):
    return {
        "id": "r1",
        "fields": fields or {"prompt": "Which?", "reply-1": "good", "reply-2": "bad", "reply-3": "worse"},
        "responses": {"ranking": [{"value": value, "user_id": user} for user, value in responses]},
        "suggestions": {},
        "metadata": {},
        "vectors": {},
        "status": "completed",
        "_server_id": "s1",
        **more,
    }


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def read(path, rows, **settings):
    reader = PreferenceReader(
        PreferencesSection(path=str(write(path, rows)), on_bad_row=settings.pop("on_bad_row", "reject"), **settings)
    )
    kept, rejects = [], []
    for good, bad in reader.parts(1000):
        kept += good
        rejects += bad
    assert reader.records == len(kept) + len(rejects)
    return kept, rejects, reader


def answers(row):
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


# ------------------------------------------------------------------------------------------------------------ votes


@pytest.mark.parametrize("name", ["v.csv", "v.jsonl", "v.json"])
def test_the_label_is_the_share_of_voters_and_a_tie_half_a_vote(tmp_path, name):
    rows = [vote("good", "bad", "a", "ann"), vote("bad", "good", "b", "ben"), vote("good", "bad", "TIE", "cat")]
    (row,), rejects, reader = read(tmp_path / name, rows)
    assert rejects == []
    assert answers(row) == ("good", "bad")
    assert row["label"] == pytest.approx(2.5 / 3)
    assert (row["score_chosen"], row["score_rejected"]) == pytest.approx((2.5 / 3, 0.5 / 3))
    assert (row["source"], row["strategy"], row["weight"], row["margin"]) == ("human", "votes", None, None)
    assert row["prompt_id"] == prompt_id(Q)
    assert reader.layout.name == "votes"


def test_a_unanimous_pair_is_certain(tmp_path):
    (row,), _, _ = read(tmp_path / "v.jsonl", [vote("bad", "good", "b"), vote("bad", "good", "b")])
    assert answers(row) == ("good", "bad")
    assert row["label"] is None
    assert row["score_chosen"] == 1


def test_an_even_split_is_left_out_and_stops_nothing(tmp_path):
    rows = [
        vote("a", "b", "a"),
        vote("a", "b", "b"),
        vote("x", "y", "tie", prompt="Other?"),
        vote("1", "2", "a", None, "N?"),
    ]
    kept, rejects, _ = read(tmp_path / "v.jsonl", rows, on_bad_row="stop")
    assert [answers(r) for r in kept] == [("1", "2")]
    assert [r["reason"] for r in rejects] == ["split votes", "split votes"]


def test_seats_and_white_space_do_not_matter_and_the_first_writing_stays(tmp_path):
    rows = [vote(" good", "bad", "a", "1"), vote("bad ", "good", "b", "2")]
    (row,), _, _ = read(tmp_path / "v.jsonl", rows)
    assert answers(row) == (" good", "bad")
    assert row["label"] is None


def test_conversations_and_ids_are_kept(tmp_path):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    rows = [vote("a", "b", "a", v, prompt, id="pair-7") for v in "xyz"]
    (row,), _, _ = read(tmp_path / "v.jsonl", rows)
    assert row["prompt"] == prompt
    assert row["id"] == "pair-7"


def test_bad_votes_stop_or_are_rejected_one_by_one(tmp_path):
    rows = [
        vote("a", "b", "a"),
        vote("a", "b", "c"),
        vote("a", "b", ""),
        vote("a", "a ", "a"),
        vote(None, "", "a", ["x"]),
        vote("a", "b", "a", "", prompt=""),
    ]
    kept, rejects, _ = read(tmp_path / "v.jsonl", rows)
    assert len(kept) == 1
    assert Counter(r["reason"] for r in rejects) == Counter(
        ["wrong value", "missing field", "same answers", "wrong type", "empty field"]
    )
    assert "answer_b is empty" in rejects[3]["row"]
    with pytest.raises(UsageError, match="5 problems"):
        read(tmp_path / "again.jsonl", rows, on_bad_row="stop")


def test_a_second_vote_of_the_same_voter_counts_once(tmp_path):
    rows = [vote("a", "b", "a", "ann"), vote("b", "a", "a", "ann"), vote("a", "b", "b"), vote("a", "b", "a")]
    (row,), rejects, _ = read(tmp_path / "v.jsonl", rows)
    assert row["label"] == pytest.approx(2 / 3)
    assert [r["reason"] for r in rejects] == ["duplicate row"]


def test_unknown_columns_are_errors_and_comments_are_left(tmp_path):
    path = write(tmp_path / "v.csv", [vote("a", "b", "a", "x") | {"comment": "hm", "voterr": "y"}])
    report = validate_file(path)
    assert report.left_columns == {"comment": 1}
    assert [p.field for p in report.log.kept] == ["voterr"]
    assert "did you mean 'voter'" in report.log.kept[0].fix


# ---------------------------------------------------------------------------------------------------------- ratings


def test_ratings_of_one_voter_are_compared_with_each_other_alone(tmp_path):
    # ann: x > y > z. ben: y > x, on another part of the scale. Nobody's ratings are compared with another's.
    rows = [rating("x", 5, "ann"), rating("y", "4", "ann"), rating("z", 1.5, "ann"), rating("y", 2, "ben")]
    rows += [rating("x", 1, "ben")]
    kept, rejects, _ = read(tmp_path / "r.jsonl", rows)
    assert {answers(r): r["label"] for r in kept} == {("x", "z"): None, ("y", "z"): None}
    assert [r["reason"] for r in rejects] == ["split votes"]  # x and y: one voter each way


def test_ratings_without_names_are_one_voters(tmp_path):
    rows = [rating("x", 5), rating("y", 3), rating("x", 1), rating("only", 2, prompt="Alone?")]
    kept, rejects, _ = read(tmp_path / "r.csv", rows, on_bad_row="stop")
    assert [answers(r) for r in kept] == [("x", "y")]
    assert [r["reason"] for r in rejects] == ["duplicate row", "not compared"]


@pytest.mark.parametrize("number", [None, "", "five", "nan", "inf", True])
def test_a_rating_is_a_finite_number(tmp_path, number):
    rows = [rating("x", 1), rating("y", 2), rating("z", number)]
    kept, rejects, _ = read(tmp_path / "r.jsonl", rows)
    assert len(kept) == 1
    assert len(rejects) == 1


# ---------------------------------------------------------------------------------------------------------- Argilla


def test_rankings_as_lists_and_with_ranks(tmp_path):
    ranked = [{"value": "reply-2", "rank": 1}, {"value": "reply-1", "rank": 1}, {"value": "reply-3", "rank": 2}]
    rows = [record(("u1", ["reply-1", "reply-2", "reply-3"]), ("u2", ranked))]
    kept, rejects, reader = read(tmp_path / "a.json", rows)
    assert rejects == []
    assert {answers(r): r["label"] for r in kept} == {
        ("good", "bad"): 0.75,
        ("good", "worse"): None,
        ("bad", "worse"): None,
    }
    assert reader.layout.name == "argilla"
    # good: 1.5 of 2 and 2 of 2; bad: 0.5 of 2 and 2 of 2; worse: nothing of 4.
    assert {r["score_rejected"] for r in kept} == {0.625, 0.0}
    assert {r["score_chosen"] for r in kept} == {0.875, 0.625}


def test_options_may_be_numbers_of_fields_and_prompts_conversations(tmp_path):
    fields = {"chat": [{"role": "user", "content": "Which?"}], "response_1": "good", "response_2": "bad"}
    (row,), _, _ = read(tmp_path / "a.jsonl", [record(("u", ["2", "1"]), fields=fields)])
    assert answers(row) == ("bad", "good")
    assert row["prompt"] == Q


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (record(("u", ["reply-1", "reply-9"])), "names no field"),
        (record(("u", ["reply-1"])), "ranks 1 different options"),
        (record(("u", ["reply-1", "reply-1"])), "ranks 1 different options"),
        (record(("u", [{"value": 3}, {"value": "reply-1"}])), "holds"),
        (record(("u", ["reply-1", "reply-2"]), ("u", ["reply-2", "reply-1"])), "two responses of one user_id"),
        (record(), "0 ranking questions"),
        (record(responses=None), "responses"),
        (
            record(("u", ["a", "b"]), fields={"a": "1", "b": "2", "left": "p", "right": "q"}),
            "which field is the prompt",
        ),
        (record(("u", ["a", "b"]), fields={"prompt": "p", "a": "1", "b": "1 "}), "two of the answers are the same"),
    ],
)
def test_records_that_say_nothing_are_refused_with_a_reason(tmp_path, broken, words):
    good = record(("u", ["reply-1", "reply-2"]))
    kept, rejects, _ = read(tmp_path / "a.jsonl", [good, broken | {"id": "r2"}])
    assert len(kept) == 1
    (reject,) = rejects
    assert words in reject["row"]


# -------------------------------------------------------------------------------------------------------- all of them


def test_validate_prints_the_agreement(tmp_path):
    rows = [
        vote("a", "b", v, who, prompt=p)
        for p, votes in {"1": "aa", "2": "bb", "3": "ab", "4": "aa"}.items()
        for v, who in zip(votes, ("ann", "ben"))
    ]
    report = validate_file(write(tmp_path / "v.csv", rows))
    assert report.ok
    found = report.as_dict()["votes"]
    assert (found["ballots"], found["voters"], found["pairs"], found["shared_pairs"]) == (8, 2, 4, 4)
    assert found["agreement"] == 0.75
    assert found["cohen_kappa"] == 0.5  # observed 0.75, chance 0.75 * 0.5 + 0.25 * 0.5
    assert found["krippendorff_alpha"] == pytest.approx(1 - 7 * 2 / (64 - 25 - 9))
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table())
    text = console.export_text()
    assert "8 ballots of 2 voters" in text
    assert "Cohen's kappa 0.50" in text
    assert "1 prompts on which the votes decide nothing" in text


def test_read_votes_refuses_other_files(tmp_path):
    with pytest.raises(UsageError, match="no votes of people"):
        read_votes(str(write(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])))


VOTES = st.lists(
    st.tuples(
        st.sampled_from("pq"), st.permutations("xyz"), st.sampled_from(["a", "b", "tie"]), st.sampled_from("123")
    ),
    min_size=1,
    max_size=40,
)


@given(VOTES, st.randoms())
def test_counts_depend_on_neither_order_nor_seats(tmp_path_factory, drawn, random):
    folder = tmp_path_factory.mktemp("votes")
    rows, seen = [], set()
    for prompt, (a, b, _), verdict, voter in drawn:
        if (prompt, frozenset((a, b)), voter) not in seen:
            seen.add((prompt, frozenset((a, b)), voter))
            rows.append(vote(a, b, verdict, voter, prompt))
    turned = [
        vote(r["answer_b"], r["answer_a"], {"a": "b", "b": "a"}.get(r["vote"], "tie"), r["voter"], r["prompt"])
        for r in rows
    ]
    random.shuffle(turned)

    def tally(name, given_rows):
        path = str(write(folder / name, given_rows))
        polls = read_votes(path).polls
        return {k: {(a, b): p.share(a, b) for a in "xyz" for b in "xyz" if a != b} for k, p in polls.items()}

    first, second = tally("one.jsonl", rows), tally("two.jsonl", turned)
    assert first == second
    for poll in first.values():
        for (a, b), (share, n) in poll.items():
            assert n == poll[b, a][1]
            assert n == 0 or share + poll[b, a][0] == pytest.approx(1)
    if any(share != 0.5 for poll in first.values() for share, n in poll.values() if n):
        kept, _, _ = read(folder / "three.jsonl", turned)
        assert all(r["label"] is None or 0.5 < r["label"] < 1 for r in kept)
