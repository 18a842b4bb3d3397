"""The seam between the loop and whatever runs a model: requests in, results out, in batches.

Verbs of language models: `generate` samples an answer; `score` gives the log-probability of given completion ids
behind given prompt ids, `score_answer` that of an answer behind given messages; `choose` reads the log-probabilities
of a few labels. Three of encoders: `pair_score` reads texts side by side, `reward` a conversation, `embed` gives the
vector of a text. A request is plain data and holds everything that changes its result except the model, which is the
backend's `identity`; the two together make the cache key.

A backend plans before it runs. `plan` cuts *all* requests into batches, and `run` computes one batch or the part of
it that is not cached. Batches are cached whole, in one transaction, so a run that was killed and started again forms
the same batches and gets bit-equal results. tests/backends/test_cached.py guards this. Results that do not depend on
each other, such as a server's, are cached as they come in: see `Backend.arrivals`.

This module imports no torch.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from prefloop.records import Message, canonical_json, extras

Frozen = tuple[tuple[str, ...], ...]
"""Messages as a hashable tuple of (role, content), with a third text, JSON, where a turn has more; see `freeze`."""


@dataclass(frozen=True)
class Sampling:
    """Everything about decoding that changes an answer.

    Attributes:
        temperature: 0 is greedy.
        top_p, top_k: nucleus and top-k truncation; 1.0 and 0 switch them off.
        max_new_tokens: cut-off; an answer that reaches it has finish reason "length".
        seed: run seed. Each sample draws from its own stream, made from the seed, the prompt and the sample index.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True)
class GenerateRequest:
    """One sample. n answers are n requests that differ in `sample_index`, so raising n computes only the new ones."""

    verb: ClassVar[str] = "generate"
    messages: Frozen
    sampling: Sampling
    sample_index: int = 0
    schema: str | None = None
    """JSON Schema, as JSON text, that the answer has to follow; a backend that cannot force it refuses."""


@dataclass(frozen=True)
class ScoreRequest:
    """Log-probability of `completion_ids` after `prompt_ids`. Ids, because re-tokenising text moves the boundary."""

    verb: ClassVar[str] = "score"
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@dataclass(frozen=True)
class AnswerScoreRequest:
    """Log-probability of an answer after messages, which the backend renders: a signal has no tokenizer.

    `token_ids` are the ids that a sampler gave, without the end of turn, or none. They count where this model reads
    `text` in them; else, as with the ids of another tokenizer, the text is encoded. No end of turn is scored.
    """

    verb: ClassVar[str] = "score_answer"
    messages: Frozen
    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ChooseRequest:
    """Log-probabilities of a few label texts as the next words of the assistant's turn."""

    verb: ClassVar[str] = "choose"
    messages: Frozen
    labels: tuple[str, ...]


@dataclass(frozen=True)
class PairScoreRequest:
    """What an encoder says of texts that it reads side by side: (source, first, second), or (query, document)."""

    verb: ClassVar[str] = "pair_score"
    texts: tuple[str, ...]


@dataclass(frozen=True)
class RewardRequest:
    """What a reward model says of the last turn of a conversation."""

    verb: ClassVar[str] = "reward"
    messages: Frozen


@dataclass(frozen=True)
class EmbedRequest:
    """The vector of a text. Queries and passages may have prompts, or whole encoders, of their own."""

    verb: ClassVar[str] = "embed"
    text: str
    role: Literal["query", "passage"] = "passage"


Request = (
    GenerateRequest
    | ScoreRequest
    | AnswerScoreRequest
    | ChooseRequest
    | PairScoreRequest
    | RewardRequest
    | EmbedRequest
)


@dataclass(frozen=True)
class Generation:
    """An answer: text, the sampler's ids without the end-of-turn token, "stop" or "length", the prompt's length.

    The ids are None where a server gives text alone; the prompt's length is 0 where it does not tell it.
    """

    text: str
    token_ids: list[int] | None
    finish_reason: str
    prompt_tokens: int


@dataclass(frozen=True)
class Score:
    """Natural log-probabilities, one per completion token, in order."""

    token_logps: list[float]

    @property
    def total(self) -> float:
        return sum(self.token_logps)


@dataclass(frozen=True)
class Choice:
    """Label log-probabilities (natural log, over the whole vocabulary, summed over a label's tokens).

    Labels of unequal token counts compare unequal numbers of factors; `label_tokens` says so to the caller.
    """

    logps: list[float]
    label_tokens: list[int]

    @property
    def label_mass(self) -> float:
        """Probability of all the labels together, 0..1; small when the model wanted to say other things."""
        import math

        return sum(math.exp(x) for x in self.logps)

    @property
    def probabilities(self) -> list[float]:
        """Softmax over the labels alone."""
        import math

        top = max(self.logps)
        raised = [math.exp(x - top) for x in self.logps]
        return [x / sum(raised) for x in raised]


