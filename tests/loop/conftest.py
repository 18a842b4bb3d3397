"""A small real run: a tiny model, a function that scores its answers, a few prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.tiny_models import tiny_model_folder

from prefloop.config import load_recipe
from prefloop.loop.run import Planned, open_loop, survey
from prefloop.ui.progress import Progress

SCORERS = """
def vowels(prompt, completion):
    return sum(c in "aeiou" for c in completion) / max(len(completion), 1)

def letters(prompt, completion):
    return sum(c.isalpha() for c in completion) / max(len(completion), 1)
"""


@dataclass
class Project:
    """A folder with a recipe, prompts and a scorer, and the command run in it."""

    root: Path

    @property
    def run_dir(self) -> Path:
        return self.root / "out"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "prefloop", *arguments]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PREFLOOP_PLAIN": "1"}

    def prefloop(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expect, done.stderr
        assert expect == 1 or "Traceback" not in done.stderr
        return done

    def run(self, *overrides: str, out: str = "out", expect: int = 0) -> dict[str, Any]:
        done = self.prefloop("run", "recipe.yaml", *overrides, "--out", out, "--json", expect=expect)
        return json.loads(done.stdout.splitlines()[-1]) if expect == 0 else {}

    def run_here(self, *overrides: str, out: str = "out", until: str | None = None) -> dict[str, Any]:
        """The same in this process: no second start of Python, which is most of a tiny run's time."""
        with (
            self._entered(),
            open_loop(load_recipe("recipe.yaml", list(overrides)), self.root / out, self._cache) as loop,
            Progress(quiet=True) as progress,
        ):
            return loop.execute(progress, until)

    def planned(self, *overrides: str, out: str = "out") -> list[Planned]:
        """Every stage with its state; computes nothing."""
        with self._entered():
            return survey(load_recipe("recipe.yaml", list(overrides)), self.root / out, self._cache)

    @property
    def _cache(self) -> Path:
        return self.root / ".prefloop" / "cache.db"

    @contextmanager
    def _entered(self) -> Iterator[None]:
        before = Path.cwd()
        os.chdir(self.root)
        # Two projects each have a module of this name.
        sys.modules.pop("scorers", None)
        sys.path.insert(0, str(self.root))
        try:
            yield
        finally:
            sys.path.remove(str(self.root))
            os.chdir(before)

    def success(self, stage: str, out: str = "out") -> dict[str, Any]:
        (folder,) = (self.root / out / "stages").glob(f"*-{stage}")
        return json.loads((folder / "_SUCCESS.json").read_text())

    def contents(self, out: str = "out") -> dict[str, str]:
        """Digest of every stage's rows or files, the report's apart: it shows times."""
        marks = sorted((self.root / out / "stages").glob("*/_SUCCESS.json"))
        return {m.parent.name: json.loads(m.read_text())["content"] for m in marks if "report" not in m.parent.name}


def write_prompts(path: Path, numbers: range) -> None:
    path.write_text("".join(json.dumps({"prompt": f"Say the number {n} in words."}) + "\n" for n in numbers))


def make_project(root: Path, **changes: Any) -> Project:
    root.mkdir(parents=True, exist_ok=True)
    (root / "scorers.py").write_text(SCORERS)
    write_prompts(root / "prompts.jsonl", range(24))
    recipe = {
        "name": "tiny",
        "model": {"path": str(tiny_model_folder("llama")), "batch_size": 16},
        "prompts": "prompts.jsonl",
        "sample": {"n": 3, "max_new_tokens": 8},
        "rate": {"type": "function", "callable": "scorers:vowels"},
        "train": {"batch_size": 4, "micro_batch_size": 2, "epochs": 2, "learning_rate": 1e-3, "save_steps": 2},
        "evaluate": {"holdout": 0.2, "bootstrap": 200, "checkers": {"own": {"letters": "scorers:letters"}}},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe | changes))
    return Project(root)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Rounding depends on the number of threads; runs in this process are to equal those in others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """One finished run, to read only."""
    made = make_project(tmp_path_factory.mktemp("finished"))
    made.run()  # by the command: the runs in the tests' own process are compared with it
    return made
