"""A training that is killed and started again ends as an undisturbed one: equal bits in equal order."""

from __future__ import annotations

import functools
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import RESUME, make_rows, run, weights

from prefloop.config import LoraSection
from prefloop.errors import Interrupted, UsageError
from prefloop.store import atomic
from prefloop.train import adapters, checkpoints
from prefloop.train.meter import SPEEDS
from prefloop.train.rhythm import Rhythm
from tiny_models import tiny_model_folder

STEPS = 12


class Killed(BaseException):
    """Stands for a kill where a process of its own would cost seconds."""


def kill(*_: object) -> None:
    raise Killed


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_speed(records: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Records by kind and step, the later one of two: how a reader of metrics.jsonl takes them."""
    return {(r["kind"], r["step"]): {k: v for k, v in r.items() if k not in SPEEDS} for r in records}


@functools.cache
def undisturbed(lora: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[Any, Any]]:
    """Final weights, result and records of the whole training."""
    with tempfile.TemporaryDirectory() as place:
        records: list[dict[str, Any]] = []
        result = run(Path(place, "t"), tiny_model_folder("llama"), **{**RESUME, "lora": lora}, records=records)
        assert result["steps"] == STEPS
        return weights(Path(place, "t")), result, without_speed(records)


@pytest.mark.parametrize(("lora", "killed_at"), [(True, 3), (True, 5), (True, 8), (True, 11), (False, 7)])
def test_resume_is_exact(
    lora: bool, killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """3: before any checkpoint; 5, 11: between two; 8: at the end of an epoch, where a checkpoint was just taken."""
    records: list[dict[str, Any]] = []
    begin = Rhythm.on_step_begin

    def die(self: Rhythm, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == killed_at:
            raise Killed
        begin(self, args, state, control, **more)

    settings = {**RESUME, "lora": lora}
    with monkeypatch.context() as patch:
        patch.setattr(Rhythm, "on_step_begin", die)
        with pytest.raises(Killed):
            run(tmp_path / "t", tiny_model_folder("llama"), **settings, records=records)
    before = len(records)
    torch.manual_seed(999)  # whatever state the new process starts from must not matter
    with caplog.at_level("INFO", "prefloop"):
        result = run(tmp_path / "t", tiny_model_folder("llama"), **settings, records=records)

    expected_weights, expected_result, expected_records = undisturbed(lora)
    assert same(weights(tmp_path / "t"), expected_weights)
    assert without_speed(records) == expected_records
    assert result == expected_result
    resumed = killed_at // RESUME["save_steps"] * RESUME["save_steps"]
    assert records[before]["step"] == (resumed + 1 if resumed else 0), "it went on from the last checkpoint"
    assert (f"training goes on from step {resumed} of {STEPS}" in caplog.messages) is (resumed > 0)
    assert not list((tmp_path / "t").glob("checkpoint-*")), "a finished training keeps no checkpoints"


def killed(folder: Path, where: str, which: int) -> None:
    """Run the training in a process that kills itself."""
    child = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("killed_run.py"),
            folder,
            tiny_model_folder("llama"),
            where,
            str(which),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr


@pytest.fixture
def single_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize(
    ("where", "which", "complete"),
    [
        ("save", 2, [4]),
        pytest.param("step", 9, [4, 8], marks=pytest.mark.slow),
        pytest.param("save", 1, [], marks=pytest.mark.slow),
        pytest.param("seal", 1, [], marks=pytest.mark.slow),
        pytest.param("seal", 2, [4], marks=pytest.mark.slow),
        pytest.param("final", 3, None, marks=pytest.mark.slow),
        *(
            pytest.param("step", step, None, marks=pytest.mark.slow)
            for step in random.Random(20).sample(range(1, STEPS), 6)
        ),
    ],
)
def test_a_real_kill(where: str, which: int, complete: list[int] | None, tmp_path: Path) -> None:
    killed(tmp_path / "t", where, which)
    found = [p for p in sorted((tmp_path / "t").glob("checkpoint-*")) if (p / checkpoints.MARK).exists()]
    if complete is not None:
        assert [checkpoints.step_of(p) for p in found] == complete
    run(tmp_path / "t", tiny_model_folder("llama"), **RESUME)
    assert same(weights(tmp_path / "t"), undisturbed()[0])


def test_a_finished_training_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model_folder("llama")
    first = run(tmp_path / "t", model)
    monkeypatch.setattr("prefloop.train.run.load_model", None)  # would fail if it were called
    assert run(tmp_path / "t", model) == first
    monkeypatch.undo()
    assert run(tmp_path / "t", model, seed=8)["fingerprint"] != first["fingerprint"]


def test_other_settings_do_not_continue_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model_folder("llama")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "clear", kill)
        with pytest.raises(Killed):
            run(tmp_path / "t", model, **RESUME)
    assert len(list((tmp_path / "t").glob("checkpoint-*"))) == checkpoints.KEPT
    records: list[dict[str, Any]] = []
    run(tmp_path / "t", model, **{**RESUME, "learning_rate": 5e-4}, records=records)
    assert records[0]["step"] == 0


def test_a_smaller_micro_batch_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an out-of-memory the checkpoint counts, and its place in the data is the same for any micro-batch."""
    model = tiny_model_folder("llama")
    settings = {**RESUME, "lora": LoraSection(r=4, alpha=8), "save_steps": 3}  # checkpoints inside of epochs
    seen: list[tuple[int, list[str]]] = []
    begin, end = Rhythm.on_step_begin, Rhythm.on_step_end

    def note(self: Rhythm, args: Any, state: Any, control: Any, **more: Any) -> None:
        seen.append((state.global_step, list(self.meter.step_ids)))
        end(self, args, state, control, **more)

    def die(self: Rhythm, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 7:
            raise Killed
        begin(self, args, state, control, **more)

    monkeypatch.setattr(Rhythm, "on_step_end", note)
    run(tmp_path / "whole", model, **settings)
    order = dict(seen)
    with monkeypatch.context() as patch:
        patch.setattr(Rhythm, "on_step_begin", die)
        with pytest.raises(Killed):
            run(tmp_path / "t", model, **settings)
    seen.clear()
    result = run(tmp_path / "t", model, **{**settings, "micro_batch_size": 1, "gradient_checkpointing": True})
    assert [step for step, _ in seen] == list(range(7, STEPS + 1)), "it went on from checkpoint 6"
    assert dict(seen) == {step: order[step] for step in range(7, STEPS + 1)}
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "t")
    assert max(float((whole[k] - resumed[k]).abs().max()) for k in whole) < 1e-5
    monkeypatch.setattr("prefloop.train.run.load_model", None)
    assert run(tmp_path / "t", model, **settings) == result, "a finished training is not repeated either"


def test_a_checkpoint_of_shards_is_not_for_a_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the processes are launched is no part of what is trained, so such a checkpoint is found, and kept."""
    model = tiny_model_folder("llama")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "clear", kill)
        with pytest.raises(Killed):
            run(tmp_path / "t", model, **RESUME)
    (tmp_path / "t" / "trained.json").unlink()
    newest = max((tmp_path / "t").glob("checkpoint-*"), key=checkpoints.step_of)
    (newest / adapters.SHARDS).mkdir()
    with pytest.raises(UsageError, match="shared out over processes"):
        run(tmp_path / "t", model, **RESUME)
    assert newest.is_dir()


def test_a_checkpoint_that_lost_a_file_does_not_count(tmp_path: Path) -> None:
    for step in (4, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"state")
        checkpoints.seal(folder, "f")
    (tmp_path / "checkpoint-8" / "optimizer.pt").write_bytes(b"sta")
    assert checkpoints.latest(tmp_path, "f") == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-8").exists()


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (4, 8, 12, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        checkpoints.seal(folder, "f")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-12"]


def test_a_removal_cut_short_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"state")
        checkpoints.seal(tmp_path / f"checkpoint-{step}", "f")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", kill)
        with pytest.raises(Killed):
            checkpoints.clear(tmp_path)
    assert checkpoints.latest(tmp_path, "f") == tmp_path / "checkpoint-8"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-8"]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    model, records = tiny_model_folder("llama"), []

    def on_log(record: dict[str, Any]) -> None:
        records.append(record)
        if record["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    class Records(list[dict[str, Any]]):
        append = staticmethod(on_log)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"step 6 of 12.*\n.*same command"):
        run(tmp_path / "t", model, **RESUME, records=Records())
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoints.step_of(max((tmp_path / "t").glob("checkpoint-*"), key=checkpoints.step_of)) == 6
    run(tmp_path / "t", model, **RESUME)
    assert same(weights(tmp_path / "t"), undisturbed()[0])


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_a_malicious_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_model_folder("llama")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "clear", kill)
        with pytest.raises(Killed):
            run(tmp_path / "t", model, **RESUME)
    (tmp_path / "t" / "trained.json").unlink()
    newest = max((tmp_path / "t").glob("checkpoint-*"), key=checkpoints.step_of)
    mark = atomic.read_json(newest / checkpoints.MARK)
    assert not [name for name in mark["files"] if name.endswith(".bin")], "no pickled training arguments"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        before = (newest / name).read_bytes()
        torch.save({"state": Bomb()}, newest / name)
        mark["files"][name] = (newest / name).stat().st_size
        atomic.write_json(newest / checkpoints.MARK, mark)
        with pytest.raises(pickle.UnpicklingError):
            run(tmp_path / "t", model, **RESUME)
        (newest / name).write_bytes(before)
        mark["files"][name] = len(before)
    assert not (tmp_path / "exploded").exists()


def test_rows_of_each_epoch_are_seen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    end = Rhythm.on_step_end

    def note(self: Rhythm, args: Any, state: Any, control: Any, **more: Any) -> None:
        seen.append(list(self.meter.step_ids))
        end(self, args, state, control, **more)

    monkeypatch.setattr(Rhythm, "on_step_end", note)
    rows = make_rows(10)
    run(tmp_path / "t", tiny_model_folder("llama"), rows, epochs=2)
    assert [len(ids) for ids in seen] == [4, 4, 2] * 2
    for epoch in (seen[:3], seen[3:]):
        assert sorted(i for ids in epoch for i in ids) == sorted(r["id"] for r in rows)
    assert seen[0] != seen[3]
