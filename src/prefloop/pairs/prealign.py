"""Demonstrations that align a reader with what helps it (DPA-RAG's two stages of self-alignment).

Stage one: some documents and a question; is the document at this position of use? Stage two: the answer itself, from
the reranked documents. Both are demonstrations, rows with a chosen answer and no rejected one, which the objective
`sft` takes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prefloop.config.rag import PrealignSection
from prefloop.records import (
    AugmentedRow,
    ContextRow,
    LabelledRow,
    PreferenceRow,
    RejectRow,
    RetrievedRow,
    canonical_json,
    completion_id,
    content_id,
)
from prefloop.signals.reader_prompt import ReaderPrompt

PREALIGN, QA = "prealign", "qa"


@dataclass
class Demonstrations:
    """Rows of one stage; what came in = rows + rejects.

    Attributes:
        contexts: of stage one, what each row shows.
        counts: rows by label (stage one).
    """

    rows: list[PreferenceRow] = field(default_factory=list)
    rejects: list[RejectRow] = field(default_factory=list)
    contexts: list[ContextRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class NoiseSource:
    """Documents of other questions' retrievals.

    Args:
        retrieved: all questions' rows.
    """

    def __init__(self, retrieved: Iterable[RetrievedRow]) -> None:
        self.texts: dict[str, str] = {}
        self.of: dict[str, frozenset[str]] = {}
        for row in retrieved:
            self.texts.update(zip(row["document_ids"], row["documents"], strict=True))
            self.of[row["id"]] = frozenset(row["document_ids"])
        self.ids = sorted(self.texts)

    def draw(self, rng: random.Random, question: str, count: int, without: str) -> list[str] | None:
        """Ids of `count` different documents that were not retrieved for the question; None if there are not as many.

        Args:
            without: the text that none of them may have: copies of a document lie in many corpora.
        """
        own = self.of.get(question, frozenset())
        found: list[str] = []
        # Drawing until it fits is quick where the retrievals are many, and a list of the rest is always right.
        for _ in range(20 * count):
            if len(found) == count:
                break
            name = rng.choice(self.ids)
            if name not in own and name not in found and self.texts[name] != without:
                found.append(name)
        if len(found) < count:
            rest = [n for n in self.ids if n not in own and n not in found and self.texts[n] != without]
            found += rng.sample(rest, min(count - len(found), len(rest)))
        return found if len(found) == count else None


def prealign_rows(
    labelled: Iterable[LabelledRow],
    noise: NoiseSource,
    section: PrealignSection,
    prompt: ReaderPrompt,
    seed: int,
    rewritings: Mapping[str, Sequence[AugmentedRow]] | None = None,
) -> Demonstrations:
    """Stage one: a row for each aligned or unaligned document, and for each rewriting of its question.

    The position is uniform and follows, like the other documents, from the seed, the question and the document, so
    that a row is the same whatever stands beside it. A labelled document for which there is no noise is rejected.

    Args:
        noise: where the other documents come from.
        prompt: a template that can ask about one of the documents.
        rewritings: of each question, by its id.
    """
    made = Demonstrations()
    said = {"aligned": section.aligned, "unaligned": section.unaligned}
    for row in labelled:
        texts = [row["query"], *(a["text"] for a in (rewritings or {}).get(row["id"], ()))]
        for name, document, label in zip(row["document_ids"], row["documents"], row["labels"], strict=True):
            if label not in said:
                continue
            for text in texts:
                rng = random.Random(f"prealign {seed} {row['id']} {name} {content_id(text)}")
                others = noise.draw(rng, row["id"], section.documents - 1, document)
                if others is None:
                    made.rejects.append(_reject(content_id(PREALIGN, row["id"], name, text), text, name))
                    continue
                position = rng.randrange(section.documents)
                shown = [*others[:position], name, *others[position:]]
                documents = [document if other == name else noise.texts[other] for other in shown]
                made_row = _demonstration(
                    prompt.render(text, documents, position + 1),
                    said[label].format(position=position + 1),
                    row["id"],
                    PREALIGN,
                    shown,
                )
                made.rows.append(made_row)
                made.counts[label] += 1
                made.contexts.append(
                    {
                        "id": made_row["id"],
                        "question_id": row["id"],
                        "document_ids": shown,
                        "position": position + 1,
                        "label": label,
                    }
                )
    return made


def _reject(name: str, question: str, document: str) -> RejectRow:
    whole = canonical_json({"question": question, "document_id": document})
    reason = "too few documents of other questions to stand beside it"
    return {"id": name, "stage": PREALIGN, "reason": reason, "attempts": 1, "row": whole}


def qa_rows(
    reranked: Iterable[RetrievedRow], questions: Mapping[str, str], top_k: int, prompt: ReaderPrompt
) -> list[PreferenceRow]:
    """Stage two: a question, its best documents and its first reference answer.

    Args:
        reranked: questions and rewritings with their documents, the best first.
        questions: the original question's id of each row, by the row's id.
    """
    return [
        _demonstration(
            prompt.render(row["query"], row["documents"][:top_k]),
            row["answers"][0],
            questions[row["id"]],
            QA,
            row["document_ids"][:top_k],
        )
        for row in reranked
    ]


def _demonstration(prompt: str, answer: str, question: str, strategy: str, documents: Sequence[str]) -> PreferenceRow:
    """A chosen answer without a rejected one. Rows of a question share its id, so that splits go by question."""
    return {
        "id": content_id(strategy, prompt, answer),
        "prompt_id": question,
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": answer}],
        "rejected": None,
        "score_chosen": None,
        "score_rejected": None,
        "weight": None,
        "margin": None,
        "label": None,
        "source": "reader",
        "strategy": strategy,
        "chosen_id": completion_id(question, answer, 0),
        "rejected_id": "",
        "chosen_finish": None,
        "rejected_finish": None,
        "evidence": list(documents),
    }
