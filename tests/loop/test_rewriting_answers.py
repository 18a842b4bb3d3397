"""What becomes of a model's answers: rewrites, reasons, and the measurement that replaces nothing."""

from __future__ import annotations

import json

from prefloop.backends.base import Backend, GenerateRequest, Generation, Refusal
from prefloop.config import RewriteSection, SampleSection
from prefloop.inputs.rewriting import asked
from prefloop.loop.rewriting import rewrite, rewrite_to_measure

PASSAGE = "The old bridge over the river was closed in spring because two of its pillars had begun to lean."
GOOD = "In spring the old bridge across the river was shut, as two of the pillars had started leaning."
ANSWERS = {
    "v-good": json.dumps({"Rewritten Text": GOOD}),
    "v-prose": "I would write that the bridge was closed.",
    "v-no": "I'm sorry, but I can't help with that request.",
    "v-short": json.dumps({"Rewritten Text": "The bridge was closed."}),
    "v-cut": '{"Rewritten Text": "In spring the old bri',
}
BANK = "name: test\nform: '{instruction} {passage}'\nreply: 'JSON, key {key}'\nkey: Rewritten Text\nvariants:\n"


class Writer(Backend):
    """Answers by the wording; one passage is too long for it."""

    identity: dict = {}  # noqa: RUF012

    def plan(self, requests):
        return [list(range(len(requests)))]

    def run(self, requests):
        return [self._one(request) for request in requests]

    def _one(self, request):
        assert isinstance(request, GenerateRequest)
        content = request.messages[-1][1]
        if "far too long" in content:
            return Refusal("too long", too_long=True)
        name = content.split()[0]
        return Generation(ANSWERS[name], [1, 2], "length" if name == "v-cut" else "stop", 5)


def section(folder, **changes):
    variants = "".join(f"  - {{id: {name}, instruction: {name}}}\n" for name in ANSWERS)
    (folder / "bank.yaml").write_text(BANK + variants)
    return SampleSection(n=1, rewrite=RewriteSection(bank=str(folder / "bank.yaml"), **changes))


def rows(*texts):
    return [
        {"id": f"p{i}", "prompt": [{"role": "user", "content": text}], "source_id": f"d{i}"}
        for i, text in enumerate(texts)
    ]


def test_usable_rewrites_are_kept_and_others_counted_with_their_reasons(tmp_path):
    found = rewrite(Writer(), rows(PASSAGE, "far too long"), section(tmp_path), 0, "sample")
    (row,) = found.rows
    assert row["prompt"] == [{"role": "user", "content": PASSAGE}]
    (kept,) = row["completions"]
    assert (kept["text"], kept["token_ids"], kept["rewrite"]["variant"]) == (GOOD, None, "v-good")
    assert (kept["rewrite"]["document"], kept["rewrite"]["key"]) == ("d0", "Rewritten Text")
    assert {r["reason"] for r in found.dropped} == {"undecodable", "refusal", "too_short", "cut_off"}
    assert {k: v for k, v in found.counts.items() if k.startswith("dropped/")} == {
        f"dropped/{reason}": 1 for reason in ("undecodable", "refusal", "too_short", "cut_off")
    }
    assert [r["reason"] for r in found.rejects] == [r["reason"] for r in found.refused] == ["too long"]
    # Word for word, for whoever wants to see what the model wrote.
    assert {json.loads(r["row"])["answer"] for r in found.dropped} == set(ANSWERS.values()) - {ANSWERS["v-good"]}


def test_a_passage_without_any_rewrite_is_rejected(tmp_path):
    only = section(tmp_path, variants=("v-prose", "v-no"))
    found = rewrite(Writer(), rows(PASSAGE), only, 0, "sample")
    assert not found.rows
    assert not found.refused
    assert found.rejects[0]["reason"].startswith("no usable rewrite: ")


def test_what_is_measured_is_what_was_written(tmp_path):
    found = rewrite_to_measure(Writer(), rows(PASSAGE, "far too long"), section(tmp_path), 0, "evaluate")
    assert len(found.rows) == len(ANSWERS)
    texts = {row["completions"][0]["rewrite"]["variant"]: row["completions"][0]["text"] for row in found.rows}
    assert texts["v-good"] == GOOD
    assert texts["v-prose"] == ANSWERS["v-prose"], "no rewrite can be read: it stands there as it is"
    assert texts["v-short"] == "The bridge was closed."
    assert PASSAGE not in texts.values()
    assert found.unread == {"d0"}
    assert found.counts["rewrites"] == 1
    assert sum(n for name, n in found.counts.items() if name.startswith("faults/")) == 4
    for row in found.rows:
        assert row["prompt"] == asked(rows(PASSAGE)[0]["prompt"], row["completions"][0]["rewrite"])
