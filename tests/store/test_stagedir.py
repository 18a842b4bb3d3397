"""A stage's folder: parts, reconciliation, resume, start over."""

from __future__ import annotations

import json
import os

import pytest

from prefloop.errors import PrefloopError
from prefloop.store import atomic
from prefloop.store.rundir import RunDir


def prompt(i):
    return {"id": f"p{i}", "prompt": [{"role": "user", "content": f"question {i} ä"}], "source_id": None}


def reject(i, reason="too long"):
    return {"id": f"r{i}", "stage": "prompts", "reason": reason, "attempts": 1, "row": "{}"}


def call(i):
    return {"id": f"c{i}", "row_id": f"p{i}", "signal": "judge", "verb": "choose", "request": "{}", "result": "{}"}


@pytest.fixture
def run(tmp_path):
    with RunDir.open(tmp_path / "run") as run:
        yield run


@pytest.fixture
def stage(run):
    return run.stage(3, "rate")


def test_a_stage_from_begin_to_success(stage):
    assert stage.name == "rate"
    assert stage.path.name == "03-rate"
    assert stage.success() is None
    assert not stage.is_done("f1")
    assert stage.begin("f1") == set()
    stage.write_part(
        0,
        [prompt(0), prompt(1)],
        "prompts",
        rejects=[reject(0), reject(1, "empty")],
        tables={"calls": ("calls", [call(0), call(1), call(2)])},
        counts={"cut_off": 1, "seconds": 0.5},
    )
    stage.write_part(1, [prompt(2)], "prompts", rejects=[reject(2)], tables={"calls": ("calls", [])})
    stage.write_part(2, [], "prompts", tables={"calls": ("calls", [])}, counts={"cut_off": 2})
    success = stage.finish("f1", 6, extra={"note": "x"})
    assert success == stage.success()
    assert success["fingerprint"] == "f1"
    assert success["rows"] == {"in": 6, "kept": 3, "rejected": 3}
    assert success["reject_reasons"] == {"empty": 1, "too long": 2}
    assert success["counts"] == {"cut_off": 3, "seconds": 0.5}
    assert success["extra"] == {"note": "x"}
    assert success["seconds"] >= 0
    assert list(stage.rows()) == [prompt(0), prompt(1), prompt(2)]
    assert list(stage.rows("calls")) == [call(0), call(1), call(2)]
    assert list(stage.rows("rejects")) == [reject(0), reject(1, "empty"), reject(2)]
    assert (stage.count(), stage.count("calls")) == (3, 3)
    assert stage.is_done("f1")
    assert not stage.is_done("f2")
    assert sorted(os.listdir(stage.path)) == sorted(
        ["_STARTED.json", "_SUCCESS.json", "rejects.parquet"]
        + [f"{table}-0000{i}.parquet" for table in ("part", "calls") for i in range(3)]
    )


def test_content_does_not_depend_on_the_parts_but_on_rows_and_order(run):
    contents = []
    for number, parts in enumerate(
        ([[0, 1], [2, 3]], [[0, 1, 2, 3]], [[0], [], [1, 2], [3]], [[0, 1], [3, 2]], [[0, 1], [2]]), 1
    ):
        stage = run.stage(number, "x")
        stage.begin("f")
        for index, part in enumerate(parts):
            stage.write_part(index, [prompt(i) for i in part], "prompts")
        contents.append(stage.finish("f", sum(map(len, parts)))["content"])
    assert contents[0] == contents[1] == contents[2]
    assert len(set(contents)) == 3


def test_parts_are_in_the_order_of_their_numbers_not_of_writing(stage):
    stage.begin("f")
    for index in (2, 100_000, 0):
        stage.write_part(index, [prompt(index)], "prompts")
    assert [r["id"] for r in stage.rows()] == ["p0", "p2", "p100000"]


