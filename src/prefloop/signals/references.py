"""Reference answers: what a right answer to a prompt looks like, for the judge to compare with.

They come from a file of their own, so that the model that answers never gets to see them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prefloop.errors import UsageError
from prefloop.inputs.judgments import critique, questions
from prefloop.inputs.messages import messages_of
from prefloop.inputs.problems import Problem
from prefloop.inputs.readers import Stats, container_of, read_records
from prefloop.records import CandidatesRow, Message, PromptRow, prompt_id
from prefloop.store.fingerprint import file_digest

COLUMNS = ("id", "prompt", "reference")
# Ids are hexadecimal: no text with this in front can be taken for one.
_TEXT = "text "


@dataclass(frozen=True)
class References:
    """Reference answers by prompt.

    Attributes:
        by_prompt: under a prompt's id, or under the text of its one turn of the user.
        digest: of the file, for identities.
        where: the file, for messages.
    """

    by_prompt: Mapping[str, str]
    digest: str
    where: str

    def require_match(self, rows: Iterable[PromptRow | CandidatesRow]) -> None:
        """Make sure that there is an answer to at least one of these prompts; some without one are usual.

        Raises:
            UsageError: there is none; shows a prompt and one of the file's.
        """
        first, n = None, 0
        for row in rows:
            if self.of(row) is not None:
                return
            first, n = first or row, n + 1
        if first is None:
            return
        asked, known = first["prompt"][-1]["content"], next(iter(self.by_prompt))
        known = repr(known.removeprefix(_TEXT)[:80]) if known.startswith(_TEXT) else f"id {known}"
        raise UsageError(
            f"holds a reference answer to none of the {n} prompts; the first prompt: {asked[:80]!r} "
            f"(id {first['id']}); the file's first: {known}",
            where=self.where,
            fix="write `prompt` as the prompt is, the text of its one user turn or all its messages, or `id` as it is "
            "in the run's prompts",
        )

    def of(self, row: PromptRow | CandidatesRow) -> str | None:
        """The reference answer of a row's prompt; None when there is none."""
        found = self.by_prompt.get(row["id"])
        if found is not None:
            return found
        text = _only_turn(row["prompt"])
        return None if text is None else self.by_prompt.get(_key_of_text(text))


def load(path: str) -> References:
    """Read reference answers: one row for each prompt, JSONL, JSON, CSV or Parquet.

    Columns: `reference`, and `prompt` (the text of the user's turn, or a list of messages) or `id` (our own id of the
    prompt, as in a run's prompts). Or OpenAI's critiques: the refinement of each question's best answer.

    Raises:
        UsageError: the file is not there or not readable, a row is not of this form, or two rows differ on a prompt.
    """
    found: dict[str, str] = {}
    stream = read_records(path, container_of(path), Stats())
    for item in stream:
        if isinstance(item, Problem):
            raise UsageError(item.reason, where=item.where, fix=item.fix)
        where = f"{path}, {item.unit} {item.row}"
        for key, text in _refined(item.value) if "data" in item.value else [_row(item.value, where)]:
            if found.setdefault(key, text) != text:
                raise UsageError("another reference answer to the same prompt", where=where, fix="keep one of them")
    return References(found, file_digest(path), path)


def _row(value: Mapping[str, object], where: str) -> tuple[str, str]:
    fix = "write `reference`, a text, and `prompt`, a text or a list of messages"
    if unknown := sorted(set(value) - set(COLUMNS)):
        raise UsageError(
            f"unknown column {unknown[0]!r} (known: {', '.join(COLUMNS)})", where=where, fix="take it out"
        )
    reference, name = value.get("reference"), value.get("id")
    if not isinstance(reference, str) or not reference.strip():
        raise UsageError("there is no reference answer", where=where, fix=fix)
    if isinstance(name, str) and name:
        return name, reference
    prompt = value.get("prompt")
    if isinstance(prompt, str):
        return _key_of_text(prompt), reference
    messages, faults = messages_of(prompt, "prompt")
    if faults:
        raise UsageError(f"{faults[0].field}: {faults[0].reason}", where=where, fix=fix)
    return prompt_id(messages), reference


def _refined(record: Mapping[str, object]) -> list[tuple[str, str]]:
    """Of a record of OpenAI's critiques: each question's last refinement, or the answer that nobody criticised."""
    found = []
    for one in questions(record):
        said = critique(one)
        if said.left_out is None and not said.faults:
            refined = one["critiques"][-1].get("refinement") if one["critiques"] else None
            text = str(refined or one["answer"])
            found.append((_key_of_text(said.prompt[0]["content"]), text))
    return found


def _only_turn(prompt: Sequence[Message]) -> str | None:
    """The text of the user's turn where the prompt has no other turn, but perhaps a system message."""
    turns = [message for message in prompt if message["role"] != "system"]
    return turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else None


def _key_of_text(text: str) -> str:
    return _TEXT + text.strip()
