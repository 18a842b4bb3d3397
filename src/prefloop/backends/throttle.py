"""How many calls a server may have at one time, and how much they may cost. No input or output here."""

from __future__ import annotations

import random
from dataclasses import dataclass

# How a limit begins: at a server that takes more it doubles with every round of answers until the first 429.
START = 8
CUT = 0.75

# Seconds before the first further try; each next one waits twice as long, up to the longest.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0

_random = random.Random()


def backoff(tries: int) -> float:
    """Seconds before the next try of a call that has failed `tries` times: exponential, between the half and the
    whole, so that calls which failed together do not come again together."""
    whole = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (tries - 1))
    return float(whole * _random.uniform(0.5, 1.0))


class Limit:
    """Calls at one time: a 429 shrinks it by a quarter, answers let it grow again (additively, as TCP does).

    Attributes:
        most: never more than this.
        now: the limit at present; at least 1.
        not_before: no call is to start before this time, because the server named one (Retry-After).
        answers: answers so far.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = float(min(START, most))
        self.not_before = 0.0
        self.answers = 0
        self._cut_at: float | None = None

    def room(self, in_flight: int) -> bool:
        """Whether one more call may be under way."""
        return in_flight < int(self.now)

    def answered(self) -> None:
        """A call was answered: one more at a time until the first 429, after that one more a round of answers."""
        self.answers += 1
        step = 1.0 if self._cut_at is None else 1.0 / self.now
        self.now = min(float(self.most), self.now + step)

    def full(self, started: float, now: float, wait: float | None) -> None:
        """The server said 429 to a call that started then. One burst is one cut: calls that were under way already
        when the limit was cut say nothing of the new one."""
        if self._cut_at is None or started >= self._cut_at:
            self.now = max(1.0, self.now * CUT)
            self._cut_at = now
        if wait is not None:
            self.not_before = max(self.not_before, now + wait)


@dataclass
class Spending:
    """Tokens as the server counted them, their price, and what calls under way may cost at most.

    Attributes:
        price_input, price_output: of a million tokens; None where nothing is paid.
        most: the cost never gets above it, as far as the bounds hold.
        earlier: what was paid before.
    """

    price_input: float | None = None
    price_output: float | None = None
    most: float | None = None
    earlier: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    reserved: float = 0.0

    @property
    def priced(self) -> bool:
        return self.price_input is not None or self.price_output is not None

    @property
    def cost(self) -> float:
        """What the calls so far cost, those before included."""
        return self.earlier + self.price((self.prompt_tokens, self.generated_tokens))

    def price(self, tokens: tuple[int, int]) -> float:
        """Of prompt and generated tokens."""
        return (tokens[0] * (self.price_input or 0.0) + tokens[1] * (self.price_output or 0.0)) / 1e6

    def fits(self, bound: tuple[int, int]) -> bool:
        """Whether a call of at most so many tokens can be made within the limit, whatever those under way cost."""
        return self.most is None or self.cost + self.reserved + self.price(bound) <= self.most

    def begin(self, bound: tuple[int, int]) -> None:
        self.reserved += self.price(bound)

    def end(self, bound: tuple[int, int], tokens: tuple[int, int] | None) -> None:
        """A call is over; tokens where the server told them, with an answer or without."""
        self.reserved -= self.price(bound)
        if tokens is not None:
            self.prompt_tokens += tokens[0]
            self.generated_tokens += tokens[1]
