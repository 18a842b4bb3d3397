"""Several workers behind the seam of one backend: processes of this machine that each hold the model.

One of them plans, as one backend would, and whole batches are handed to whoever is free. Every batch is what it would
have been with one worker, so its results are too, to the bit, on the same device and as many threads; and the cache
before it stores and finds the same rows (tests/backends/test_pool.py).

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from prefloop.backends.base import Arrival, Backend, Request, Result
from prefloop.backends.worker import Message, read_error, read_results, write_requests
from prefloop.errors import PrefloopError

logger = logging.getLogger(__name__)

# Seconds that a worker may take to end by itself.
PATIENCE = 5.0


class PoolBackend(Backend):
    """A model held by several processes. Usable like the one that each of them holds.

    Args:
        module: run by Python as a worker; it calls `worker.serve`.
        opening: what the module opens the model by, JSON-able; each worker is also told its `number` from 0 and that
            it is one `of` so many.
        workers: how many processes.
        name: what people call the model.
        batch_size: sequences in one forward pass, as in every backend.

    Raises:
        UsageError: the model cannot be opened; as the first worker says it.
        PrefloopError: a worker ended, now or in a later call. What the others were computing is handed out before.
    """

    def __init__(self, module: str, opening: Message, workers: int, *, name: str, batch_size: int = 64) -> None:
        self.name, self.batch_size = name, batch_size
        self._inbox: SimpleQueue[tuple[_Worker, Message | None]] = SimpleQueue()
        self._tasks = itertools.count()
        self._call: object = None
        self._dead: PrefloopError | None = None
        self._workers: list[_Worker] = []
        logger.info("starting %d workers of %s", workers, name)
        try:
            for number in range(workers):
                self._workers.append(_Worker(module, number, self._inbox))
            for worker in self._workers:
                # All of them say the same of the model.
                worker.send(opening | {"number": worker.number, "of": workers, "logs": worker.number == 0})
            told = [self._receive() for _ in self._workers]
        except BaseException:
            self.close()
            raise
        self.identity: dict[str, Any] = told[0]["identity"]
        if any(other["identity"] != self.identity for other in told):
            self.close()
            raise PrefloopError("its files changed while it was loaded", where=name, fix="start again")
        places = sorted({str(one["place"]) for one in told})
        self.place = f"{workers} workers on {', '.join(places)}"

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """As one worker plans."""
        if not requests:
            return []
        for _, message in self._do("plan", [requests]):
            plan: list[list[int]] = message["plan"]
        return plan

    def run(self, requests: Sequence[Request]) -> list[Result]:
        ((_, group),) = self.run_all([requests])
        return [arrival.result for arrival in group]

    def run_all(self, batches: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Arrival]]]:
        """Compute batches side by side, in any order; a batch is one group.

        Raises:
            PrefloopError: a batch failed, or a worker ended; after all that was under way then.
        """
        for number, message in self._do("run", batches):
            yield number, [Arrival(i, result) for i, result in enumerate(read_results(message["results"]))]

    def close(self) -> None:
        """End the workers. The backend is of no use afterwards; closing twice is fine."""
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.wait()
        self._workers.clear()

    def _do(self, what: str, batches: Sequence[Sequence[Request]]) -> Iterator[tuple[int, Message]]:
        """Hand out tasks in order; their outcomes as they come, each with its number."""
        if not self._workers:
            raise RuntimeError("this backend is closed")
        if self._dead is not None:
            raise self._dead
        self._call = call = object()
        left = deque(enumerate(batches))
        waiting: dict[int | None, int] = {}
        failure: Exception | None = None

        def hand_out(worker: _Worker) -> None:
            if left and failure is None:
                number, batch = left.popleft()
                worker.task = next(self._tasks)
                waiting[worker.task] = number
                requests = write_requests(batch)
                worker.send({"task": worker.task, "do": what, "batch_size": self.batch_size, "requests": requests})

        for worker in self._workers:
            # One that is busy still computes for an earlier call, which was broken off.
            if worker.task is None:
                hand_out(worker)
        while waiting or (left and failure is None):
            if self._call is not call:
                raise RuntimeError("another call was begun before this one was read to its end")
            worker, message = self._inbox.get()
            number = waiting.pop(worker.task, None)
            worker.task = None
            if message is None:
                self._dead = worker.death(self.name)
                failure = failure or self._dead
            elif "error" in message and number is not None:
                failure = failure or read_error(message["error"])
            else:
                # Before the outcome is stored, so that no worker waits for that.
                hand_out(worker)
                if number is not None:
                    yield number, message
        if failure is not None:
            raise failure

    def _receive(self) -> Message:
        """What a worker says of the model that it has opened."""
        worker, message = self._inbox.get()
        if message is None:
            raise worker.death(self.name)
        if "error" in message:
            raise read_error(message["error"])
        return message


class _Worker:
    """A process, and the thread that puts what it says into the inbox: None when it has ended.

    Attributes:
        number: from 0.
        task: what it computes; None while it is free.
    """

    def __init__(self, module: str, number: int, inbox: SimpleQueue[tuple[_Worker, Message | None]]) -> None:
        self.number = number
        self.task: int | None = None
        self._inbox = inbox
        self._process = subprocess.Popen(
            # Without the current folder on its path, where a file may be called as a module.
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # All would say the same there.
            stderr=None if number == 0 else subprocess.DEVNULL,
            # Ctrl-C in a terminal reaches the parent alone, which then ends its workers.
            start_new_session=True,
        )
        threading.Thread(target=self._read, name=f"worker {number}", daemon=True).start()

    def send(self, message: Message) -> None:
        """Give a message; one that has ended says so in the inbox."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """Let it end, in the middle of a batch too."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self) -> int:
        """Until it has ended."""
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def death(self, name: str) -> PrefloopError:
        """What is said of a worker that ended by itself."""
        code = self.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        killed = code == -signal.SIGKILL
        fix = "the machine's memory may be full: lower workers or batch_size of the model; then " if killed else ""
        return PrefloopError(
            f"worker {self.number + 1} (process {self._process.pid}) {how}",
            where=name,
            fix=f"{fix}start the same command again: what was answered is kept",
        )

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # it was killed in the middle of it
                message = json.loads(line)
                if "log" in message:
                    name, level, text = message["log"]
                    logging.getLogger(name).log(level, "%s", text)
                else:
                    self._inbox.put((self, message))
        self._inbox.put((self, None))
