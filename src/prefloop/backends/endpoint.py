"""Many calls of a model's servers at one time: who is asked when and where, further tries, and when to stop.

The event loop runs in a thread of its own, so that the caller may be anything, another event loop too, and so that
sockets are served while it stores an answer.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from prefloop.backends.base import Arrival, Refusal
from prefloop.backends.exchange import Answer, Outcome, Trouble
from prefloop.backends.server import LONGEST_RETRY_AFTER, Absent, Server, Unanswered, pause
from prefloop.backends.throttle import Spending
from prefloop.backends.wire import Call
from prefloop.config import EndpointSection
from prefloop.errors import PrefloopError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Box = SimpleQueue[Arrival | None]

# Seconds until it is looked again whether answers were taken out of the box.
LOOK_AGAIN = 0.01


class Endpoint:
    """The servers of one model, one at each address. Whichever answers a call, the answer counts as the model's.

    Attributes:
        servers: that are asked.
        spending: tokens and their cost, of all of them.

    Raises:
        UsageError: the environment variable of the key is not set, or holds no key.
    """

    def __init__(self, section: EndpointSection) -> None:
        self.section = section
        self.spending = Spending(section.price_input, section.price_output, section.max_cost)
        self.servers = [Server(section, url, self.spending, self._wait) for url in section.urls]
        self._all = tuple(self.servers)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=self.servers[0].where, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the connections. The endpoint is of no use afterwards; closing twice is fine."""
        if self._loop.is_closed():
            return
        for server in self._all:
            self._wait(server.client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def each(self, ask: Callable[[Server], T]) -> list[T]:
        """What each server says. One that does not answer is left out from now on, unless it is the last.

        Raises:
            PrefloopError: as `ask` does, of the last server also that it does not answer.
        """
        said = []
        for server in list(self.servers):
            try:
                said.append(ask(server))
            except (Absent, Unanswered) as error:
                if len(self.servers) == 1:
                    raise
                logger.warning("%s: %s; the model's other servers are asked without it", server.where, error.what)
                self.servers.remove(server)
        return said

    def stream(self, calls: Sequence[Call]) -> Iterator[list[Arrival]]:
        """Make all calls; results as they come in, in any order.

        Raises:
            PrefloopError: a call failed for good, or the limit of cost is reached. Raised when all that was under way
                then has been handed out.
            UsageError: the server refuses the key or the model.
        """
        box: Box = SimpleQueue()
        work = asyncio.run_coroutine_threadsafe(_Batch(self, calls, box).run(), self._loop)
        work.add_done_callback(lambda _: box.put(None))
        try:
            done = False
            while not done:
                group = [box.get(), *_rest(box)]
                done = None in group
                if arrived := [a for a in group if a is not None]:
                    yield arrived
            work.result()
        finally:
            work.cancel()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class _Batch:
    """The calls of one `stream`. Runs in the endpoint's thread, and is the only one to start calls there."""

    def __init__(self, endpoint: Endpoint, calls: Sequence[Call], box: Box) -> None:
        self.servers, self.spending = endpoint.servers, endpoint.spending
        self.calls, self.box, self.retries = calls, box, endpoint.section.retries
        # (when it may start, index): a heap, so calls go out in their order, those tried again when their time comes.
        self.ready = [(0.0, index) for index in range(len(calls))]
        self.running: dict[asyncio.Task[Outcome], tuple[int, float, Server]] = {}
        self.busy: Counter[Server] = Counter()
        self.tries = [0] * len(calls)
        # Tries that ended without an answer, a full server's among them.
        self.failures = [0] * len(calls)
        # Where a call failed last: it is tried elsewhere, if there is room.
        self.failed_at: dict[int, Server] = {}
        # How many answers the endpoint had given when a call last met a 429.
        self.answers_then = [-1] * len(calls)
        self.failure: PrefloopError | None = None

    async def run(self) -> None:
        """Until all is answered, or something failed and all that was under way then is over."""
        try:
            while self.running or (self.ready and self.failure is None):
                wait = self._start()
                if not self.running:
                    await asyncio.sleep(wait or 0.0)
                    continue
                done, _ = await asyncio.wait(self.running, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index, started, server = self.running.pop(task)
                    self.busy[server] -= 1
                    self._take(index, started, server, task.result())
        finally:
            for task in self.running:
                task.cancel()
            await asyncio.gather(*self.running, return_exceptions=True)
            for index, _, _ in self.running.values():
                self.spending.end(self.calls[index].most_tokens, None)
        if self.failure is not None:
            raise self.failure

    def _start(self) -> float | None:
        """Start what may start now.

        Returns:
            Seconds until more may start without any call ending; None when only that makes room.
        """
        while self.failure is None and self.ready:
            now = time.monotonic()
            when, index = self.ready[0]
            # Those with room, the first that may be asked first, then not where it just failed, then the least busy.
            open_at = {s: max(when, s.limit.not_before, s.not_before) for s in self.servers if s.room(self.busy[s])}
            if not open_at:
                return None
            server = min(
                open_at,
                key=lambda s: (max(now, open_at[s]), s is self.failed_at.get(index), self.busy[s] / s.limit.now),
            )
            if (wait := open_at[server] - now) > 0:
                return wait
            # Who stores the answers may be slower than the servers, and a kill would lose what is not stored.
            if self.box.qsize() >= sum(s.limit.most for s in self.servers):
                return LOOK_AGAIN
            bound = self.calls[index].most_tokens
            if not self.spending.fits(bound):
                # What is under way may cost less than its bound, and then there is room.
                if not self.running:
                    self.failure = server.too_dear()
                return None
            heapq.heappop(self.ready)
            self.spending.begin(bound)
            task = asyncio.create_task(server.client.exchange(self.calls[index]))
            self.running[task] = index, now, server
            self.busy[server] += 1
        return None

    def _take(self, index: int, started: float, server: Server, outcome: Outcome) -> None:
        """What became of a call."""
        call = self.calls[index]
        self.spending.end(call.most_tokens, server.tokens(call, outcome))
        if isinstance(outcome, Answer):
            server.answered()
            texts = {"path": call.path, "request": call.body, "response": outcome.text}
            self.box.put(Arrival(index, outcome.result, texts))
        elif isinstance(outcome, Trouble):
            self._again(index, started, server, outcome)
        else:
            result = server.client.refusal(call, outcome)
            if isinstance(result, Refusal):
                self.box.put(Arrival(index, result))
            else:
                self.failure = self.failure or result

    def _again(self, index: int, started: float, server: Server, trouble: Trouble) -> None:
        """Put a call back, or give up."""
        now = time.monotonic()
        if trouble.full:
            server.limit.full(started, now, trouble.wait)
        elif len(self.servers) > 1:
            server.rest(now, trouble.wait)
        answers = sum(s.limit.answers for s in self.servers)
        # A full server that answers others meanwhile is no reason to give up.
        if not trouble.full or answers == self.answers_then[index]:
            self.tries[index] += 1
        self.answers_then[index] = answers
        self.failures[index] += 1
        # Elsewhere at once; when it has failed everywhere, after a pause.
        others = any(not s.failed for s in self.servers if s is not server)
        elsewhere = others and self.failures[index] % len(self.servers) != 0
        too_long = (trouble.wait or 0) > LONGEST_RETRY_AFTER and not others
        if self.tries[index] > self.retries or too_long:
            self.failure = self.failure or server.given_up(trouble, self.tries[index])
        else:
            self.failed_at[index] = server
            wait = 0.0 if elsewhere else pause(trouble, max(1, self.tries[index]))
            heapq.heappush(self.ready, (now + wait, index))


def _rest(box: SimpleQueue[T]) -> Iterator[T]:
    """What else is in the box."""
    try:
        while True:
            yield box.get_nowait()
    except Empty:
        return
