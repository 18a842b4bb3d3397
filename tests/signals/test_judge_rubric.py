"""Rubrics, verdicts by criterion, and reference answers."""

from __future__ import annotations

import json

import pytest
from judge_script import Script, judged, row

from prefloop.config import JudgeSignalSection
from prefloop.errors import UsageError
from prefloop.records import prompt_id
from prefloop.signals import references, rubric
from prefloop.signals.build import build, check_prompts, identity, preflight, remark
from prefloop.signals.driver import rate
from prefloop.signals.judge import JudgeSignal, card

OWN = """
name: terse
criteria:
  - {name: short, description: it is short, weight: 3}
  - {name: right, description: it is right}
scale: {0: bad, 1: middling, 2: good}
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "terse.yaml"
    file.write_text(OWN)
    return str(file)


def judge(section, say, texts):
    signal, _ = build(JudgeSignalSection.model_validate({"type": "judge", **section}))
    return judged(signal, texts, say)


@pytest.mark.parametrize("name", [None, "default", "helpfulness", "harmlessness"])
@pytest.mark.parametrize("mode", ["pointwise", "pairwise", "listwise", "ranking"])
def test_shipped_rubrics_go_into_the_shipped_templates(name, mode):
    section = JudgeSignalSection(type="judge", mode=mode, rubric=name)
    preflight(section)
    signal = build(section)[0]
    prompt = signal.template.render(
        {"instruction": "Q", **signal.manner.by_seat(["a", "b"][: len(signal.manner.seats)])},
        rubric=rubric.load(name).values(),
        reply="reply so",
    )
    assert all(criterion.description in prompt for criterion in rubric.load(name).criteria)
    assert prompt.endswith("reply so")
    assert "weight" not in prompt
    assert "right answer" not in prompt


def test_a_rubric_of_ones_own_makes_prompt_and_labels(own):
    scores, _, backend, _ = judge({"rubric": own}, lambda r, p: [0.25, 0.25, 0.5], ["x"])
    assert scores == [1.25]
    assert backend.requests[0].labels == ("0", "1", "2")
    assert "it is short (weight 3); it is right (weight 1)." in backend.prompts[0]
    assert "0 = bad\n1 = middling\n2 = good\n" in backend.prompts[0]


def test_a_verdict_by_each_criterion(own):
    def say(request, prompt):
        assert "weight" not in prompt
        return [0, 0, 1] if "it is short" in prompt else [0, 1, 0]

    scores, counts, _, rated = judge({"rubric": own, "by_criterion": True}, say, ["x"])
    assert scores == [(3 * 2 + 1 * 1) / 4]
    assert rated.rows[0]["parts"] == [{"name": "short", "scores": [2.0]}, {"name": "right", "scores": [1.0]}]
    assert counts["verdicts"] == 2


def test_a_criterion_without_a_verdict_is_left_out_of_the_mean(own):
    def say(request, prompt):
        return [0.0] * 3 if "it is short" in prompt else [0, 1, 0]

    scores, _, _, rated = judge({"rubric": own, "by_criterion": True}, say, ["x", "y"])
    assert scores == [1.0, 1.0]
    assert rated.rows[0]["parts"][0]["scores"] == [None, None]
    assert judge({"rubric": own, "by_criterion": True}, lambda r, p: [0.0] * 3, ["x"])[0] == [None]


def test_a_missing_verdict_makes_no_answer_better(own):
    """x is short and wrong, y long and right; the bad verdict on y is missing, and the mean of y would be 2."""

    def say(request, prompt):
        if "it is short" not in prompt:
            return [0, 0, 1] if "\nx\n" not in prompt else [0, 1, 0]
        return [0.0] * 3 if "\ny\n" in prompt else [0, 0, 1]

    section = {"rubric": own, "by_criterion": True}
    scores, counts, _, rated = judge(section, say, ["x", "y"])
    assert [part["scores"] for part in rated.rows[0]["parts"]] == [[2.0, None], [1.0, 2.0]]
    assert scores == [1.0, 2.0]  # by the criterion that both have a verdict by
    assert (counts["criteria"], counts["criteria_left_out"]) == (2, 1)
    assert "1 of 2 criteria left out" in card(counts)

    def crossed(request, prompt):
        return [0.0] * 3 if ("it is short" in prompt) == ("\ny\n" in prompt) else [0, 0, 1]

    scores, counts, _, _ = judge(section, crossed, ["x", "y"])
    assert (scores, counts["criteria_left_out"]) == ([None, None], 2)


def test_pairs_by_criterion(own):
    """x is the shorter, y the right one; each for certain and in both orders."""

    def say(request, prompt):
        first = prompt.index("\nx\n") < prompt.index("\ny\n")
        return [1.0, 0.0] if first == ("it is short" in prompt) else [0.0, 1.0]

    scores, _, _, rated = judge({"mode": "pairwise", "rubric": own, "by_criterion": True}, say, ["x", "y"])
    assert scores == [0.75, 0.25]
    assert rated.rows[0]["parts"] == [{"name": "short", "scores": [1, 0]}, {"name": "right", "scores": [0, 1]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("scale: {0: bad, 1: middling, 2: good}", "scale: {1: bad, 3: good}"), "follow on one another"),
        (("scale: {0: bad, 1: middling, 2: good}", "scale: {9: bad, 10: good}"), "of one digit"),
        (("scale: {0: bad, 1: middling, 2: good}", ""), "scale"),
        (("name: right", "name: short"), "two criteria are called short"),
        (("weight: 3", "weight: 0"), "greater than 0"),
        (("weight: 3", "wieght: 3"), "wieght"),
        (("criteria:", "criteria: ["), "not readable as YAML"),
    ],
)
def test_faulty_rubrics_are_refused(tmp_path, change, message):
    file = tmp_path / "mine.yaml"
    file.write_text(OWN.replace(*change))
    with pytest.raises(UsageError, match=message) as caught:
        rubric.load(str(file))
    assert "mine.yaml" in str(caught.value)


def test_unknown_rubrics():
    with pytest.raises(UsageError, match="default, harmlessness, helpfulness"):
        rubric.load("niceness")
    with pytest.raises(UsageError, match="cannot read"):
        rubric.load("./absent.yaml")


def test_a_template_that_does_not_show_what_is_set_is_refused(own, tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "Q", "reference": "R"}\n')
    for section, what in [
        ({"rubric": own}, "rubric"),
        ({"by_criterion": True}, "rubric"),
        ({"references": str(answers)}, "reference"),
    ]:
        with pytest.raises(UsageError, match=f"never see the {what}"):
            preflight(JudgeSignalSection(type="judge", template="sandbox", **section))


def test_a_shipped_set_without_a_mode_is_refused():
    with pytest.raises(UsageError, match="sandbox has no template for a listwise judge"):
        preflight(JudgeSignalSection(type="judge", mode="listwise", template="sandbox"))


def test_the_identity_follows_rubric_references_and_settings(own, tmp_path):
    base = JudgeSignalSection(type="judge")
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "Q", "reference": "R"}\n')
    changes = [
        {"rubric": own},
        {"rubric": "helpfulness"},
        {"by_criterion": True},
        {"references": str(answers)},
        {"verdict": "text"},
        {"samples": 2, "temperature": 0.5},
        {"temperature": 0.5},
        {"max_new_tokens": 9},
        {"mode": "listwise"},
        {"mode": "listwise", "orders": 4},
        {"mode": "ranking"},
        {"panel": ("a", "b")},
    ]
    found = [identity(JudgeSignalSection.model_validate({"type": "judge", **change})) for change in [{}, *changes]]
    texts = {json.dumps(one, sort_keys=True) for one in found}
    assert len(texts) == len(found)
    assert identity(base.model_copy(update={"force": True})) == identity(base)
    with open(own, "a") as file:
        file.write("# a remark\n")
    assert identity(JudgeSignalSection(type="judge", rubric=own)) == found[1]


def test_references_are_found_by_text_by_messages_and_by_id(tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    file = tmp_path / "answers.jsonl"
    file.write_text(
        "\n".join(
            json.dumps(line)
            for line in [
                {"prompt": "by text", "reference": "one"},
                {"prompt": talk, "reference": "two"},
                {"id": "p3", "reference": "three"},
            ]
        )
    )
    found = references.load(str(file))
    system = {"role": "system", "content": "Be kind."}
    user = {"role": "user", "content": "by text"}
    rows = [
        {**row("x"), "id": "p1", "prompt": [user]},
        {**row("x"), "id": "p1", "prompt": [system, user]},
        {**row("x"), "id": prompt_id(talk), "prompt": talk},
        {**row("x"), "id": "p3"},
        {**row("x"), "id": "p4", "prompt": [*talk[:2], user]},  # one turn of several is another prompt
    ]
    assert [found.of(r) for r in rows] == ["one", "one", "two", "three", None]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "a", "reference": ""}'], "line 1: there is no reference"),
        (['{"prompt": "a", "reference": "x"}', '{"prompt": "a ", "reference": "y"}'], "line 2: another reference"),
        (['{"prompt": "a", "answer": "x"}'], "unknown column 'answer'"),
        (['{"reference": "x"}'], "prompt"),
        (["{broken"], "line 1"),
    ],
)
def test_faulty_references_are_refused(tmp_path, lines, message):
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=message):
        references.load(str(file))


def test_the_judge_sees_the_reference_and_rows_without_one_are_told(tmp_path):
    file = tmp_path / "answers.csv"
    file.write_text("prompt,reference\nknown,the truth {{ tag }}\n")
    section = JudgeSignalSection(type="judge", references=str(file))
    backend = Script(lambda r, p: [0, 0, 0, 0, 1])
    rows = [row("x", question="known", name="1"), row("x", question="unknown", name="2")]
    rated = rate(build(section)[0], rows, {"judge": backend})
    with_it, without = backend.prompts
    assert "\nthe truth {{ tag }}\n[answer " in with_it
    assert "right answer" not in without
    assert (rated.counts["referenced"], rated.counts["unreferenced"]) == (1, 1)
    assert "1 of 2 prompts have no reference answer" in remark(section, rated.counts)


def test_references_to_none_of_the_prompts_stop_the_run(tmp_path):
    file = tmp_path / "answers.csv"
    file.write_text("prompt,reference\nknown,the truth\n")
    section = JudgeSignalSection(type="judge", references=str(file))
    rows = [row("x", question="other", name="1"), row("x", question="unknown", name="2")]
    with pytest.raises(UsageError, match=r"answers.csv: holds a reference answer to none of the 2 prompts") as error:
        check_prompts(section, rows)
    assert "the first prompt: 'other' (id 1); the file's first: 'known'" in str(error.value)
    check_prompts(section, [*rows, row("x", question="known", name="3")])
    check_prompts(section, [])
    check_prompts(JudgeSignalSection(type="judge"), rows)
    file.write_text("id,reference\n7,the truth\n")
    with pytest.raises(UsageError, match="the file's first: id 7"):
        check_prompts(section, rows)


def test_the_brief_prompt_speaks_for_the_built_in_rubric_alone(own):
    assert build(JudgeSignalSection(type="judge"))[0].manner.brief is not None
    for settings in ({"rubric": own}, {"by_criterion": True}, {"mode": "listwise"}):
        assert build(JudgeSignalSection(type="judge", **settings))[0].manner.brief is None


def test_the_name_tells_rubrics_apart(own):
    assert JudgeSignal("pointwise", None, 0.0, rubric=own).name.startswith("judge-pointwise-terse@")
