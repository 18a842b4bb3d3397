"""`prefloop evaluate`: which words are commands and which a recipe, and the commands on small files."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from prefloop.cli import commands as cli
from prefloop.errors import UsageError
from prefloop.evaluate.alpaca_eval import read_annotations, read_leaderboard
from prefloop.records import prompt_id
from prefloop.store.rundir import RunDir


def said(*arguments):
    """The machine-readable result of a command."""
    done = CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def refused(*arguments):
    with pytest.raises(UsageError) as error:
        CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    return str(error.value)


@pytest.mark.parametrize(
    "words", [["quickstart", "--dry-run"], ["--dry-run", "quickstart"], ["recipe", "quickstart", "--dry-run"]]
)
def test_what_is_no_command_is_a_recipe(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said(*words)["stages"][-1]["name"] == "report"


def test_a_recipe_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no recipe is called 'alpaca'" in refused("alpaca")


def test_help_lists_both():
    out = CliRunner().invoke(cli.app, ["evaluate", "--help"]).output
    assert all(name in out for name in ("recipe", "alpaca-eval", "ratings", "agreement", "arena-hard", "mt-bench"))


def write(file, rows):
    lines = [json.dumps(row) for row in rows]
    file.write_text(f"[{','.join(lines)}]" if file.suffix == ".json" else "\n".join(lines))
    return file


def verdicts(preferences, **more):
    return [
        {
            **{"instruction": f"q{i}", "output_1": "one" + "!" * (i % 3), "output_2": "two", "generator_1": "base"},
            **{"generator_2": "mine", "annotator": "judge", "preference": p, **more},
        }
        for i, p in enumerate(preferences)
    ]


def test_alpaca_eval_of_verdicts_that_are_there(tmp_path):
    file = write(tmp_path / "annotations.json", verdicts([1, 2, "2", 0, 1.4, None, 1.25] * 2))
    found = said("alpaca-eval", "--annotations", file, "--out", tmp_path / "out")
    assert found["win_rate"] == pytest.approx(100 * (0 + 1 + 1 + 0.5 + 0.4 + 0.25) / 6)
    assert (found["n_total"], found["n_excluded"]) == (12, 2)
    assert "length_controlled_minimal" in found
    assert (tmp_path / "out" / "annotator" / "judge" / "configs.yaml").is_file()
    assert read_leaderboard(tmp_path / "out" / "leaderboard.csv")["mine"]["n_total"] == 12


JUDGE = """
def longer(prompt, completion):
    return len(completion)