@pytest.mark.parametrize("rows_in", [2, 4])
def test_lost_and_invented_rows_stop_the_stage_with_their_numbers(stage, rows_in):
    stage.begin("f")
    stage.write_part(0, [prompt(0), prompt(1)], "prompts", rejects=[reject(0)])
    with pytest.raises(PrefloopError, match=f"{rows_in} rows came in, but 2 were kept and 1 rejected, 3 in all"):
        stage.finish("f", rows_in)
    assert stage.success() is None


def test_no_rows_at_all(stage):
    stage.begin("f")
    assert stage.finish("f", 0)["rows"] == {"in": 0, "kept": 0, "rejected": 0}
    assert list(stage.rows()) == []
    assert list(stage.rows("rejects")) == []
    assert stage.is_done("f")


def test_begin_keeps_parts_of_the_same_fingerprint(stage):
    stage.begin("f")
    stage.write_part(0, [prompt(0)], "prompts", rejects=[reject(0)])
    stage.write_part(2, [prompt(2)], "prompts")
    assert stage.has_work("f")
    assert not stage.has_work("g")
    assert stage.begin("f") == {0, 2}
    stage.write_part(1, [prompt(1)], "prompts")
    assert stage.finish("f", 4)["reject_reasons"] == {"too long": 1}
    assert not stage.has_work("f")


def test_begin_removes_everything_of_another_fingerprint(stage):
    stage.begin("f")
    stage.write_part(0, [prompt(0)], "prompts", rejects=[reject(0)])
    (stage.path / "notes.txt").write_text("x")
    (stage.path / "checkpoint-5").mkdir()
    assert stage.begin("g") == set()
    assert os.listdir(stage.path) == ["_STARTED.json"]
    assert not stage.has_work("g")


@pytest.mark.parametrize("removals", range(5))
@pytest.mark.parametrize("finished", [False, True])
def test_clearing_that_was_interrupted_leaves_nothing_to_believe(stage, monkeypatch, removals, finished):
    stage.begin("f")
    for index in range(2):
        stage.write_part(index, [prompt(index)], "prompts", tables={"calls": ("calls", [call(index)])})
    if finished:
        stage.finish("f", 2)
    remove, left = atomic.remove, removals

    def stop(path):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "remove", stop)
        if removals < 4 + finished:
            with pytest.raises(KeyboardInterrupt):
                stage.begin("g")
        else:
            stage.begin("g")
    assert not stage.is_done("f")
    assert stage.begin("f") == set()
    assert os.listdir(stage.path) == ["_STARTED.json"]


@pytest.mark.parametrize("fingerprint", ["f", "g"])
def test_begin_starts_a_finished_stage_over(stage, fingerprint):
    stage.begin("f")
    stage.write_part(0, [prompt(0)], "prompts")
    stage.finish("f", 1)
    assert stage.begin(fingerprint) == set()
    assert stage.success() is None
    assert os.listdir(stage.path) == ["_STARTED.json"]


def test_writing_a_part_again_replaces_it_with_its_side_tables(stage):
    stage.begin("f")
    stage.write_part(0, [prompt(0)], "prompts", rejects=[reject(0)], tables={"calls": ("calls", [call(0)])})
    stage.write_part(1, [prompt(9)], "prompts")
    stage.write_part(0, [prompt(1), prompt(2)], "prompts", tables={"calls": ("calls", [call(1)])})
    assert stage.finish("f", 3)["rows"] == {"in": 3, "kept": 3, "rejected": 0}
    assert list(stage.rows("calls")) == [call(1)]


def test_a_part_with_a_bad_row_leaves_nothing(stage):
    stage.begin("f")
    with pytest.raises(PrefloopError, match=r"part-00000\.parquet, row 1"):
        stage.write_part(
            0, [prompt(0), {"id": "x"}], "prompts", rejects=[reject(0)], tables={"calls": ("calls", [call(0)])}
        )
    assert os.listdir(stage.path) == ["_STARTED.json"]


