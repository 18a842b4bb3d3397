"""A worker without a model, for tests/backends/test_pool.py: it does what the text of a request says."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

from prefloop.backends.base import Backend, Generation, Refusal
from prefloop.backends.worker import serve
from prefloop.errors import PrefloopError, UsageError


class OutOfMemoryError(RuntimeError):
    pass


class Scripted(Backend):
    """Answers "index:batch process"; what else a text makes it do stands behind its first blank."""

    def __init__(self, number, of, folder=None, fail=None):
        self.identity, self.name, self.place = {"weights": "scripted"}, "scripted", f"place {number} of {of}"
        if folder is not None:
            Path(folder, f"{number}.pid").write_text(str(os.getpid()))
        if fail == number:
            raise UsageError("there is no such model", where="m", fix="name another")
        if fail == "identity":
            self.identity = {"weights": number}
        logging.getLogger("prefloop.scripted").warning("opened by %s", number)

    def plan(self, requests):
        size = self.batch_size
        return [list(range(i, min(i + size, len(requests)))) for i in range(0, len(requests), size)]

    def run(self, requests):
        results = []
        mark = "+".join(r.messages[0][1].split()[0] for r in requests)
        for request in requests:
            what = request.messages[0][1].split()[1:]
            match what:
                case ["die"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                case ["exit"]:
                    os._exit(3)
                case ["wrong"]:
                    raise UsageError("a bad prompt", where="row 3", fix="mend it")
                case ["fails"]:
                    raise PrefloopError("NaN instead of probabilities", where="m")
                case ["full"]:
                    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
                case ["bug"]:
                    raise KeyError("a bug of ours")
                case ["prints"]:
                    print("{not json", flush=True)
                    os.write(1, b"from C\n")
                case ["sleep", seconds]:
                    time.sleep(float(seconds))
                case ["until", path]:
                    while not Path(path).exists():
                        time.sleep(0.01)
            results.append(Refusal("no") if what == ["no"] else Generation(f"{mark} {os.getpid()}", [1], "stop", 1))
        return results


if __name__ == "__main__":
    sys.setswitchinterval(1e-4)
    serve(lambda first: Scripted(first["number"], first["of"], first.get("folder"), first.get("fail")))
