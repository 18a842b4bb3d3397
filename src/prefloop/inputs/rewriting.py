"""How a rewrite of a passage is asked for, and how it is read out of an answer.

A bank holds several wordings of one request. A wording with its passage is one message of the user's; the answer is
plain text, or a JSON object with one key (Dai et al. 2025, LLM-SBM, ask for the latter). What a model is trained to
say is encoded by a JSON encoder; what it says is read by a decoder that repairs. Imports neither torch nor
transformers: planning reads banks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, model_validator

from prefloop.config import RewriteSection
from prefloop.config.base import Section
from prefloop.errors import UsageError
from prefloop.records import Message, PromptRow, Rewrite, content_id

FOLDER = "inputs/rewrite_banks"
PASSAGE = "{passage}"


class Variant(Section):
    """One wording of the request; `id` stands in records."""

    id: str = Field(pattern=r"^[\w.-]+$")
    instruction: str = Field(min_length=1)


class Bank(Section):
    """Wordings of one request.

    Attributes:
        system: the system message of every request, for prompts that have none of their own.
        form: the user's message, with `{instruction}` and `{passage}`.
        reply: what is put behind it where the answer is to be JSON, with `{key}`.
        key: of the JSON object.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    system: str = ""
    form: str = "{instruction}\n\nPassage:\n{passage}"
    reply: str = ""
    key: str = ""
    variants: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> Bank:
        for place in ("{instruction}", PASSAGE):
            if self.form.count(place) != 1:
                raise ValueError(f"form: needs {place} once, and has it {self.form.count(place)} times")
        if any(PASSAGE in text for text in (self.reply, *(variant.instruction for variant in self.variants))):
            raise ValueError(f"{PASSAGE} belongs into form alone")
        ids = [variant.id for variant in self.variants]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"variants: two are called {twice[0]}")
        if bool(self.reply) != bool(self.key):
            raise ValueError("reply and key belong together: give both, or neither for answers in plain text")
        return self


def load(section: RewriteSection) -> Bank:
    """The bank of a section, with the variants that it names.

    Raises:
        UsageError: there is no such bank or variant, the file holds none, or it cannot ask for JSON.
    """
    bank = _read(section.bank)
    if section.answer == "json" and not bank.key:
        raise UsageError(
            "this bank does not say how to answer in JSON",
            where=section.bank,
            fix="give it reply and key, or set sample.rewrite.answer=text",
        )
    if section.variants is None:
        return bank
    known = {variant.id: variant for variant in bank.variants}
    if missing := [name for name in section.variants if name not in known]:
        raise UsageError(
            f"there is no variant {missing[0]!r}", where=section.bank, fix=f"name some of {', '.join(known)}"
        )
    return bank.model_copy(update={"variants": tuple(known[name] for name in section.variants)})


def _read(name: str) -> Bank:
    folder = resources.files("prefloop") / FOLDER
    if not Path(name).suffix and "/" not in name and "\\" not in name:
        file = folder / f"{name}.yaml"
        if not file.is_file():
            known = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
            fix = f"give one of {', '.join(known)}, or the path of a YAML file"
            raise UsageError("there is no such bank of rewriting requests", where=name, fix=fix)
        text = file.read_text(encoding="utf-8")
    elif not Path(name).is_file():
        raise UsageError("there is no such file of rewriting requests", where=name, fix="check the path")
    else:
        text = Path(name).read_bytes().decode("utf-8", "replace")
    try:
        return Bank.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UsageError(f"not readable as YAML: {error}", where=name) from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        fix = "give name, form and variants, each with id and instruction"
        raise UsageError(f"not a bank of rewriting requests: {problems}", where=name, fix=fix) from error


def requests(bank: Bank, section: RewriteSection, row: PromptRow) -> list[Rewrite]:
    """What one passage is asked with: every variant, or the one whose turn it is by the passage's id."""
    variants = bank.variants
    if section.assign == "turn":
        variants = (variants[int(content_id("variant", row["id"]), 16) % len(variants)],)
    key = bank.key if section.answer == "json" else ""
    reply = f"\n\n{bank.reply.replace('{key}', key)}" if key else ""
    return [
        Rewrite(
            document=row["source_id"] or row["id"],
            variant=variant.id,
            system=bank.system,
            request=bank.form.replace("{instruction}", variant.instruction) + reply,
            key=key,
        )
        for variant in variants
    ]


def asked(prompt: Sequence[Message], rewrite: Rewrite) -> list[Message]:
    """A prompt whose last message is a passage, as the request to rewrite it."""
    *before, last = prompt
    content = rewrite["request"].replace(PASSAGE, last["content"])
    system: list[Message] = [{"role": "system", "content": rewrite["system"]}] if rewrite["system"] else []
    if any(message["role"] == "system" for message in before):
        system = []
    return [*system, *before, {**last, "content": content}]


def encode(text: str, rewrite: Rewrite) -> str:
    """The answer that says this rewrite: what a model is trained to write."""
    return json.dumps({rewrite["key"]: text}, ensure_ascii=False) if rewrite["key"] else text


def decode(answer: str, rewrite: Rewrite) -> str | None:
    """The rewrite that an answer says, without outer white space; None where no object with a text can be read.

    Of JSON the text around the object, fences, quotes that are not escaped and an end that is missing are forgiven,
    and so is the key's spelling where there is one entry.
    """
    if not rewrite["key"]:
        return answer.strip()
    found = _object(answer)
    if not isinstance(found, dict):
        return None
    texts = {_plain(str(key)): value for key, value in found.items()}
    value = texts.get(_plain(rewrite["key"]), next(iter(texts.values())) if len(texts) == 1 else None)
    return value.strip() if isinstance(value, str) else None


def _object(answer: str) -> object:
    start, end = answer.find("{"), answer.rfind("}")
    if start < 0:
        return None
    try:
        return json.loads(answer[start : end + 1], strict=False)
    except (ValueError, RecursionError):
        import json_repair

        try:
            found = json_repair.loads(answer[start:])
        except (ValueError, RecursionError):  # a model that says nothing but brackets
            return None
        # Several objects come as a list: the answer is the first.
        return next((one for one in found if isinstance(one, dict)), None) if isinstance(found, list) else found


def _plain(key: str) -> str:
    return re.sub(r"[\W_]+", "", key).casefold()