def test_a_stage_that_lost_a_file_is_not_done(stage):
    stage.begin("f")
    stage.write_part(0, [prompt(0)], "prompts")
    stage.finish("f", 1)
    (stage.path / "part-00000.parquet").write_bytes(b"")
    assert not stage.is_done("f")
    (stage.path / "part-00000.parquet").unlink()
    assert not stage.is_done("f")


def test_unknown_tables_are_errors(stage):
    stage.begin("f")
    stage.write_part(0, [prompt(0)], "prompts")
    with pytest.raises(PrefloopError, match="'cals'"):
        stage.rows("cals")
    for name in ("part", "rejects", "a-b", "../x"):
        with pytest.raises(ValueError, match="names of side tables"):
            stage.write_part(1, [], "prompts", tables={name: ("calls", [])})


def test_work_without_begin_is_refused(stage):
    with pytest.raises(RuntimeError, match="begin"):
        stage.write_part(0, [], "prompts")
    stage.begin("f")
    with pytest.raises(RuntimeError, match="begin"):
        stage.finish("g", 0)
    stage.finish("f", 0)
    with pytest.raises(RuntimeError, match="begin"):
        stage.write_part(0, [], "prompts")


def test_seconds_add_up_over_interrupted_runs(stage, monkeypatch):
    from prefloop.store import stagedir

    clock = iter([0.0, 10.0, 1000.0, 1005.0, 1006.0])
    monkeypatch.setattr(stagedir.time, "monotonic", lambda: next(clock))
    stage.begin("f")
    stage.write_part(0, [prompt(0)], "prompts")
    stage.begin("f")
    stage.write_part(1, [prompt(1)], "prompts")
    assert stage.finish("f", 2)["seconds"] == 16.0


def test_rows_are_streamed(stage):
    stage.begin("f")
    for index in range(2):
        stage.write_part(index, [prompt(i) for i in range(600)], "prompts")
    rows = stage.rows()
    next(rows)
    # The second file is not touched before the first is read.
    (stage.path / "part-00001.parquet").write_bytes(b"")
    for _ in range(599):
        next(rows)
    with pytest.raises(PrefloopError, match="part-00001"):
        next(rows)


def test_files_of_a_stage(run):
    stage = run.stage(5, "train")
    stage.begin("f")
    (stage.path / "checkpoint-1").mkdir()
    (stage.path / "checkpoint-1" / "optimizer.pt").write_text("x")
    (stage.path / "adapter.safetensors").write_text("weights")
    assert stage.has_work("f")
    assert stage.begin("f") == set()
    assert (stage.path / "checkpoint-1" / "optimizer.pt").exists()
    first = stage.finish_files("f", extra={"loss": 0.5})
    assert first["files"] == {"adapter.safetensors": 7}
    assert first["extra"] == {"loss": 0.5}
    assert stage.is_done("f")
    (stage.path / "adapter.safetensors").unlink()
    assert not stage.is_done("f")
    stage.begin("f")
    (stage.path / "adapter.safetensors").write_text("WEIGHTS")
    assert stage.finish_files("f")["content"] != first["content"]


def test_files_elsewhere_in_the_run(run):
    stage = run.stage(6, "merge")
    stage.begin("f")
    with pytest.raises(PrefloopError, match="model"):
        stage.finish_files("f", folder=run.path / "model")
    with atomic.directory(run.path / "model") as folder:
        (folder / "config.json").write_text("{}")
    success = stage.finish_files("f", folder=run.path / "model")
    assert list(success["files"]) == ["../../model/config.json"]
    assert stage.is_done("f")
    # The run is portable: nothing in it names its place.
    os.rename(run.path, run.path.with_name("moved"))
    assert RunDir.peek(run.path.with_name("moved")).stage(6, "merge").is_done("f")


def test_success_is_plain_json_without_places(stage, tmp_path):
    stage.begin("f")
    stage.write_part(0, [prompt(0)], "prompts")
    stage.finish("f", 1)
    text = (stage.path / "_SUCCESS.json").read_text()
    assert json.loads(text)
    assert str(tmp_path) not in text
