"""The rows that travel between the boxes, and their ids.

Columns keep TRL's names (`prompt`, `chosen`, `rejected` as message lists), so a data set made here trains elsewhere
and the other way round. Ids are content hashes; rows are joined by id, never by order.

This module imports neither torch nor pyarrow at the top: planning a run needs it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

if TYPE_CHECKING:
    import pyarrow as pa


class Message(TypedDict):
    """One turn. `role` is system, user, assistant or tool.

    An ordinary turn has a role and a content and no other key. A turn of the assistant may have `tool_calls`, as
    OpenAI and transformers write them, with their arguments as an object:
    `[{"id": …, "type": "function", "function": {"name": …, "arguments": {…}}}]`; a turn of role tool, the result of
    one, may say which with `tool_call_id` and `name`. One turn of a prompt, as a rule the first, may have `tools`:
    what the model is offered throughout, as JSON schemas of functions. A system message in a request, never in a row,
    may say with `note` which end of its content is an attribute's note (`signals.attribute.with_note`).
    """

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    tools: NotRequired[list[dict[str, Any]]]
    note: NotRequired[str]


EXTRAS = ("tool_calls", "tool_call_id", "name", "tools")
"""What an ordinary turn has not. In Parquet null then, or not there where no turn has any."""
AS_JSON = ("tool_calls", "tools")
"""Those that Parquet holds as JSON text: their shape is each tool's own."""


class PromptRow(TypedDict):
    """What the model is asked. The last message is never the assistant's."""

    id: str
    prompt: list[Message]
    source_id: str | None


class Contrast(TypedDict):
    """For what an answer was sampled: an attribute, its `positive` or its `negative` side, and the notes of both.

    An empty note stands for none.
    """

    attribute: str
    side: str
    positive: str
    negative: str


class Rewrite(TypedDict):
    """What an answer that rewrites a passage was asked with; the passage is the prompt's last message.

    Attributes:
        document: id of the passage.
        variant: id of the wording.
        system: its system message, empty for none.
        request: the user's message, with `{passage}` where the passage stands.
        key: of the JSON object that the answer was to be; empty for plain text.
    """

    document: str
    variant: str
    system: str
    request: str
    key: str


class Completion(TypedDict):
    """One answer to a prompt.

    `token_ids` are the sampler's own ids without the end-of-turn token (None for text from elsewhere);
    `finish_reason` is "stop" (the model ended its turn) or "length" (cut off). `contrast` is there where the answer
    was sampled under a note, `rewrite` where it is the rewrite of a passage: its text is then what was read out of the
    answer.
    """

    id: str
    text: str
    token_ids: list[int] | None
    finish_reason: str
    sample_index: int
    contrast: NotRequired[Contrast]
    rewrite: NotRequired[Rewrite]


ASKED: dict[str, type] = {"contrast": Contrast, "rewrite": Rewrite}
"""What an answer may say of how it was asked for. In Parquet null, or not there where no answer says it."""


class CandidatesRow(TypedDict):
    """A prompt with its sampled answers."""

    id: str
    prompt: list[Message]
    completions: list[Completion]


class PartScores(TypedDict):
    """Scores of which a row's are the mean, one per completion: those of one judge, or by one criterion."""

    name: str
    scores: list[float | None]


class ScoredRow(TypedDict):
    """Candidates with one score per completion; null means that the signal gave no verdict (never a tie or a loss).

    `parts` is there where the scores are means of others: of a panel's judges, of criteria. `judgments` is there where
    a critic wrote what is wrong with each answer: null with a score of 1 for nothing, null without a score where it
    gave no judgment.
    """

    id: str
    prompt: list[Message]
    completions: list[Completion]
    scores: list[float | None]
    signal: str
    evidence: list[str]
    parts: NotRequired[list[PartScores]]
    judgments: NotRequired[list[str | None]]


OPTIONAL = {"scored": ("parts", "judgments"), "preference": ("document", "query")}
"""Columns that a row of a kind may be without; null in Parquet then."""


