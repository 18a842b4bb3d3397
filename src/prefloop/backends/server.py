"""One of the servers that run a model: its connections, how much it takes at present, and single calls of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from prefloop.backends.exchange import Answer, Client, Outcome, Rejected, Trouble
from prefloop.backends.throttle import Limit, Spending, backoff
from prefloop.backends.wire import Call
from prefloop.config import EndpointSection
from prefloop.errors import PrefloopError, UsageError

# A server that wants to be left alone for longer than this many seconds stops the run.
LONGEST_RETRY_AFTER = 600.0

Wait = Callable[[Coroutine[Any, Any, Any]], Any]


class Unanswered(PrefloopError):
    """A server did not answer however often it was asked; another one may."""


class Absent(UsageError):
    """A server cannot be reached; another one may be there."""


class Server:
    """One server.

    Args:
        section: of the endpoint.
        url: which of its addresses.
        spending: of all its servers together.
        wait: runs a coroutine in the endpoint's event loop and gives its result.

    Attributes:
        where: names it in messages.
        limit: of calls at one time; learnt while it is asked.
        failed: how often it failed since it last answered.
        not_before: beside others that may be asked, no call is to start here before this time.

    Raises:
        UsageError: the environment variable of the key is not set, or holds no key.
    """

    def __init__(self, section: EndpointSection, url: str, spending: Spending, wait: Wait) -> None:
        self.section, self.spending, self._wait = section, spending, wait
        self.client = Client(section, url)
        self.where = self.client.where
        self.limit = Limit(section.concurrency)
        self.failed, self.not_before = 0, 0.0

    def answered(self) -> None:
        """It answered a call."""
        self.limit.answered()
        self.failed = 0

    def rest(self, now: float, seconds: float | None) -> None:
        """It failed a call: the other servers are asked for a while, and then one call shows whether it is back. What
        fails in that while was under way already and says nothing new."""
        if now >= self.not_before:
            self.failed += 1
            self.not_before = now + (backoff(self.failed) if seconds is None else seconds)

    def room(self, in_flight: int) -> bool:
        """Whether one more call may be under way here."""
        return self.limit.room(in_flight) if not self.failed else in_flight == 0

    def ask(self, call: Call) -> Answer | Rejected:
        """One call by itself, tried again as in `stream`; for the probe, which reads refusals itself."""
        tries = 1
        while isinstance(outcome := self.try_once(call), Trouble):
            if tries > self.section.retries or (outcome.wait or 0) > LONGEST_RETRY_AFTER:
                raise self.given_up(outcome, tries)
            time.sleep(pause(outcome, tries))
            tries += 1
        return outcome

    def try_once(self, call: Call) -> Outcome:
        """One call, one try.

        Raises:
            PrefloopError: it may cost more than is left.
        """
        self.afford(call)
        outcome: Outcome = self._wait(self.client.exchange(call))
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

    def given_up(self, trouble: Trouble, tries: int) -> Unanswered:
        """A call that failed so many times and is not tried again, as an error."""
        if (trouble.wait or 0) > LONGEST_RETRY_AFTER:
            what = f"wants to be left alone for {trouble.wait:.0f} s: {trouble.what}"
        else:
            what = f"a call failed {tries} time{'s' * (tries > 1)}, at last with: {trouble.what}"
        return Unanswered(
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


def pause(trouble: Trouble, tries: int) -> float:
    """Seconds until a call that failed so many times is tried again."""
    return backoff(tries) if trouble.wait is None else trouble.wait
