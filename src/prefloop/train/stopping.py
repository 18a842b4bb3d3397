"""What the first Ctrl-C or SIGTERM does while a training runs: it asks, and only the second one insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_first_signal(call: Callable[[], None]) -> Iterator[None]:
    """In the block, the first Ctrl-C or SIGTERM calls `call`; later ones do what they did before.

    Signals belong to the main thread; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        restore()
        call()

    def restore() -> None:
        for name, handler in before.items():
            signal.signal(name, handler)

    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    for name in before:
        signal.signal(name, first)
    try:
        yield
    finally:
        restore()