class CallRow(TypedDict):
    """One call that a signal made, kept as evidence. `request` and `result` are JSON."""

    id: str
    row_id: str
    signal: str
    verb: str
    request: str
    result: str


class PreferenceRow(TypedDict):
    """A pair. `weight`, `margin` and `label` hold only what the loss is to use; a judge's score gap is none of them.

    `label` is the probability that the chosen answer is the better one, null for certainty. One of the two answers may
    be null in rows from elsewhere: a good answer or a bad one that stands alone, for objectives that take such.

    `chosen_finish` and `rejected_finish` are the answers' finish reasons, null for text from elsewhere: an answer that
    was cut off ("length") is trained on without an end of turn, so that it does not teach to stop in mid-sentence.

    `document` and `query` are there where the answers are rewrites of a passage that were compared for a query: a
    split keeps pairs that share either on one side. `prompt_id` is then the passage's, whatever the prompt's wording.
    """

    id: str
    prompt_id: str
    prompt: list[Message]
    chosen: list[Message] | None
    rejected: list[Message] | None
    score_chosen: float | None
    score_rejected: float | None
    weight: float | None
    margin: float | None
    label: float | None
    source: str
    strategy: str
    chosen_id: str
    rejected_id: str
    chosen_finish: str | None
    rejected_finish: str | None
    evidence: list[str]
    document: NotRequired[str]
    query: NotRequired[str]


class JudgmentRow(TypedDict):
    """An answer and what is wrong with it in words; `judgment` is null where nothing is.

    `score` is whatever number came with the judgment and is not learned from. `finish` is the answer's finish reason,
    null for text from elsewhere.
    """

    id: str
    prompt_id: str
    prompt: list[Message]
    completion: list[Message]
    judgment: str | None
    score: float | None
    weight: float | None
    source: str
    completion_id: str
    finish: str | None
    evidence: list[str]


class QuestionRow(TypedDict):
    """A question with its reference answers, any of which is right. `source_id` is the data set's own id."""

    id: str
    question: str
    answers: list[str]
    source_id: str | None


class RetrievedRow(TypedDict):
    """A question with its retrieved documents, best first: ids, texts, ranks from 1 and the retriever's scores."""

    id: str
    query: str
    answers: list[str]
    document_ids: list[str]
    documents: list[str]
    ranks: list[int]
    scores: list[float]


class LabelledRow(TypedDict):
    """Documents of a question with what they do to a reader's answer.

    `labels` are aligned, unaligned, both_correct, both_incorrect or abstained, and `scores` say how much a document
    helps; both are null for a document that the reader could not take. `ranks` (from 1) and `retrieval_scores` are the
    retriever's.
    """

    id: str
    query: str
    answers: list[str]
    document_ids: list[str]
    documents: list[str]
    ranks: list[int]
    retrieval_scores: list[float]
    labels: list[str | None]
    scores: list[float | None]
    signal: str
    evidence: list[str]


class AugmentedRow(TypedDict):
    """A question written anew. `inference` and `inference_back` are the classes that a classifier of natural language
    inference gave to question and rewriting, and the other way round; null where it was not asked."""

    id: str
    question_id: str
    strategy: str
    text: str
    inference: str | None
    inference_back: str | None
    evidence: list[str]


class ReadRow(TypedDict):
    """One answer of a reader, without documents (`document_id` is null) or with one, and its measures."""

    id: str
    row_id: str
    document_id: str | None
    sample: int
    answer: str
    exact_match: float
    containment: float
    f1: float
    abstained: bool


class ContextRow(TypedDict):
    """What a demonstration of the pre-aligned task shows: documents by id in their order, and which one is judged.

    `id` is the demonstration's. `position` counts from 1; `label` is aligned or unaligned.
    """

    id: str
    question_id: str
    document_ids: list[str]
    position: int
    label: str