"""


def test_alpaca_eval_says_what_does_not_count_and_names_bad_rows(tmp_path):
    file = write(tmp_path / "annotations.json", verdicts([1, 2, 7, None, 1.4, 2, 1]))
    done = CliRunner().invoke(
        cli.app, ["evaluate", "alpaca-eval", "--annotations", str(file), "--out", str(tmp_path / "out")]
    )
    assert "2 of 7 rows have no preference from 1 to 2" in done.output
    write(file, [{"instruction": "a", "preference": 2}])
    said = refused("alpaca-eval", "--annotations", file, "--out", tmp_path / "out")
    assert "row 0, output_1: is missing\nfix: every row needs the texts instruction, output_1, output_2" in said


def test_alpaca_eval_with_the_signal_of_a_recipe(tmp_path, monkeypatch):
    (tmp_path / "scorers_of_mine.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    answers = {"base": ["xx", "yyy", "z"], "mine": ["xxx", "y", "z"]}
    files = [
        write(tmp_path / f"{name}.json", [{"instruction": f"q{i}", "output": t} for i, t in enumerate(texts)])
        for name, texts in answers.items()
    ]
    way = ["--reference", files[0], "--outputs", files[1], "--judge", "quickstart", "--out", "out"]
    found = said("alpaca-eval", *way, "evaluate.judge={type: function, callable: 'scorers_of_mine:longer'}")
    assert (found["model"], found["baseline"], found["win_rate"]) == ("mine", "base", 50)
    assert [row["preference"] for row in read_annotations(tmp_path / "out" / "annotations.json")] == [2, 1, 1.5]
    assert "length_controlled_minimal" in found["not_measured"]


def scored(second):
    """Six comparisons of "one" with another answer, which wins four times and ties twice."""
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(6)]
    return [
        {
            "id": prompt_id(prompt),
            "prompt": prompt,
            "completions": [
                {"id": f"{i}{s}", "text": t, "token_ids": None, "finish_reason": "stop", "sample_index": 0}
                for s, t in enumerate(("one", second))
            ],
            "scores": [0.0, float(i % 3 > 0)],
            "signal": "function-x",
            "evidence": [],
        }
        for i, prompt in enumerate(prompts)
    ]


def test_alpaca_eval_of_a_run(tmp_path):
    """Of three rounds the second was chosen and the third is skipped; the first holds rows of an earlier recipe."""
    from prefloop.config import load_recipe

    judge = "evaluate.judge={type: function, callable: 'operator:eq'}"
    recipe = load_recipe("quickstart", [judge, "rounds=3"]).model_dump(mode="json")
    names = {1: "evaluate", 2: "r2-evaluate", 3: "r3-evaluate"}
    stages = [
        {"number": r, "name": n, "verb": "evaluate", "round": r, "fingerprint": f"f{r}"} for r, n in names.items()
    ]
    stages[2] |= {"fingerprint": None, "skipped": True}
    stages.append({"number": 4, "name": "select", "verb": "select", "round": 1, "fingerprint": "s"})
    with RunDir.open(tmp_path / "run") as run:
        run.write_manifest({"name": "quickstart", "recipe": recipe, "stages": stages})
        assert "measured nothing yet" in refused("alpaca-eval", "--run", tmp_path / "run", "--out", tmp_path / "out")
        for number, name in names.items():
            stage = run.stage(number, name)
            stage.begin("old" if number != 2 else "f2")
            stage.write_part(0, scored(f" of round {number}\n"), "scored")
            stage.finish("old" if number != 2 else "f2", rows_in=6)
        select = run.stage(4, "select")
        select.begin("s")
        (select.path / "note").write_text("chosen")
        select.finish_files("s", extra={"round": 2, "branch": "", "reason": "x"})
    found = said("alpaca-eval", "--run", tmp_path / "run", "--out", tmp_path / "out")
    # Scores of a function compare: 0 and 0 tie, 1 beats 0.
    assert found["win_rate"] == pytest.approx(100 * (2 * 0.5 + 4) / 6)
    assert (found["model"], found["baseline"]) == ("quickstart (r2-evaluate)", recipe["model"]["path"])
    assert read_annotations(tmp_path / "out" / "annotations.json")[0]["output_2"] == "of round 2"
    with RunDir.open(tmp_path / "run") as run:
        run.write_manifest({"name": "q", "recipe": recipe, "stages": [stages[0] | {"fingerprint": "now"}]})
    assert "measured nothing yet of round 1" in refused("alpaca-eval", "--run", tmp_path / "run", "--out", tmp_path)


def test_a_judge_that_fails_leaves_no_model_open(tmp_path, monkeypatch):
    """As where the server's limit of cost is reached, or Ctrl-C is pressed."""
    closed = []

    class Failing:
        name, place, identity = "m", "memory", {"path": "m"}

        def plan(self, requests):
            raise ZeroDivisionError

        def spent(self):
            return {}

        def close(self):
            closed.append(self.name)

    monkeypatch.setattr("prefloop.signals.build.open_backend", lambda section, kind, cache: Failing())
    monkeypatch.chdir(tmp_path)
    files = [
        write(tmp_path / f"{name}.json", [{"instruction": "q", "output": name}, {"instruction": "r", "output": name}])
        for name in ("base", "mine")
    ]
    judge = "evaluate.judge={type: judge, mode: pairwise, model: sandbox, template: sandbox}"
    words = ["alpaca-eval", "--reference", files[0], "--outputs", files[1], "--judge", "quickstart", "--out", "o"]
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(cli.app, ["evaluate", *map(str, words), judge], catch_exceptions=False)
    assert closed == ["m"]