@dataclass(frozen=True)
class Logits:
    """Outputs of an encoder's head, in its order, and how many of the texts were cut to fit."""

    values: list[float]
    truncated: int = 0


@dataclass(frozen=True, eq=False)
class Embedding:
    """A text's vector: numpy float32 [d], as the encoder gives it (normalised only where the encoder does that)."""

    values: Any


@dataclass(frozen=True)
class Refusal:
    """A request that this backend cannot serve. Never read as a verdict, and but for `Withheld` never cached.

    `too_long` tells that it does not fit the model's context: a shorter one may be asked instead. `unsupported` tells
    that the backend can serve none of this kind: another kind of request may be asked instead.
    """

    reason: str
    too_long: bool = False
    unsupported: bool = False


@dataclass(frozen=True)
class Withheld(Refusal):
    """A refusal that came as a server's answer and was paid like one, such as a filtered text. Cached: asking again
    would be paid again."""


Result = Generation | Score | Choice | Logits | Embedding | Refusal

RESULT_TYPES: dict[str, type[Generation] | type[Score] | type[Choice] | type[Logits]] = {
    "generate": Generation,
    "score": Score,
    "score_answer": Score,
    "choose": Choice,
    "pair_score": Logits,
    "reward": Logits,
}


@dataclass(frozen=True)
class Arrival:
    """A result as it comes in.

    Attributes:
        index: of the request that it answers.
        call: where a server was asked, what was sent and what came back, word for word: `path`, `request` (the JSON
            body) and `response` (text). Holds no key.
    """

    index: int
    result: Result
    call: dict[str, Any] | None = None


def freeze(messages: Sequence[Message]) -> Frozen:
    """Messages as a hashable tuple of (role, content), or (role, content, JSON of `records.extras` and the note)."""
    beside = [extras(m) | ({"note": m["note"]} if "note" in m else {}) for m in messages]
    return tuple(
        (m["role"], m["content"], *(canonical_json(e) for e in filter(None, [more])))
        for m, more in zip(messages, beside, strict=True)
    )


def thaw(messages: Frozen) -> list[Message]:
    """The inverse of `freeze`."""
    return [
        {"role": role, "content": content, **(json.loads(more[0]) if more else {})}  # type: ignore[typeddict-item]
        for role, content, *more in messages
    ]


def request_json(request: Request) -> dict[str, Any]:
    """A request as JSON-able data, verb included."""
    return {"verb": request.verb, **asdict(request)}


@dataclass
class Usage:
    """Counts of one backend's work in this process."""

    asked: int = 0
    cached: int = 0
    computed: int = 0
    refused: int = 0
    generated_tokens: int = 0
    detail: dict[str, int] = field(default_factory=dict)


class Backend(ABC):
    """A model that answers requests.

    `identity` holds everything about the model that changes an answer (weights digest or revision, template,
    precision) and nothing that does not (device, batch size, URL). `name` is what people call the model; it is shown
    and stored beside cached answers, and is part of no key.
    """

    identity: dict[str, Any]
    name: str = "model"
    place: str | None = None
    """What it runs on, in words; None where that is a server's business."""
    batch_size: int = 64
    """Sequences in one forward pass; changes no answer beyond rounding."""
    earlier_cost: float = 0.0
    """What the run has paid for this model before it was opened; counts where there is a limit."""

    @abstractmethod
    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut requests into batches: lists of indices, every index once, in the order of execution."""

    @abstractmethod
    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Compute one batch, results in the order of the requests. All requests are of one verb."""

    def arrivals(self, requests: Sequence[Request]) -> Iterator[list[Arrival]]:
        """As `run`, in the groups in which results come in; a group is stored as a whole or not at all.

        One group here: rounding makes the results of a batch depend on each other. Where they are independent, a
        backend gives each one as soon as it is there.
        """
        yield [Arrival(i, result) for i, result in enumerate(self.run(requests))]

    def run_all(self, batches: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Arrival]]]:
        """Compute several batches: the groups of `arrivals` as they come in, each with the number of its batch.

        One batch after the other here; where several workers hold the model, side by side and in any order.
        """
        for number, batch in enumerate(batches):
            for group in self.arrivals(batch):
                yield number, group

    def spent(self) -> dict[str, float]:
        """What a server counted since this was last asked: `prompt_tokens`, `generated_tokens` and, where it has a
        price, `cost`. Empty for a model in this process."""
        return {}

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        """Plan and run everything, uncached, results in the order of the requests."""
        results: list[Result | None] = [None] * len(requests)
        batches = self.plan(requests)
        for number, group in self.run_all([[requests[i] for i in batch] for batch in batches]):
            for arrival in group:
                results[batches[number][arrival.index]] = arrival.result
        return [r for r in results if r is not None]

    def close(self) -> None:  # noqa: B027 - most backends hold nothing
        """Release memory or connections."""
