"""Several judges: means, parts, agreement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_script import Script, row, shown

from prefloop.config import JudgeSignalSection, ModelSection
from prefloop.signals.build import build, card, preflight
from prefloop.signals.driver import rate
from prefloop.signals.judge import PanelSignal, agreement
from prefloop.store.atomic import write_parquet
from prefloop.store.rows import read_rows, to_table

SECTION = JudgeSignalSection.model_validate({"type": "judge", "panel": ["one", {"path": "two", "dtype": "bfloat16"}]})


def rated(tables, texts, section=SECTION):
    """Scores by judges that know the rating of each text; None is no verdict."""

    def saying(table):
        def say(request, prompt):
            worth = table[shown(prompt)[0]]
            return [float(r == worth) for r in range(1, 6)]

        return say

    backends = {name: Script(saying(table)) for name, table in zip(section.models, tables, strict=True)}
    return rate(build(section)[0], [row(*texts)], backends)


def test_the_section_names_its_judges():
    assert {name: model.path for name, model in SECTION.models.items()} == {"judge": "one", "judge2": "two"}
    changed = SECTION.with_models(lambda model: model.model_copy(update={"revision": "abc"}))
    assert [model.revision for model in changed.models.values()] == ["abc", "abc"]
    assert list(JudgeSignalSection(type="judge", panel=["a", "b", "c"]).models) == ["judge", "judge2", "judge3"]
    signal, needs = build(SECTION)
    assert isinstance(signal, PanelSignal)
    assert needs["judge2"].model == ModelSection(path="two", dtype="bfloat16")
    preflight(SECTION)


def test_a_score_is_the_mean_and_every_judges_own_is_kept():
    found = rated([{"a": 1, "b": 3}, {"a": 2, "b": 5}], ["a", "b"])
    assert found.rows[0]["scores"] == [1.5, 4.0]
    assert found.rows[0]["parts"] == [
        {"name": "judge", "scores": [1.0, 3.0]},
        {"name": "judge2", "scores": [2.0, 5.0]},
    ]
    assert (found.counts["verdicts"], found.counts["judge/verdicts"], found.counts["judge2/verdicts"]) == (4, 2, 2)
    assert found.counts["said:--"] == 1
    assert len(found.calls) == 4


def test_an_answer_counts_only_where_every_judge_has_a_verdict():
    # The second judge is strict; its silence on b must not raise b above a.
    found = rated([{"a": 5, "b": 4}, {"a": 1, "b": None}], ["a", "b"])
    assert found.rows[0]["scores"] == [3.0, None]
    assert found.counts["said:+?"] == 1


def test_parts_by_criterion_carry_the_judges_name():
    section = JudgeSignalSection(type="judge", panel=["one", "two"], by_criterion=True, rubric="harmlessness")
    found = rated([{"a": 1}, {"a": 2}], ["a"], section)
    assert [part["name"] for part in found.rows[0]["parts"]] == [
        *("judge", "judge/danger", "judge/respect", "judge/privacy", "judge/care"),
        *("judge2", "judge2/danger", "judge2/respect", "judge2/privacy", "judge2/care"),
    ]


def test_cohens_kappa_by_hand():
    # 20 and 15 times alike, 5 and 10 times not: observed 0.7, by chance .5*.6 + .5*.4 = .5, kappa .4.
    assert agreement({"said:++": 20, "said:+-": 5, "said:-+": 10, "said:--": 15})["kappa/1-2"] == pytest.approx(0.4)


def test_krippendorffs_alpha_by_hand():
    """His example of two observers and ten units with two values (Computing Krippendorff's Alpha-Reliability, 2011,
    section A): alpha = 1 - (20 - 1) * 4 / (14 * 6) = 0.095."""
    counts = {"said:++": 5, "said:+-": 2, "said:-+": 2, "said:--": 1}
    assert agreement(counts)["alpha"] == pytest.approx(1 - 19 * 4 / 84)


def test_krippendorffs_alpha_with_missing_verdicts():
    """The same, section C: four observers, twelve units, five values, alpha 0.743; here with three values, by hand.

    Units ++?, +-+, --?, ?==, and =?? which is left out. Values in pairable units: + 4, - 3, = 2, n = 9. Observed
    disagreements o_ck (c != k), both ways, each unit's divided by its m - 1: only +-+: 2 * 2 / 2 = 2. Expected:
    sum n_c n_k = 2 * (12 + 8 + 6) = 52. alpha = 1 - (9 - 1) * 2 / 52.
    """
    counts = {"said:++?": 1, "said:+-+": 1, "said:--?": 1, "said:?==": 1, "said:=??": 1}
    assert agreement(counts)["alpha"] == pytest.approx(1 - 8 * 2 / 52)


def test_agreement_that_is_not_defined_is_absent():
    assert agreement({"verdicts": 3}) == {}
    assert agreement({"said:++": 7}) == {}
    assert agreement({"said:+?": 7, "said:?-": 2}) == {}
    assert set(agreement({"said:++-": 3, "said:+++": 2})) == {"alpha", "kappa/1-3", "kappa/2-3"}


@given(st.dictionaries(st.text("+-=?", min_size=3, max_size=3), st.integers(1, 5), max_size=12))
def test_agreement_is_at_most_one_and_full_where_judges_say_the_same(patterns):
    found = agreement({f"said:{pattern}": n for pattern, n in patterns.items()})
    assert all(value <= 1 + 1e-12 for value in found.values())
    same = agreement({"said:+++": 2, "said:---": 1, **{f"said:{p[0] * 3}": n for p, n in patterns.items()}})
    assert all(value == pytest.approx(1) for value in same.values())


def test_the_card_tells_the_agreement():
    line = card(SECTION, {"verdicts": 100, "said:++": 20, "said:+-": 5, "said:-+": 10, "said:--": 15})
    assert "by Krippendorff's alpha 0.40, by Cohen's kappa 1-2 0.40" in line


def test_parts_are_stored_and_rows_without_any_are_as_before(tmp_path):
    with_parts = rated([{"a": 1, "b": 3}, {"a": 2, "b": None}], ["a", "b"]).rows[0]
    without = {name: value for name, value in with_parts.items() if name != "parts"}
    path = tmp_path / "part.parquet"
    write_parquet(path, to_table("scored", [with_parts, without], where="x"))
    assert list(read_rows([path])) == [with_parts, without]
    assert with_parts["parts"][1]["scores"] == [2.0, None]