def test_figures_go_to_stdout(tmp_path):
    file = write(tmp_path / "annotations.json", verdicts([1, 2, 2, 0]))
    done = CliRunner().invoke(cli.app, ["evaluate", "ratings", str(file), "--resamples", "20"], catch_exceptions=False)
    assert "battles on" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "words",
    ["", "--run r --annotations a", "--outputs a", "--run r a.b=c", "--run r --judge x", "--annotations a a.b=c"],
)
def test_alpaca_eval_wants_one_source_of_verdicts(words, tmp_path):
    assert "whose verdicts" in refused("alpaca-eval", "--out", tmp_path, *words.split())


def test_ratings(tmp_path):
    file = write(tmp_path / "annotations.json", verdicts([1, 2, 2, 0]))
    other = write(tmp_path / "other.json", verdicts([1, 1, 1, None], generator_2="poor"))
    found = said("ratings", file, other, "--anchor", "base", "--resamples", "50")
    assert list(found["models"]) == ["mine", "base", "poor"]
    assert found["models"]["base"]["rating"]["value"] == 1000
    assert (found["nulls"], found["unbounded"]) == (1, ["poor"])
    far = write(tmp_path / "far.json", verdicts([1, 2], generator_1="x", generator_2="y"))
    assert "groups that never met: base, mine; x, y" in refused("ratings", file, far)


def test_arena_hard(tmp_path):
    rows = [
        {
            **{"uid": str(i), "category": "hard", "model": model, "baseline": "base"},
            "games": [{"score": "B>A"}, {"score": "A>>B" if model == "good" and i % 2 else "B>A"}],
        }
        for model in ("good", "fair")
        for i in range(6)
    ]
    file = write(tmp_path / "judgments.jsonl", rows)
    found = said("arena-hard", file, "--resamples", "50")["models"]
    # Game 1 won (1); game 2 won strongly (3) three times, lost (1) three times.
    assert found["good"]["value"] == pytest.approx(100 * (6 + 9) / (6 + 9 + 3))
    assert found["fair"]["value"] == 50
    metadata = {"token_len": 10, "header_count": {}, "list_count": {}, "bold_count": {}}
    answers = [
        write(
            tmp_path / f"{name}.jsonl",
            [{"uid": str(i), "model": name, "messages": [], "metadata": metadata} for i in range(6)],
        )
        for name in ("good", "fair", "base")
    ]
    options = [word for answer in answers for word in ("--answers", answer)]
    controlled = said("arena-hard", file, *options, "--control", "length", "--resamples", "10")
    assert controlled["coefficients"] == {"length": 0}
    assert controlled["models"]["good"]["value"] == pytest.approx(found["good"]["value"], abs=1e-3)
    assert "needs the answers" in refused("arena-hard", file, "--control", "length")
    mixed = write(tmp_path / "mixed.jsonl", [*rows, rows[0] | {"category": "creative"}])
    assert "2 categories: creative, hard" in refused("arena-hard", mixed)


def test_mt_bench(tmp_path):
    rows = [{"question_id": q, "model": "m", "turn": t, "score": 4 + q + t} for q in (1, 2) for t in (1, 2)]
    questions = write(tmp_path / "q.jsonl", [{"question_id": q, "category": f"c{q}", "turns": []} for q in (1, 2)])
    found = said("mt-bench", write(tmp_path / "j.jsonl", rows), "--questions", questions, "--resamples", "20")["m"]
    assert (found["score"]["value"], found["turn_1"], found["turn_2"]) == (7, 6.5, 7.5)
    assert found["categories"] == {"c1": 6.5, "c2": 7.5}


def test_agreement(tmp_path):
    people = write(
        tmp_path / "people.json", [r for v in ([1, 2], [1, 1]) for r in verdicts(v, annotator_index=len(v) * v[1])]
    )
    judge = write(tmp_path / "judge.json", verdicts([1, 2]))
    found = said("agreement", f"mine={judge}", "--people", people, "--resamples", "20")
    assert list(found["judges"]) == ["mine", "longest", "random"]
    assert found["judges"]["mine"]["accuracy"]["value"] == 0.5
    assert "two judges have one name" in refused("agreement", judge, judge, "--people", people)
