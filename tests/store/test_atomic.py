"""Publishing of files and folders: whole or not at all."""

from __future__ import annotations

import json
import math
import os

import pytest

from prefloop.errors import PrefloopError
from prefloop.store import atomic


class Killed(Exception):
    pass


def kill_at(monkeypatch, wanted):
    def point(name):
        if name == wanted:
            raise Killed(name)

    monkeypatch.setattr(atomic, "crash_point", point)


def test_file_keeps_the_old_content_until_it_is_published(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic.write_json(path, {"v": 1})
    kill_at(monkeypatch, "a.json:before")
    with pytest.raises(Killed):
        atomic.write_json(path, {"v": 2})
    assert atomic.read_json(path) == {"v": 1}
    kill_at(monkeypatch, "a.json:after")
    with pytest.raises(Killed):
        atomic.write_json(path, {"v": 3})
    assert atomic.read_json(path) == {"v": 3}
    assert os.listdir(tmp_path) == ["a.json"]


def test_file_is_not_published_when_its_writer_fails(tmp_path):
    def write():
        with atomic.file(tmp_path / "a") as stream:
            stream.write(b"half")
            raise Killed

    with pytest.raises(Killed):
        write()
    assert os.listdir(tmp_path) == []


def test_data_is_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        calls.append("dir" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def note_replace(a, b):
        calls.append("rename")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    atomic.write_bytes(tmp_path / "a", b"x")
    assert calls == ["file", "rename", "dir"]


def test_text_with_a_lone_surrogate_is_visible_and_json_gives_it_back(tmp_path):
    atomic.write_text(tmp_path / "t", "a\ud800b")
    assert (tmp_path / "t").read_text() == "a\\ud800b"
    value = {"k": "back\\slash\ud800é"}
    atomic.write_json(tmp_path / "j", value)
    assert atomic.read_json(tmp_path / "j") == value
    assert "é" in (tmp_path / "j").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_json_refuses_what_is_no_json(tmp_path, number):
    with pytest.raises(PrefloopError, match=r"j\.json"):
        atomic.write_json(tmp_path / "j.json", [number])
    assert os.listdir(tmp_path) == []


def test_unreadable_json_names_its_file(tmp_path):
    (tmp_path / "j.json").write_text("{")
    with pytest.raises(PrefloopError, match=r"j\.json"):
        atomic.read_json(tmp_path / "j.json")


def test_directory_replaces_the_old_one_whole(tmp_path):
    for content in ("old", "new"):
        with atomic.directory(tmp_path / "model") as folder:
            assert folder.parent == tmp_path
            (folder / f"{content}.txt").write_text(content)
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(tmp_path / "model") == ["new.txt"]


def test_directory_is_not_published_when_its_writer_fails(tmp_path):
    def write():
        with atomic.directory(tmp_path / "model") as folder:
            (folder / "half").write_text("x")
            raise Killed

    with pytest.raises(Killed):
        write()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("point", "content"), [("before", "old"), ("between", "old"), ("after", "new")])
def test_sweep_mends_a_folder_that_was_being_replaced(tmp_path, monkeypatch, point, content):
    with atomic.directory(tmp_path / "model") as folder:
        (folder / "f").write_text("old")
    pid = os.fork()
    if pid == 0:
        # A child that exits at the point without running `finally`, as a kill would.
        monkeypatch.setattr(atomic, "crash_point", lambda name: os._exit(9) if name == f"model:{point}" else None)
        with atomic.directory(tmp_path / "model") as folder:
            (folder / "f").write_text("new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(os.listdir(tmp_path)) > 1
    assert atomic.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["model"]
    assert (tmp_path / "model" / "f").read_text() == content


def test_sweep_leaves_what_is_published(tmp_path):
    (tmp_path / "kept.json").write_text(json.dumps(1))
    (tmp_path / ".tmp-1-a").write_text("x")
    (tmp_path / ".tmp-2-d").mkdir()
    (tmp_path / ".tmp-2-d" / "f").write_text("x")
    assert atomic.sweep(tmp_path) == [".tmp-1-a", ".tmp-2-d"]
    assert os.listdir(tmp_path) == ["kept.json"]
