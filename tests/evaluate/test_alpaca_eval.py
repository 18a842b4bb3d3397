"""AlpacaEval's files: what is read, what is written, and verdicts from a judge's log-probabilities."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefloop.errors import UsageError
from prefloop.evaluate.alpaca_eval import (
    CACHE,
    average_length,
    leaderboard_row,
    outputs,
    paired,
    read_annotations,
    read_annotator,
    read_leaderboard,
    read_outputs,
    write_annotations,
    write_annotator,
    write_leaderboard,
    write_outputs,
)
from prefloop.evaluate.alpaca_folder import write_folder
from prefloop.evaluate.alpaca_judge import annotations_of, candidates_of, switched, weighted_preference
from prefloop.records import prompt_id

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "alpaca_eval"


def published(name):
    file = PUBLISHED / name
    if not file.is_file():
        pytest.skip(f"AlpacaEval's data (CC BY-NC 4.0) is not in this repository; {name} is not there")
    return file


def test_every_published_preference_comes_out_of_its_logprobs():
    rows = json.loads(published("alpaca-7b_judge_logprobs.json").read_text())
    asked = [row for row in rows if not row["identical_outputs"]]
    assert len(asked) == 802
    for row in asked:
        m, M = (-math.inf if row[key] is None else row[key] for key in ("logprob_m", "logprob_M"))
        found = weighted_preference(m, M, is_switched=switched(row["instruction"]))
        # The file has ten decimals.
        assert found == pytest.approx(row["preference"], abs=5.1e-11)
    assert {row["preference"] for row in rows if row["identical_outputs"]} == {1.5}


def test_the_published_leaderboard_row():
    rows = read_annotations(
        published("FuseChat-Llama-3.2-1B-Instruct__weighted_alpaca_eval_gpt4_turbo__annotations.json")
    )
    found = leaderboard_row(rows)
    assert found["win_rate"] == pytest.approx(29.9219322658882, abs=1e-9)
    assert found["standard_error"] == pytest.approx(1.3934584328741797, abs=1e-9)
    assert found["discrete_win_rate"] == pytest.approx(29.068322981366464, abs=1e-9)
    assert (found["avg_length"], found["n_total"]) == (2259, 805)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_switching_mirrors_a_verdict(first, second):
    plain, turned = (weighted_preference(first, second, is_switched=s) for s in (False, True))
    assert plain + turned == pytest.approx(3)
    assert plain == pytest.approx(2 - math.exp(first) / (math.exp(first) + math.exp(second)))


def test_a_name_that_is_not_among_the_top_ones_has_no_probability():
    assert weighted_preference(-1.0, -math.inf, is_switched=False) == 1
    assert weighted_preference(-math.inf, -1.0, is_switched=False) == 2
    with pytest.raises(ValueError, match="neither"):
        weighted_preference(-math.inf, -math.inf, is_switched=False)


def test_the_coin_depends_on_instruction_and_seed_alone():
    # As alpaca_eval 0.6.6 tosses it: random_seeded_choice("is_switched_outputs" + x + "0", [False, True]).
    assert [switched(x) for x in "abcdefgh"] == [True, True, False, False, False, True, False, False]
    heads = sum(switched(f"instruction {i}") for i in range(2000))
    assert 900 < heads < 1100
    assert sum(switched(f"instruction {i}", seed=1) != switched(f"instruction {i}") for i in range(200)) > 50


def row(i, preference, **more):
    return {
        "instruction": f"q{i}",
        "output_1": f"base {i}",
        "generator_1": "base",
        "output_2": f"model's own {i}",
        "generator_2": "mine",
        "dataset": None,
        "annotator": "judge",
        "preference": preference,
        **more,
    }


def test_annotations_are_read_as_they_come(tmp_path):
    file = tmp_path / "annotations.json"
    file.write_text(
        '[{"instruction": "a", "preference": 0}, {"instruction": "b", "preference": "1.75", "time_per_example": 3},'
        ' {"instruction": "c"}, {"instruction": "d", "preference": NaN}, {"instruction": "e", "preference": -1},'
        ' {"instruction": "f", "output_1": "x", "output_2": "y", "preference": 2, "glm_preference": 0.7}]'
    )
    rows = read_annotations(file)
    assert [r["preference"] for r in rows] == [1.5, 1.75, None, None, None, 2]
    assert rows[0]["generator_1"] is None
    assert (rows[1]["time_per_example"], rows[5]["glm_preference"]) == (3, 0.7)
    file.write_text('[{"instruction": "a", "preference": "M"}]')
    with pytest.raises(UsageError, match="row 0, preference: 'M' is no number"):
        read_annotations(file)
    file.write_text('[{"instruction": "a", "preference": [1]}]')
    with pytest.raises(UsageError, match=r"row 0, preference: \[1\] is no number"):
        read_annotations(file)
    file.write_text('[{"instruction": "a", "output_1": "x", "output_2": "y"}, {"instruction": "b", "output_1": 3}]')
    texts = ("instruction", "output_1", "output_2")
    with pytest.raises(
        UsageError, match=r"row 1, output_1: is 3, no text\nfix: every row needs the texts instruction"
    ):
        read_annotations(file, texts)
    file.write_text('[{"instruction": "a", "preference": 2}]')
    with pytest.raises(UsageError, match="row 0, output_1: is missing"):
        read_annotations(file, texts)
    for text in ("{}", "[]", "[1]", "x"):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"annotations\.json"):
            read_annotations(file)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(TEXT, TEXT, st.none() | st.floats(1, 2)), min_size=1))
def test_what_is_written_is_read_back(tmp_path_factory, given_rows):
    file = tmp_path_factory.mktemp("rows") / "annotations.json"
    rows = [row(i, p, output_1=a, output_2=b) for i, (a, b, p) in enumerate(given_rows)]
    write_annotations(file, rows)
    assert read_annotations(file) == rows
    write_outputs(file, outputs(rows, 2))
    assert [r["output"] for r in read_outputs(file)] == [r["output_2"] for r in rows]


def test_outputs_join_by_instruction(tmp_path):
    rows = [row(i, None, annotator=None) for i in range(4)]
    base, mine = outputs(rows, 1), outputs(rows, 2)
    assert base[2] == {"instruction": "q2", "output": "base 2", "generator": "base"}
    assert paired(base, mine[::-1]) == rows
    with pytest.raises(UsageError, match="1 instructions are answered by the reference only, 0 by the model only"):
        paired(base, mine[1:])
    with pytest.raises(UsageError, match="0 instructions are answered by the reference only, 2 by the model only"):
        paired(base[2:], mine)
    with pytest.raises(UsageError, match=r"more than once, the first: 'q0'"):
        write_outputs(tmp_path / "x.json", [*mine, mine[0]])


def test_outputs_name_one_generator(tmp_path):
    file = tmp_path / "model_outputs.json"
    file.write_text('[{"instruction": "a", "output": " b "}]')
    assert read_outputs(file) == [{"instruction": "a", "output": " b ", "generator": "model_outputs"}]
    assert read_outputs(file, "mine")[0]["generator"] == "mine"
    file.write_text('[{"instruction": "a", "output": "b", "generator": "x"}, {"instruction": "b", "output": "b"}]')
    with pytest.raises(UsageError, match="2 generators: model_outputs, x"):
        read_outputs(file)
    file.write_text('[{"instruction": "a", "output": null}]')
    with pytest.raises(UsageError, match="row 0: no text 'output'"):
        read_outputs(file)


def test_a_leaderboard_is_sorted_and_read_back(tmp_path):
    rows = [row(0, 1.9), row(1, 1.0), row(2, None)]
    board = {"worse": leaderboard_row(rows[1:2] * 2), "better": leaderboard_row(rows)}
    board["better"] |= {"length_controlled_winrate": 55.5, "lc_standard_error": 0.5}
    file = tmp_path / "leaderboard.csv"
    write_leaderboard(file, board)
    lines = file.read_text().splitlines()
    assert lines[0].startswith(",win_rate,standard_error,n_wins,n_wins_base,n_draws,n_total,discrete_win_rate,mode")
    assert lines[1].startswith("better,44.99999999999999,")
    found = read_leaderboard(file)
    assert list(found) == ["better", "worse"]
    assert found == board
    # (13 + 13 + 13) / 3 characters of "model's own 0".
    assert found["better"]["avg_length"] == average_length(rows) == 13
    file.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no column win_rate"):
        read_leaderboard(file)


def test_an_annotators_folder(tmp_path):
    folder = tmp_path / "my_judge"
    write_annotator(folder, [row(0, 1.25), row(1, None)], prompt="Which is better?", config={"batch_size": 1})
    configs = yaml.safe_load((folder / "configs.yaml").read_text())
    assert configs == {"my_judge": {"prompt_template": "my_judge/prompt.txt", "fn_completions": None, "batch_size": 1}}
    assert (folder / "prompt.txt").read_text() == "Which is better?"
    cached = json.loads((folder / CACHE).read_text())
    assert cached[0] == {
        **{"instruction": "q0", "output_1": "base 0", "output_2": "model's own 0"},
        **{"annotator": "my_judge", "preference": 1.25},
    }
    assert cached[1]["preference"] == -1
    found, rows = read_annotator(folder)
    assert found == configs
    assert [r["preference"] for r in rows] == [1.25, None]
    with pytest.raises(UsageError, match="cannot be read"):
        read_annotator(tmp_path)


def scored(prompt, scores, texts=("base ", " mine")):
    return {
        "id": "x",
        "prompt": prompt,
        "completions": [{"text": t} for t in texts],
        "scores": scores,
        "signal": "judge-pairwise@1",
        "evidence": [],
    }


def test_verdicts_of_a_run():
    ask = [{"role": "user", "content": "q"}]
    talk = [{"role": "system", "content": "s"}, *ask]
    rows = [scored(ask, [0.25, 0.75]), scored(talk, [None, None]), scored(ask, [0.1, 0.9], ("a", " a"))]
    found = annotations_of(rows, pairwise=True, generators=("base", "mine"))
    assert [r["preference"] for r in found] == [1.75, None, 1.5]
    assert (found[0]["instruction"], found[1]["instruction"]) == ("q", "System: s\n\nUser: q")
    assert (found[0]["output_1"], found[0]["output_2"]) == ("base", "mine")
    assert (found[0]["annotator"], found[0]["generator_2"]) == ("judge-pairwise@1", "mine")
    found = annotations_of(rows[:2], pairwise=False, generators=("base", "mine"), annotator="me")
    assert [(r["preference"], r["annotator"]) for r in found] == [(2, "me"), (None, "me")]


def test_answers_of_files_as_candidates():
    (found,) = candidates_of([row(0, None)])
    assert found["id"] == prompt_id([{"role": "user", "content": "q0"}])
    assert [c["text"] for c in found["completions"]] == ["base 0", "model's own 0"]
    assert found["completions"][0]["id"] != found["completions"][1]["id"]


def test_a_folder_of_our_own_prompts_has_the_minimal_form_under_its_own_name(tmp_path):
    rows = [row(i, 1 + (i % 4) / 3, output_2="x" * (5 + i % 7)) for i in range(30)] + [row(30, None)]
    found = write_folder(tmp_path / "out", rows, prompt="p", resamples=20)
    assert found["win_rate"] == pytest.approx(100 * sum(r["preference"] - 1 for r in rows[:30]) / 30)
    assert (found["n_total"], found["n_excluded"], found["model"]) == (30, 1, "mine")
    assert "length_controlled_winrate" not in found
    assert "none of the 31 prompts" in found["not_measured"]["length_controlled_winrate"]
    figure = found["length_controlled_minimal"]
    assert figure["ci_low"] <= figure["value"] <= figure["ci_high"]
    assert read_leaderboard(tmp_path / "out" / "leaderboard.csv")["mine"]["length_controlled_winrate"] is None
    assert read_annotations(tmp_path / "out" / "annotations.json") == rows
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["evaluate"]["alpaca_eval"]["win_rate"] == found["win_rate"]
    with pytest.raises(UsageError, match="none of the 31 prompts"):
        write_folder(tmp_path / "out", rows, prompt="p", gamed=tmp_path / "df_gamed.csv")
    with pytest.raises(UsageError, match="generator_2 has 2 names"):
        write_folder(tmp_path / "out", [*rows, row(40, 1, generator_2="other")], prompt="p")


def test_a_folder_of_the_published_verdicts(tmp_path):
    rows = read_annotations(
        published("FuseChat-Llama-3.2-1B-Instruct__weighted_alpaca_eval_gpt4_turbo__annotations.json")
    )
    # In any order: they are put in AlpacaEval's.
    found = write_folder(tmp_path / "out", rows[::-1], prompt="p", gamed=published("df_gamed_surrogate.csv"))
    assert found["length_controlled_winrate"] == pytest.approx(25.271, abs=0.01)
    written = read_annotations(tmp_path / "out" / "annotations.json")
    assert [r["instruction"] for r in written] == [r["instruction"] for r in rows]
    assert 100 * sum(r["glm_preference"] for r in written) / 805 == pytest.approx(found["length_controlled_winrate"])
    # The hub is out of reach in tests: said, and nothing else lost.
    found = write_folder(tmp_path / "out", rows, prompt="p")
    assert "hf download" in found["not_measured"]["length_controlled_winrate"]
    assert found["win_rate"] == pytest.approx(29.9219322658882, abs=1e-9)


@pytest.mark.parametrize(
    ("judge", "folder"),
    [("..", "prefloop"), (".", "prefloop"), ("../../x", "_.._x"), (".hidden", "hidden"), ("a/b", "a_b")],
)
def test_a_judges_folder_is_below_the_others_whatever_its_name(tmp_path, judge, folder):
    write_folder(tmp_path / "out", [row(i, 1, annotator=judge) for i in range(4)], prompt="p", resamples=10)
    assert [path.name for path in (tmp_path / "out" / "annotator").iterdir()] == [folder]
    assert (tmp_path / "out" / "annotator" / folder / "prompt.txt").is_file()
