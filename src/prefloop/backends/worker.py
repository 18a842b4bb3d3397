"""The far side of a pool: a process that holds a model and computes the batches that it is handed.

Parent and worker speak JSON, one message a line, through the worker's standard input and output; nothing is pickled.
A line to the worker is a task; a line back is its outcome, an error with its message, or a line for the log. The
worker ends as soon as its input does, in the middle of a batch too, so none outlives its parent, however that ended
(tests/backends/test_pool.py).

This module imports no torch.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

from prefloop.backends.base import (
    AnswerScoreRequest,
    Backend,
    Choice,
    ChooseRequest,
    GenerateRequest,
    Generation,
    Logits,
    PairScoreRequest,
    Refusal,
    Request,
    Result,
    RewardRequest,
    Sampling,
    Score,
    ScoreRequest,
    Withheld,
    request_json,
)
from prefloop.errors import PrefloopError, UsageError

Message = dict[str, Any]

_REQUESTS: dict[str, Callable[..., Request]] = {
    kind.verb: kind
    for kind in (GenerateRequest, ScoreRequest, AnswerScoreRequest, ChooseRequest, PairScoreRequest, RewardRequest)
}
_RESULTS: dict[str, Callable[..., Result]] = {
    kind.__name__: kind for kind in (Generation, Score, Choice, Logits, Refusal, Withheld)
}


class OutOfMemoryError(RuntimeError):
    """A worker's GPU is full. Named as torch's own, by which it is told what to do about it."""


def write_requests(requests: Sequence[Request]) -> list[Message]:
    return [request_json(request) for request in requests]


def read_requests(written: Sequence[Message]) -> list[Request]:
    """The inverse of `write_requests`, after JSON has made lists of the tuples."""
    requests = []
    for fields in written:
        values = {name: _tuples(value) for name, value in fields.items() if name != "verb"}
        if "sampling" in values:
            values["sampling"] = Sampling(**values["sampling"])
        requests.append(_REQUESTS[fields["verb"]](**values))
    return requests


def write_results(results: Sequence[Result]) -> list[Message]:
    return [{"kind": type(result).__name__, **asdict(result)} for result in results]


def read_results(written: Sequence[Message]) -> list[Result]:
    """The inverse of `write_results`: JSON keeps every bit of a float, infinities as Python writes them included."""
    return [_RESULTS[fields["kind"]](**{k: v for k, v in fields.items() if k != "kind"}) for fields in written]


def write_error(error: Exception) -> Message:
    """An error for the parent to raise: what a user can act on as it is, anything else with its traceback."""
    if isinstance(error, PrefloopError):
        kind = "usage" if isinstance(error, UsageError) else "failed"
        return {"kind": kind, "what": error.what, "where": error.where, "fix": error.fix}
    if isinstance(error, RuntimeError) and type(error).__name__ == "OutOfMemoryError":
        return {"kind": "memory", "what": str(error)}
    return {"kind": "bug", "what": "".join(traceback.format_exception(error))}


def read_error(written: Message) -> Exception:
    """The inverse of `write_error`."""
    what = written["what"]
    match written["kind"]:
        case "usage":
            return UsageError(what, where=written["where"], fix=written["fix"])
        case "failed":
            return PrefloopError(what, where=written["where"], fix=written["fix"])
        case "memory":
            return OutOfMemoryError(what)
    return RuntimeError(f"in a worker process:\n{what}")


def serve(open_model: Callable[[Message], Backend]) -> None:
    """Be a worker: open the model that the first message says, then do every task, until the parent is gone.

    Args:
        open_model: from the first message to the model.
    """
    # What libraries print would stand between the messages.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    lock = threading.Lock()

    def send(message: Message) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")
            out.flush()

    tasks: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()
    first = tasks.get()
    if first["logs"]:
        _send_logs(send)
    try:
        backend = open_model(first)
    except Exception as error:
        send({"error": write_error(error)})
        return
    send({"identity": backend.identity, "name": backend.name, "place": backend.place})
    while True:
        task = tasks.get()
        try:
            outcome = _do(backend, task)
        except Exception as error:
            outcome = {"error": write_error(error)}
        send({"task": task["task"], **outcome})


def _do(backend: Backend, task: Message) -> Message:
    backend.batch_size = task["batch_size"]
    requests = read_requests(task["requests"])
    if task["do"] == "plan":
        return {"plan": backend.plan(requests)}
    return {"results": write_results(backend.run(requests))}


def _read(tasks: SimpleQueue[Message]) -> None:
    for line in sys.stdin.buffer:
        if not line.endswith(b"\n"):
            break  # the parent was killed in the middle of it
        tasks.put(json.loads(line))
    os._exit(0)


def _send_logs(send: Callable[[Message], None]) -> None:
    """Our own loggers' lines go to the parent's."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send({"log": [record.name, record.levelno, record.getMessage()]})

    logger = logging.getLogger("prefloop")
    logger.addHandler(Handler(logging.INFO))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
