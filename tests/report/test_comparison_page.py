"""The pages of compare and preference: what they show, and that texts of models stay texts."""

from __future__ import annotations

from prefloop.evaluate.compare import compare_answers
from prefloop.evaluate.several import Comparer
from prefloop.records import prompt_id
from prefloop.report.comparison import render_comparison
from prefloop.report.preference import render_preference
from prefloop.signals.base import Rating


class Length:
    name, pairwise, identity = "length", False, {}

    def rate(self, row):
        return Rating([float(len(c["text"])) for c in row["completions"]])
        yield []


def rows(*texts):
    found = []
    for i, text in enumerate(texts):
        prompt = [{"role": "user", "content": f"<q>{i}</q>"}]
        completion = {"id": "x", "text": text, "token_ids": None, "finish_reason": "stop", "sample_index": 0}
        found.append({"id": prompt_id(prompt), "prompt": prompt, "completions": [completion]})
    return found


def compared(name="<i>b</i>"):
    texts = ["<script>alert(1)</script>" + "x" * i for i in range(30)]
    return compare_answers(
        {"a": rows(*["no"] * 30), name: rows(*texts)}, [Comparer("<u>length</u>", Length(), {})], resamples=200
    )


def test_texts_are_escaped_everywhere():
    page = render_comparison("<h1>title", [("<em>", compared())], {"trained": {"<s>": 2}, "refused": {}})
    for mark in ("<script", "<q>", "<i>b", "<u>", "<h1>title", "<em>", "<s>"):
        assert mark not in page, mark
    assert "&lt;script&gt;alert(1)" in page


def test_what_the_page_shows():
    found = compared("b")
    page = render_comparison("Compared", [("", found)], {"trained": {"run": 2}, "not_usable": 0})
    assert page.count('<article class="sample">') == 20
    assert "b is better" in page
    assert "trained: {&#39;run&#39;: 2}" in page
    assert "not usable" not in page
    assert "picture" not in found.summary["signals"]["<u>length</u>"]["pairs"][0]


def test_the_preference_page_without_pairs():
    page = render_preference({"models": {"<q>": "x"}, "not_measured": {"reward accuracy": "no pairs"}}, [])
    assert "reward accuracy: no pairs" in page
    assert "<q>" not in page
    assert "Held-out pairs" not in page