class RankingRow(TypedDict):
    """A query and documents for it; the four lists go by place.

    `query_id` is the original question's, which its rewritings share: splits go by it. `labels` are 1 (the document
    helps the reader), 0 (it misleads) or null (neither, or not known); `scores` say how good a document is, higher is
    better, null for not known.
    """

    id: str
    query_id: str
    query: str
    document_ids: list[str]
    documents: list[str]
    labels: list[int | None]
    scores: list[float | None]
    source: str


class RejectRow(TypedDict):
    """A row that a stage dropped, with the reason. `row` is the dropped row as JSON."""

    id: str
    stage: str
    reason: str
    attempts: int
    row: str


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_id(*parts: Any) -> str:
    """64-bit content hash (16 hex digits) of JSON-able parts. Used for every row id."""
    # surrogatepass: text from models may hold lone surrogates, and an id must exist for them too.
    return hashlib.sha256(canonical_json(list(parts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def extras(message: Message) -> dict[str, Any]:
    """What a message has beside its role and content; empty for an ordinary turn."""
    return {name: message[name] for name in EXTRAS if message.get(name) is not None}  # type: ignore[literal-required]


def prompt_id(prompt: Sequence[Message]) -> str:
    """Id of a prompt: the hash of its roles and contents, and of tools, calls and results where it has them."""
    return content_id("prompt", [[m["role"], m["content"], *filter(None, [extras(m)])] for m in prompt])


def message_text(message: Message) -> str:
    """A turn as people and judges read it: its content, and below it each tool call as JSON."""
    calls = [canonical_json(call.get("function", call)) for call in message.get("tool_calls") or ()]
    return "\n".join([*filter(None, [message["content"]]), *calls])


def completion_id(prompt: str, text: str, sample_index: int) -> str:
    """Id of an answer: the hash of its prompt's id, its text and its sample index."""
    return content_id("completion", prompt, text, sample_index)


KINDS: dict[str, type] = {
    "prompts": PromptRow,
    "candidates": CandidatesRow,
    "scored": ScoredRow,
    "calls": CallRow,
    "preference": PreferenceRow,
    "judgment": JudgmentRow,
    "questions": QuestionRow,
    "retrieved": RetrievedRow,
    "labelled": LabelledRow,
    "augmented": AugmentedRow,
    "contexts": ContextRow,
    "ranking": RankingRow,
    "reads": ReadRow,
    "rejects": RejectRow,
}
"""The row types that Parquet files hold, by the names of their kinds."""


def arrow_schema(kind: str, *, tools: bool = False, asked: Collection[str] = ()) -> pa.Schema:
    """The Parquet schema of a row kind: its type's columns, in their order.

    Args:
        kind: of `KINDS`.
        tools: messages have `EXTRAS`. Without, they have none, not even nulls: templates elsewhere ask whether a
            message has such a key, and take a null for one.
        asked: which of `ASKED` completions have, null in some.
    """
    import pyarrow as pa

    plain = {str: pa.string(), float: pa.float64(), int: pa.int32(), bool: pa.bool_()}

    def column(hint: Any) -> pa.DataType:
        if hint is Message:
            return pa.struct([(name, pa.string()) for name in ("role", "content", *(EXTRAS if tools else ()))])
        if is_typeddict(hint):
            left_out = ASKED.keys() - set(asked)
            return pa.struct([(n, column(part)) for n, part in get_type_hints(hint).items() if n not in left_out])
        if get_origin(hint) is list:
            return pa.list_(column(*get_args(hint)))
        kinds = [part for part in get_args(hint) or (hint,) if part is not NoneType]
        return plain[kinds[0]] if kinds[0] in plain else column(kinds[0])

    # A document's label needs no more than a byte.
    small = {"labels": pa.list_(pa.int8())} if kind == "ranking" else {}
    return pa.schema([(name, small.get(name) or column(hint)) for name, hint in get_type_hints(KINDS[kind]).items()])
