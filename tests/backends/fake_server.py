"""A server of the OpenAI API for tests, on a real socket, that answers well or misbehaves as it is told.

`FakeServer(answer)` calls `answer(seen)` for each POST and does what the `Reply` says. By itself it answers a chat
with "re: " and the last message, gives log-probabilities where they are asked for, and scores as vLLM does.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# The alternatives to the first word: a label with and without blank, another label, and a word that is no label.
TOP = [("A", 0.5), (" A", 0.1), ("B", 0.2), ("The", 0.1)]


@dataclass
class Seen:
    """A request as it came."""

    number: int  # of this server's POSTs, the probe's included, from 0
    path: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def text(self) -> str:
        return self.body["messages"][-1]["content"]

    @property
    def probes(self) -> bool:
        return self.path == "/v1/chat/completions" and self.text == "Say hello."


@dataclass
class Reply:
    """What is done: `cut` closes the connection without an answer, `torn` in the middle of it."""

    status: int = 200
    json: Any = None
    raw: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    torn: bool = False


def error(status: int, message: str, **headers: str) -> Reply:
    return Reply(status, {"error": {"message": message}}, headers={k.replace("_", "-"): v for k, v in headers.items()})


def chat(seen: Seen, text: str | None = None, finish: str = "stop", tokens: tuple[int, int] = (10, 5)) -> Reply:
    """A good answer."""
    message = {"role": "assistant", "content": f"re: {seen.text}" if text is None else text}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
    if seen.body.get("logprobs"):
        top = [{"token": word, "logprob": math.log(p)} for word, p in TOP][: seen.body["top_logprobs"]]
        choice["logprobs"] = {"content": [{"token": "The", "logprob": top[-1]["logprob"], "top_logprobs": top}]}
    return Reply(json={"model": seen.body["model"], "choices": [choice], "usage": usage(tokens)})


def usage(tokens: tuple[int, int]) -> dict[str, int]:
    return {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}


def logp(token: int) -> float:
    """What the server thinks of an id, whatever stands before it."""
    return -0.01 * token


def score(seen: Seen) -> Reply:
    """`prompt_logprobs` in vLLM's form."""
    ids = seen.body["prompt"]
    entries: list[Any] = [None]
    entries += [{str(i): {"logprob": logp(i), "rank": 3}, "0": {"logprob": -0.1, "rank": 1}} for i in ids[1:]]
    choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": entries}
    return Reply(json={"choices": [choice], "usage": usage((len(ids), 1))})


def echo(seen: Seen) -> Reply:
    """`echo` with ids in the place of the tokens' texts."""
    ids = [*seen.body["prompt"], 7]
    logprobs = {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": [None, *(logp(i) for i in ids[1:])]}
    return Reply(json={"choices": [{"text": "…", "finish_reason": "length", "logprobs": logprobs}]})


def good(seen: Seen) -> Reply:
    return score(seen) if seen.path == "/v1/completions" else chat(seen)


class FakeServer:
    """Serves in a thread of its own while the `with` block runs.

    Attributes:
        seen: every POST, in the order of arrival.
        answered: texts of chats that got a whole answer with status 200, without the probe's.
        most_in_flight: the most POSTs at one time.
        seconds: spent on POSTs, those at one time each by itself: what they would take one by one.
    """

    def __init__(
        self,
        answer: Callable[[Seen], Reply] = good,
        models: Any = ("m",),
        key: str | None = None,
        latency: float = 0.0,
    ) -> None:
        self.answer, self.models, self.key, self.latency = answer, models, key, latency
        self.seen: list[Seen] = []
        self.answered: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.seconds = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> list[Seen]:
        """All but the probe's hello."""
        return [s for s in self.seen if not s.probes]

    def __enter__(self) -> FakeServer:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]
            started.set()

        def run() -> None:
            self._loop.run_until_complete(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._server.close()
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client is gone, or the server stops
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False when the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            said = headers.get("authorization", "nothing")
            return await self._write(writer, error(401, f"Incorrect API key provided: {said}"))
        if method == "GET":
            if isinstance(self.models, Reply):
                await asyncio.sleep(self.models.delay)
                return await self._write(writer, self.models)
            data = [{"id": name, "object": "model"} for name in self.models]
            return await self._write(writer, Reply(json={"object": "list", "data": data}))
        seen = Seen(len(self.seen), path, json.loads(body), headers)
        self.seen.append(seen)
        self.in_flight += 1
        began = time.monotonic()
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            reply = self.answer(seen)
            await asyncio.sleep(reply.delay or self.latency)
            if reply.cut:
                return False
            whole = reply.status == 200 and not reply.torn and reply.raw is None
            if whole and "messages" in seen.body and not seen.probes:
                self.answered[seen.text] += 1
            return await self._write(writer, reply)
        finally:
            self.in_flight -= 1
            self.seconds += time.monotonic() - began

    async def _write(self, writer: asyncio.StreamWriter, reply: Reply) -> bool:
        content = (json.dumps(reply.json) if reply.raw is None else reply.raw).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **reply.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        sent = content[: len(content) // 2] if reply.torn else content
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{lines}\r\n".encode() + sent)
        await writer.drain()
        return not reply.torn
