"""The embedded backend: a transformers model in this process.

Batches hold requests of similar length. Requests that share a prompt stand together, and the prompt is computed once
for all samples drawn from it and for all one-token labels chosen behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

import torch

from prefloop.backends.base import (
    AnswerScoreRequest,
    Backend,
    Choice,
    ChooseRequest,
    Frozen,
    GenerateRequest,
    Generation,
    Refusal,
    Request,
    Result,
    Sampling,
    Score,
    ScoreRequest,
    freeze,
    thaw,
)
from prefloop.config import ModelSection
from prefloop.engine import decode
from prefloop.engine.layout import Layout, Row, next_tokens
from prefloop.engine.load import describe_device, free, load_model, resolve_model_path
from prefloop.engine.logprob import attach_scorer, response_lengths, token_logprobs
from prefloop.engine.sharing import Sharing, check_sharing
from prefloop.engine.sharing import build as build_layout
from prefloop.engine.tokens import VERSION as TOKENS_VERSION
from prefloop.engine.tokens import PromptError, encode_completion, encode_prompt, end_of_turn_ids, load_tokenizer
from prefloop.records import Message, prompt_id
from prefloop.store import fingerprint

T = TypeVar("T")


class HfBackend(Backend):
    """Any causal language model that transformers loads.

    Args:
        model: in eval mode, on its device; may be a PEFT model. It gets `attach_scorer`.
        tokenizer: with its chat template set (`engine.tokens.load_tokenizer`).
        weights: what identifies the weights (`store.fingerprint.model_digest`); part of the cache key, so two models
            that differ in anything must differ in it.
        name: what people call the model.
        batch_size: sequences in one forward pass; changes no answer beyond rounding.
    """

    def __init__(self, model: Any, tokenizer: Any, *, weights: str, name: str = "model", batch_size: int = 64) -> None:
        self.model: Any = attach_scorer(model)
        self.tokenizer = tokenizer
        self.name, self.batch_size = name, batch_size
        config = model.config.get_text_config()
        # None for models whose positions have no table and no trained range, such as ALiBi.
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)
        self.stops = end_of_turn_ids(tokenizer, getattr(model, "generation_config", None))
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stops[0]
        self.identity = {
            "backend": "hf",
            "weights": weights,
            "template": fingerprint.digest(tokenizer.chat_template),
            "dtype": str(model.dtype).removeprefix("torch."),
            "decoding": decode.VERSION,
            "tokens": TOKENS_VERSION,
        }

    @classmethod
    def load(cls, section: ModelSection, memo: fingerprint.Memo | None = None) -> Self:
        """Load a model, or the base and the adapter of an adapter's folder.

        Args:
            memo: remembers file digests between runs (a `store.cache.Cache`).

        Raises:
            UsageError: there is no such model, or it cannot be scored exactly.
        """
        tokenizer = load_tokenizer(section)
        model = load_model(section)
        # After loading: a hub branch is resolved to its commit by then.
        weights = fingerprint.model_digest(resolve_model_path(section.path), section.revision, memo)
        return cls(model, tokenizer, weights=weights, name=section.path, batch_size=section.batch_size)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of one verb and one way of sampling, the longest first: what does not fit in memory fails early."""
        order = sorted(range(len(requests)), key=lambda i: _plan_key(requests[i]))
        batches: list[list[int]] = []
        kind = None
        for index in order:
            if kind != (kind := _plan_kind(requests[index])) or len(batches[-1]) == self.batch_size:
                batches.append([])
            batches[-1].append(index)
        return batches

    def run(self, requests: Sequence[Request]) -> list[Result]:
        generate = [r for r in requests if isinstance(r, GenerateRequest)]
        score = [r for r in requests if isinstance(r, ScoreRequest)]
        choose = [r for r in requests if isinstance(r, ChooseRequest)]
        answers = [r for r in requests if isinstance(r, AnswerScoreRequest)]
        if len(requests) not in (len(generate), len(score), len(choose), len(answers)):
            raise ValueError("a batch holds requests of one verb; `plan` makes such batches")
        was_training = self.model.training
        self.model.eval()
        try:
            return [
                *self._generate(generate),
                *self._score(score),
                *self._choose(choose),
                *self._score_answers(answers),
            ]
        finally:
            self.model.train(was_training)

    def stream(self, messages: Sequence[Message], sampling: Sampling, sample_index: int = 0) -> Iterator[str]:
        """One answer, piece by piece as it is made; the pieces joined are what `generate` gives.

        Raises:
            UsageError: the prompt does not fit the template or the model.
        """
        prompt = encode_prompt(self.tokenizer, messages)
        refusal = self._too_long(len(prompt) + 1)
        if refusal:
            raise PromptError(refusal.reason, fix="shorten the conversation")
        streams = [_stream(freeze(messages), sampling, sample_index)]
        steps = self._decode([prompt], [0], streams, sampling, [self._room(prompt, sampling)])
        ids: list[int] = []
        shown = ""
        for tokens in steps:
            if tokens[0] in self.stops:
                break
            ids.append(tokens[0])
            text = self._text(ids)
            # A character of several tokens is not there before its last one.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        if len(rest := self._text(ids)) > len(shown):
            yield rest[len(shown) :]

    def close(self) -> None:
        """Let go of the model; it is freed unless somebody else holds it. The backend is of no use afterwards."""
        del self.model
        free()

    def _generate(self, requests: Sequence[GenerateRequest]) -> list[Result]:
        results: list[Result | None] = [None] * len(requests)
        prompts: dict[Frozen, list[int] | Refusal] = {}
        groups: dict[Sampling, list[int]] = {}
        for i, r in enumerate(requests):
            if r.schema is not None:
                results[i] = Refusal("this backend does not hold an answer to a schema", unsupported=True)
                continue
            if r.messages not in prompts:
                prompts[r.messages] = self._prompt(r.messages)
            prompt = prompts[r.messages]
            if isinstance(prompt, Refusal):
                refusal: Refusal | None = prompt
            else:
                refusal = self._too_long(len(prompt) + 1)
            results[i] = refusal
            if refusal is None:
                groups.setdefault(r.sampling, []).append(i)
        for sampling, indices in groups.items():
            fitting = {requests[i].messages: prompts[requests[i].messages] for i in indices}
            ids = [prompt for prompt in fitting.values() if not isinstance(prompt, Refusal)]
            place = {messages: k for k, messages in enumerate(fitting)}
            places = [place[requests[i].messages] for i in indices]
            streams = [_stream(requests[i].messages, sampling, requests[i].sample_index) for i in indices]
            made: list[list[int]] = [[] for _ in indices]
            limits = [self._room(ids[k], sampling) for k in places]
            for step in self._decode(ids, places, streams, sampling, limits):
                for row, token in step.items():
                    made[row].append(token)
            for i, k, tokens in zip(indices, places, made, strict=True):
                stopped = tokens[-1] in self.stops
                answer = tokens[:-1] if stopped else tokens
                results[i] = Generation(self._text(answer), answer, "stop" if stopped else "length", len(ids[k]))
        return _complete(results)

    def _score(self, requests: Sequence[ScoreRequest]) -> list[Result]:
        results: list[Result | None] = [None] * len(requests)
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, r in enumerate(requests):
            if not r.prompt_ids or not r.completion_ids:
                results[i] = Refusal(f"empty {'completion' if r.prompt_ids else 'prompt'}: there is nothing to score")
            else:
                results[i] = self._too_long(len(r.prompt_ids) + len(r.completion_ids))
            if results[i] is None:
                groups.setdefault(r.prompt_ids, []).append(i)
        rows: list[Row] = [(prompt, [requests[i].completion_ids for i in group]) for prompt, group in groups.items()]
        indices = [i for group in groups.values() for i in group]
        for i, logps in zip(indices, self._responses(rows, self._layout), strict=True):
            results[i] = Score(logps)
        return _complete(results)

    def _score_answers(self, requests: Sequence[AnswerScoreRequest]) -> list[Result]:
        """As `_score`, of prompts that are rendered here; equal messages make one prompt for all their answers."""
        results: list[Result | None] = [None] * len(requests)
        prompts = {messages: self._prompt(messages) for messages in dict.fromkeys(r.messages for r in requests)}
        places: list[int] = []
        scores: list[ScoreRequest] = []
        for i, r in enumerate(requests):
            prompt = prompts[r.messages]
            if isinstance(prompt, Refusal):
                results[i] = prompt
            else:
                places.append(i)
                scores.append(ScoreRequest(tuple(prompt), self._answer_ids(r)))
        for i, result in zip(places, self._score(scores), strict=True):
            results[i] = result
        return _complete(results)

    def _answer_ids(self, request: AnswerScoreRequest) -> tuple[int, ...]:
        ids = request.token_ids
        if ids and max(ids) < len(self.tokenizer) and self._text(ids) == request.text:
            return ids
        return tuple(encode_completion(self.tokenizer, request.text, None))

    def _choose(self, requests: Sequence[ChooseRequest]) -> list[Result]:
        results: list[Result | None] = [None] * len(requests)
        rows: list[tuple[list[int], list[list[int]]]] = []
        indices: list[int] = []
        for i, r in enumerate(requests):
            labels = [encode_completion(self.tokenizer, label, None) for label in r.labels]
            prompt = self._prompt(r.messages)
            if not labels or not all(labels):
                results[i] = Refusal("a choice needs labels, and each label at least one token")
            elif isinstance(prompt, Refusal):
                results[i] = prompt
            else:
                results[i] = self._too_long(len(prompt) + max(map(len, labels)))
                if results[i] is None:
                    rows.append((prompt, labels))
                    indices.append(i)
        logps: list[list[float]] = []
        # Labels of several tokens make a sequence each; a batch of requests may then be too many sequences.
        for part in _parts(rows, lambda row: sum(len(label) > 1 for label in row[1]) + 1, self.batch_size):
            logps += self._responses(part, next_tokens)
        found = iter(logps)
        for i, (_, row_labels) in zip(indices, rows, strict=True):
            results[i] = Choice([sum(next(found)) for _ in row_labels], [len(label) for label in row_labels])
        return _complete(results)

    @functools.cached_property
    def _sharing(self) -> Sharing:
        """Whether a prompt with several completions is run once; looked into where something is scored at all."""
        return check_sharing(self.model)

    def _layout(self, rows: Sequence[Row], pad_id: int) -> Layout:
        return build_layout(rows, pad_id, self._sharing)

    def _responses(self, rows: Sequence[Row], build: Callable[[Sequence[Row], int], Layout]) -> list[list[float]]:
        """Token log-probabilities of each response of the rows, in order."""
        if not rows:
            return []
        layout = build(rows, self._pad_id)
        with torch.no_grad():
            logps_N = token_logprobs(self.model, layout.to(self.device)).float().cpu()
        lengths: list[int] = response_lengths(layout).tolist()
        return [part.tolist() for part in torch.split(logps_N, lengths)]

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        streams: Sequence[decode.Stream],
        how: Sampling,
        limits: Sequence[int],
    ) -> Iterator[dict[int, int]]:
        return decode.decode(
            self.model,
            prompts,
            rows,
            decode.sampler(streams, temperature=how.temperature, top_k=how.top_k, top_p=how.top_p),
            stops=self.stops,
            limits=limits,
            pad_id=self._pad_id,
        )

    def _prompt(self, messages: Frozen) -> list[int] | Refusal:
        try:
            return encode_prompt(self.tokenizer, thaw(messages))
        except PromptError as error:
            return Refusal(error.what)

    def _room(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """The most tokens that an answer to this prompt may get; one that is cut off says so (`length`)."""
        if self.max_positions is None:
            return sampling.max_new_tokens
        return min(sampling.max_new_tokens, self.max_positions - len(prompt))

    def _too_long(self, length: int) -> Refusal | None:
        if self.max_positions is None or length <= self.max_positions:
            return None
        reason = f"prompt and answer take {length} tokens, the model has {self.max_positions} positions"
        return Refusal(reason, too_long=True)

    def _text(self, ids: Sequence[int]) -> str:
        """Control tokens inside an answer leave no text, as with the servers of other engines."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @property
    def place(self) -> str:  # type: ignore[override]
        return describe_device(self.device)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device


def _stream(messages: Frozen, sampling: Sampling, sample_index: int) -> decode.Stream:
    return decode.Stream(sampling.seed, prompt_id(thaw(messages)), sample_index)


def _plan_kind(request: Request) -> tuple[Any, ...]:
    """What a batch has in common."""
    return (request.verb, request.sampling) if isinstance(request, GenerateRequest) else (request.verb,)


def _plan_key(request: Request) -> tuple[Any, ...]:
    """Kind, then length (of the text where there are no ids yet), then what keeps equal prompts together."""
    if isinstance(request, ScoreRequest):
        length = len(request.prompt_ids) + len(request.completion_ids)
        return (request.verb, (), -len(request.prompt_ids), request.prompt_ids, -length, request.completion_ids)
    if not isinstance(request, ChooseRequest | GenerateRequest | AnswerScoreRequest):
        raise ValueError(f"a language model does not answer {request.verb}")
    length = sum(sum(map(len, message[1:])) for message in request.messages)
    if isinstance(request, AnswerScoreRequest):
        return (request.verb, (), -length, request.messages, -len(request.text), request.text, request.token_ids)
    if isinstance(request, ChooseRequest):
        return (request.verb, (), -length, request.messages, 0, request.labels)
    s = request.sampling
    how = (-s.max_new_tokens, s.temperature, s.top_p, s.top_k, s.seed)
    return (request.verb, how, -length, request.messages, request.sample_index)


def _parts(items: Sequence[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Cut items, in order, into parts of at most `limit` in size; an item larger than that stands alone."""
    part: list[T] = []
    for item in items:
        if part and sum(map(size, part)) + size(item) > limit:
            yield part
            part = []
        part.append(item)
    if part:
        yield part


def _complete(results: Sequence[Result | None]) -> list[Result]:
    done = [r for r in results if r is not None]
    assert len(done) == len(results), "a request was left without a result"
    return done
