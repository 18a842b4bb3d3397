"""Many calls of one server at one time: who is asked when, further tries, and when to stop.

The event loop runs in a thread of its own, so that the caller may be anything, another event loop too, and so that
sockets are served while it stores an answer.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from prefloop.backends.base import Arrival, Refusal
from prefloop.backends.exchange import Answer, Client, Outcome, Rejected, Trouble
from prefloop.backends.throttle import Limit, Spending, backoff
from prefloop.backends.wire import Call
from prefloop.config import EndpointSection
from prefloop.errors import PrefloopError

T = TypeVar("T")
Box = SimpleQueue[Arrival | None]

# A server that wants to be left alone for longer than this many seconds stops the run.
LONGEST_RETRY_AFTER = 600.0
# Seconds until it is looked again whether answers were taken out of the box.
LOOK_AGAIN = 0.01


class Endpoint:
    """One server.

    Attributes:
        where: names it in messages.
        limit: of calls at one time; learnt while it is asked.
        spending: tokens and their cost.

    Raises:
        UsageError: the environment variable of the key is not set, or holds no key.
    """

    def __init__(self, section: EndpointSection) -> None:
        self.section = section
        self.client = Client(section)
        self.where = self.client.where
        self.limit = Limit(section.concurrency)
        self.spending = Spending(section.price_input, section.price_output, section.max_cost)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=self.where, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the connections. The endpoint is of no use afterwards; closing twice is fine."""
        if self._loop.is_closed():
            return
        self._wait(self.client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

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

    def ask(self, call: Call) -> Answer | Rejected:
        """One call by itself, tried again as in `stream`; for the probe, which reads refusals itself."""
        tries = 1
        while isinstance(outcome := self.try_once(call), Trouble):
            if tries > self.section.retries or (outcome.wait or 0) > LONGEST_RETRY_AFTER:
                raise self.given_up(outcome, tries)
            time.sleep(_pause(outcome, tries))
            tries += 1
        return outcome

    def try_once(self, call: Call) -> Outcome:
        """One call, one try.

        Raises:
            PrefloopError: it may cost more than is left.
        """
        self.afford(call)
        outcome = self._wait(self.client.exchange(call))
        self.spending.end((0, 0), self.tokens(call, outcome))
        return outcome

    def afford(self, call: Call) -> None:
        """Raises PrefloopError where a call may cost more than is left."""
        if not self.spending.fits(call.most_tokens):
            raise self.too_dear()

    def tokens(self, call: Call, outcome: Outcome) -> tuple[int, int] | None:
        """What a call is charged: what the server counted, also for an answer of no use. Where there is a limit, an
        answer that was not counted may have cost its bound."""
        uncounted = isinstance(outcome, Answer) and outcome.tokens is None and self.spending.most is not None
        return call.most_tokens if uncounted else outcome.tokens

    def given_up(self, trouble: Trouble, tries: int) -> PrefloopError:
        """A call that failed so many times and is not tried again, as an error."""
        if (trouble.wait or 0) > LONGEST_RETRY_AFTER:
            what = f"wants to be left alone for {trouble.wait:.0f} s: {trouble.what}"
        else:
            what = f"a call failed {tries} time{'s' * (tries > 1)}, at last with: {trouble.what}"
        return PrefloopError(
            what,
            where=self.where,
            fix="see the server's log; start the same command again when it works: what was answered is kept",
        )

    def too_dear(self) -> PrefloopError:
        """The limit of cost, as an error."""
        spent = self.spending
        before = f" and {spent.earlier:.6g} before" if spent.earlier else ""
        return PrefloopError(
            f"the next call may cost more than endpoint.max_cost={spent.most:g} leaves: {spent.cost:.6g} is spent, on "
            f"{spent.prompt_tokens:,} prompt and {spent.generated_tokens:,} generated tokens{before}",
            where=self.where,
            fix="raise endpoint.max_cost and start the same command again: what was answered is kept, not paid twice",
        )

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class _Batch:
    """The calls of one `stream`. Runs in the endpoint's thread, and is the only one to start calls there."""

    def __init__(self, endpoint: Endpoint, calls: Sequence[Call], box: Box) -> None:
        self.endpoint, self.calls, self.box = endpoint, calls, box
        self.limit, self.spending, self.retries = endpoint.limit, endpoint.spending, endpoint.section.retries
        # (when it may start, index): a heap, so calls go out in their order, those tried again when their time comes.
        self.ready = [(0.0, index) for index in range(len(calls))]
        self.running: dict[asyncio.Task[Outcome], tuple[int, float]] = {}
        self.tries = [0] * len(calls)
        # How many answers the endpoint had given when a call last met a 429.
        self.answers_then = [-1] * len(calls)
        self.failure: PrefloopError | None = None

    async def run(self) -> None:
        """Until all is answered, or something failed and all that was under way then is over."""
        try:
            while self.running or (self.ready and self.failure is None):
                pause = self._start()
                if not self.running:
                    await asyncio.sleep(pause or 0.0)
                    continue
                done, _ = await asyncio.wait(self.running, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._take(*self.running.pop(task), task.result())
        finally:
            for task in self.running:
                task.cancel()
            await asyncio.gather(*self.running, return_exceptions=True)
            for index, _ in self.running.values():
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
            if not self.limit.room(len(self.running)):
                return None
            if (pause := max(when, self.limit.not_before) - now) > 0:
                return pause
            # Who stores the answers may be slower than the server, and a kill would lose what is not stored.
            if self.box.qsize() >= self.limit.most:
                return LOOK_AGAIN
            bound = self.calls[index].most_tokens
            if not self.spending.fits(bound):
                # What is under way may cost less than its bound, and then there is room.
                if not self.running:
                    self.failure = self.endpoint.too_dear()
                return None
            heapq.heappop(self.ready)
            self.spending.begin(bound)
            task = asyncio.create_task(self.endpoint.client.exchange(self.calls[index]))
            self.running[task] = index, now
        return None

    def _take(self, index: int, started: float, outcome: Outcome) -> None:
        """What became of a call."""
        call = self.calls[index]
        self.spending.end(call.most_tokens, self.endpoint.tokens(call, outcome))
        if isinstance(outcome, Answer):
            self.limit.answered()
            texts = {"path": call.path, "request": call.body, "response": outcome.text}
            self.box.put(Arrival(index, outcome.result, texts))
        elif isinstance(outcome, Rejected):
            result = self.endpoint.client.refusal(call, outcome)
            if isinstance(result, Refusal):
                self.box.put(Arrival(index, result))
            else:
                self.failure = self.failure or result
        else:
            self._again(index, started, outcome)

    def _again(self, index: int, started: float, trouble: Trouble) -> None:
        """Put a call back, or give up."""
        now = time.monotonic()
        if trouble.full:
            self.limit.full(started, now, trouble.wait)
        # A full server that answers others meanwhile is no reason to give up.
        if not trouble.full or self.limit.answers == self.answers_then[index]:
            self.tries[index] += 1
        self.answers_then[index] = self.limit.answers
        if self.tries[index] > self.retries or (trouble.wait or 0) > LONGEST_RETRY_AFTER:
            self.failure = self.failure or self.endpoint.given_up(trouble, self.tries[index])
        else:
            heapq.heappush(self.ready, (now + _pause(trouble, max(1, self.tries[index])), index))


def _pause(trouble: Trouble, tries: int) -> float:
    return backoff(tries) if trouble.wait is None else trouble.wait


def _rest(box: SimpleQueue[T]) -> Iterator[T]:
    """What else is in the box."""
    try:
        while True:
            yield box.get_nowait()
    except Empty:
        return
