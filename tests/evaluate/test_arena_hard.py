"""Arena-Hard: labels, files, scores, and control of style."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prefloop.errors import UsageError
from prefloop.evaluate.arena_hard import (
    LABELS,
    answer_row,
    battles,
    read_answers,
    read_judgments,
    read_questions,
    scores,
    style,
    style_controlled,
    verdict,
    write_answers,
    write_judgments,
)
from prefloop.evaluate.ratings import Battle, bradley_terry, expected


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("My final verdict is: [[A>>B]]", "A>>B"),
        ("[[A>B]] no, rather [[b>a]]", "B>A"),
        ("it is [A=B].", "A=B"),
        ("[[A=B]] and [B>A]", "A=B"),
        ("neither", None),
        ("[[<<]]", None),
    ],
)
def test_the_last_label_counts(text, label):
    assert verdict(text) == label


def test_labels_said_the_other_way_round_mean_the_same():
    for label, (score, weight) in LABELS.items():
        assert LABELS[label.translate(str.maketrans("AB", "BA"))] == (1 - score, weight)
        mirrored = label.translate(str.maketrans("<>", "><"))[::-1]
        assert LABELS[mirrored] == (score, weight)


def judged(uid, first, second, model="m", baseline="base"):
    games = [None if label == "lost" else {"score": label} for label in (first, second)]
    return {"uid": uid, "category": "hard", "judge": "j", "model": model, "baseline": baseline, "games": games}


def test_both_games_are_the_models():
    rows = [
        judged("1", "B>>A", "A>B"),
        judged("2", "A=B", "B>>A"),
        judged("3", None, "A>B"),
        judged("4", "lost", "A=B"),
    ]
    found, nulls = battles(rows)
    assert nulls == 2
    assert found == [
        Battle("1", "m", "base", 1, 3),
        Battle("1", "m", "base", 1, 1),
        Battle("2", "m", "base", 0.5, 1),
        Battle("2", "m", "base", 0, 3),
    ]


def test_a_score_is_the_weighted_mean_and_what_bradley_terry_comes_to():
    rng = np.random.default_rng(0)
    labels = ["A>>B", "A>B", "A=B", "B>A", "B>>A"]
    rows = [judged(str(i), *rng.choice(labels, 2), model=m) for m in ("m", "n") for i in range(100)]
    found = scores(rows, resamples=200)
    fought, _ = battles([r for r in rows if r["model"] == "m"])
    mean = sum(b.weight * b.score for b in fought) / sum(b.weight for b in fought)
    assert found["m"]["value"] == pytest.approx(100 * mean)
    assert (found["m"]["n"], found["m"]["nulls"]) == (100, 0)
    assert found["m"]["ci_low"] < found["m"]["value"] < found["m"]["ci_high"]
    ratings = bradley_terry(battles(rows)[0], anchor="base", resamples=1).models
    for model in ("m", "n"):
        assert 100 * expected(ratings[model]["rating"]["value"], 1000) == pytest.approx(
            found[model]["value"], abs=1e-3
        )
    with pytest.raises(UsageError, match="none of 1 rows has both verdicts"):
        scores([judged("1", None, "A>B")])


def test_style_is_counted_outside_of_code():
    text = "# Head\n## Sub\n1. one\n2. two\n- item\n  * deeper\n**bold** and __bold__\n```\n# no\n- no\n```\n#no head"
    assert style(text, 17) == {
        "token_len": 17,
        "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 2, "unordered": 2},
        "bold_count": {"**": 1, "__": 1},
    }


def test_files_are_written_and_read(tmp_path):
    question = {"uid": "1", "category": "hard", "subcategory": "x", "prompt": "why?"}
    row = answer_row(question, "m", "# so\n", tokens=3, ans_id="a", tstamp=1.5)
    write_answers(tmp_path / "a.jsonl", [row])
    assert read_answers(tmp_path / "a.jsonl") == [row]
    assert row["messages"][-1] == {"role": "assistant", "content": {"answer": "# so\n"}}
    assert row["metadata"]["header_count"]["h1"] == 1
    rows = [judged("1", "A>B", None), judged("2", "lost", "A<<B")]
    write_judgments(tmp_path / "j.jsonl", rows)
    assert read_judgments(tmp_path / "j.jsonl") == rows
    write_judgments(tmp_path / "j.jsonl", [judged("1", "A>B", "B>C")])
    with pytest.raises(UsageError, match=r"j\.jsonl, 1: 'B>C' is no label"):
        read_judgments(tmp_path / "j.jsonl")
    write_judgments(tmp_path / "j.jsonl", [judged("1", "A>B", "A>B") | {"games": []}])
    with pytest.raises(UsageError, match="has not two games"):
        read_judgments(tmp_path / "j.jsonl")
    (tmp_path / "q.jsonl").write_text('{"uid": 1, "category": "x"}')
    with pytest.raises(UsageError, match="has no 'prompt'"):
        read_questions(tmp_path / "q.jsonl")


def styled(seed, length_pays, n=600):
    """Two models as good as the baseline; one writes answers three times as long, the other a third."""
    rng = np.random.default_rng(seed)
    rows, answers = [], {"base": {}, "long": {}, "short": {}}
    for i in range(n):
        for model in answers:
            tokens = int(300 * {"base": 1, "long": 3, "short": 1 / 3}[model] * math.exp(rng.normal(0, 0.6)))
            answers[model][str(i)] = style("", tokens)
        for model in ("long", "short"):
            a, b = (answers[m][str(i)]["token_len"] for m in (model, "base"))
            p = 1 / (1 + math.exp(-length_pays * (a - b) / (a + b)))
            games = [rng.random() < p for _ in range(2)]
            rows.append(judged(str(i), "B>A" if games[0] else "A>B", "A>B" if games[1] else "B>A", model))
    return rows, answers


def test_control_of_style_takes_out_what_length_pays():
    rows, answers = styled(0, length_pays=2.0)
    raw = scores(rows, resamples=10)
    assert raw["long"]["value"] > 65
    assert raw["short"]["value"] < 35
    found = style_controlled(rows, answers, control=("length",), resamples=20)
    assert found["coefficients"]["length"] > 0.3
    for model in ("long", "short"):
        assert found["models"][model]["value"] == pytest.approx(50, abs=7)
        assert found["models"][model]["ci_low"] < found["models"][model]["ci_high"]
    # Markdown is nowhere: its columns are constant, and control of it alone changes nothing.
    found = style_controlled(rows, answers, control=("markdown",), resamples=5)
    assert list(found["coefficients"].values()) == [0, 0, 0]
    assert found["models"]["long"]["value"] == pytest.approx(raw["long"]["value"], abs=1e-3)


def test_what_style_control_needs():
    rows, answers = styled(0, 1.0, n=5)
    one = [r for r in rows if r["model"] == "long"]
    for bad, control in ((one, ("length",)), (rows, ()), (rows, ("colour",))):
        with pytest.raises(UsageError, match="style control needs"):
            style_controlled(bad, answers, control=control)
    del answers["base"]["3"]
    with pytest.raises(UsageError, match="3: base has no metadata"):
        style_controlled(rows, answers)
