"""The cache of answers: exact, shared between processes, and clear about what it cannot use."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
import threading
import time
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.errors import PrefloopError, UsageError
from prefloop.store import cache as cache_module
from prefloop.store.cache import Cache, network_filesystem

# Every code point, lone surrogates included: a cache must give back what it was given.
ANY_TEXT = st.text(st.characters(exclude_categories=()))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.db"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Cache(tmp_path_factory.mktemp("cache") / "cache.db") as cache:
        yield cache


@settings(deadline=None)
@given(values=st.lists(VALUES, max_size=5))
def test_gives_back_exactly_what_it_was_given(shared, values):
    items = {uuid.uuid4().hex: value for value in values}
    shared.put_many("generate", items, "m")
    assert shared.get_many(items) == items


def test_unknown_keys_are_left_out_and_many_keys_are_fine(path):
    with Cache(path) as cache:
        cache.put_many("score", {f"k{i}": i for i in range(2500)}, "m")
        found = cache.get_many([f"k{i}" for i in range(3000)] + ["k1", "k1"])
        assert found == {f"k{i}": i for i in range(2500)}
        assert cache.get_many([]) == {}


def test_the_first_value_stays(path):
    with Cache(path) as cache:
        assert cache.put_many("score", {"a": 1, "b": 2}, "m") == 2
        assert cache.put_many("score", {"b": 3, "c": 4}, "m") == 1
        assert cache.get_many("abc") == {"a": 1, "b": 2, "c": 4}


def test_keeps_over_reopening(path):
    with Cache(path) as cache:
        cache.put_many("score", {"a": [1.5]}, "m")
    with Cache(path) as cache:
        assert cache.get_many(["a"]) == {"a": [1.5]}


@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_numbers_that_are_not_finite_are_refused_and_nothing_is_stored(path, number):
    with Cache(path) as cache:
        with pytest.raises(PrefloopError, match="bad"):
            cache.put_many("score", {"good": 1.0, "bad": [number]}, "m")
        assert cache.get_many(["good", "bad"]) == {}


def test_ls_groups_by_kind_and_model(path):
    with Cache(path) as cache:
        assert cache.ls() == []
        cache.put_many("score", {"a": 1, "b": 2}, "m1")
        cache.put_many("generate", {"c": "x" * 100}, "m1")
        cache.put_many("score", {"d": 4}, "m2")
        groups = cache.ls()
    assert [(g["kind"], g["model"], g["count"]) for g in groups] == [
        ("generate", "m1", 1),
        ("score", "m1", 2),
        ("score", "m2", 1),
    ]
    assert all(g["bytes"] > 0 and g["oldest"] <= g["newest"] and g["oldest"].endswith("+00:00") for g in groups)


def test_prune_goes_by_all_conditions_and_shrinks_the_file(path, monkeypatch):
    with Cache(path) as cache:
        noise = os.urandom(300_000).hex()
        monkeypatch.setattr(cache_module.time, "time", lambda: 1_000_000.0)
        cache.put_many("score", {"old": noise}, "m1")
        monkeypatch.undo()
        cache.put_many("score", {"new": 1}, "m1")
        cache.put_many("score", {"other": 1}, "m2")
        size = path.stat().st_size + path.with_name("cache.db-wal").stat().st_size
        count, freed = cache.prune(kind="score", model="m1", older_than_days=1)
        assert count == 1
        assert freed > 100_000
        assert path.stat().st_size + path.with_name("cache.db-wal").stat().st_size < size - freed
        assert set(cache.get_many(["old", "new", "other"])) == {"new", "other"}
        assert cache.prune(kind="generate") == (0, 0)
        assert cache.prune(model="m2")[0] == 1
        assert set(cache.get_many(["old", "new", "other"])) == {"new"}
        assert cache.prune()[0] == 1
        assert cache.ls() == []


WRITER = """
import sys
from prefloop.store.cache import Cache
path, me = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
stored = 0
with Cache(path) as cache:
    for start in range(0, 400, 20):
        stored += cache.put_many("score", {f"k{i}": [i, me] for i in range(start, start + 20)}, "m")
        assert len(cache.get_many([f"k{i}" for i in range(start + 20)])) == start + 20
print(stored)
"""


def test_four_processes_store_the_same_keys_exactly_once(path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    # All start at once, on a file that none of them has made yet.
    stored = 0
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        out, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0
        stored += int(out)
    assert stored == 400
    with Cache(path) as cache:
        found = cache.get_many([f"k{i}" for i in range(400)])
    assert len(found) == 400
    assert all(value[0] == int(key[1:]) and value[1] in "0123" for key, value in found.items())


def test_waits_for_another_writer(path):
    with Cache(path) as cache:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, lambda: other.execute("COMMIT"))
        release.start()
        started = time.monotonic()
        assert cache.put_many("score", {"a": 1}, "m") == 1
        assert time.monotonic() - started > 0.2
        release.join()
        other.close()


def test_a_lock_that_is_never_given_back_is_explained(path, monkeypatch):
    monkeypatch.setattr(cache_module, "_BUSY_SECONDS", 0.05)
    with Cache(path) as cache:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UsageError, match="another process"):
            cache.put_many("score", {"a": 1}, "m")
        other.close()


def test_other_format_version_is_a_usage_error(path):
    Cache(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(UsageError, match=r"format 99.*up to 2"):
        Cache(path)


def test_a_file_of_the_first_format_keeps_its_answers(path):
    """It had no column for the texts of calls."""
    with Cache(path) as cache:
        cache.put_many("score", {"a": [1.5]}, "m")
    db = sqlite3.connect(path)
    db.execute("ALTER TABLE entries DROP COLUMN call")
    db.execute("PRAGMA user_version=1")
    db.close()
    for _ in range(2):
        with Cache(path) as cache:
            assert cache.get_many(["a"]) == {"a": [1.5]}
            cache.put_many("score", {"b": [2.5]}, "m", calls={"b": {"request": {}, "response": "x"}})
            assert cache.show("a")[0]["call"] is None
            assert cache.show("b")[0]["call"] == {"request": {}, "response": "x"}


def test_show_goes_by_the_beginning_of_the_key_and_the_newest_come_first(path, monkeypatch):
    with Cache(path) as cache:
        for time_, key in enumerate(("aa1", "ab2", "b3")):
            monkeypatch.setattr(cache_module.time, "time", lambda now=time_: 1_000_000.0 + now)
            cache.put_many("score" if key != "b3" else "choose", {key: key}, "m")
        assert [e["key"] for e in cache.show(limit=9)] == ["b3", "ab2", "aa1"]
        assert [e["key"] for e in cache.show("a", limit=9)] == ["ab2", "aa1"]
        assert [e["key"] for e in cache.show("ab", limit=9)] == ["ab2"]
        assert [e["key"] for e in cache.show(kind="choose", limit=9)] == ["b3"]
        assert [e["value"] for e in cache.show()] == ["b3"]
        assert cache.show(model="other") == cache.show("c") == []


def test_file_of_another_program_is_left_alone(path):
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.commit()
    db.close()
    with pytest.raises(UsageError, match="another program"):
        Cache(path)
    tables = sqlite3.connect(path).execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("theirs",)]


def test_file_that_is_no_database_is_a_usage_error(path):
    path.write_bytes(b"this is no database, but long enough to look at" * 100)
    with pytest.raises(UsageError, match="not a cache") as error:
        Cache(path)
    assert error.value.fix is not None
    assert "move" in error.value.fix


def test_damaged_pages_are_a_usage_error(path):
    with Cache(path) as cache:
        cache.put_many("score", {f"k{i}": os.urandom(200).hex() for i in range(200)}, "m")
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(UsageError, match="damaged"), Cache(path) as cache:
        cache.get_many([f"k{i}" for i in range(200)])


def test_damaged_entry_is_a_usage_error(path):
    with Cache(path) as cache:
        cache.put_many("score", {"a": 1}, "m")
        cache._db.execute("UPDATE entries SET value = x'00'")
        with pytest.raises(UsageError, match="entry a is damaged"):
            cache.get_many(["a"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_a_usage_error(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UsageError, match="cannot be used"):
            Cache(tmp_path / "cache.db")
    finally:
        tmp_path.chmod(0o755)


def test_read_only_file_is_a_usage_error(path, monkeypatch):
    Cache(path).close()
    connect = sqlite3.connect
    # Opened read-only, as root may write files that say otherwise.
    monkeypatch.setattr(sqlite3, "connect", lambda p, **options: connect(f"file:{p}?immutable=1", uri=True, **options))
    with pytest.raises(UsageError, match=r"cannot (be used|share)"):
        Cache(path)


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/me/local\\040disk xfs rw 0 0
bucket /data fuse.gcsfuse rw 0 0
tmpfs /homestead tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "system"),
    [
        ("/", None),
        ("/home/me", "nfs4"),
        ("/home/me/local disk/x", None),
        ("/data/x", "fuse.gcsfuse"),
        ("/homestead", None),
    ],
)
def test_network_file_systems_are_told_by_the_nearest_mount(tmp_path, folder, system):
    (tmp_path / "mounts").write_text(MOUNTS)
    assert network_filesystem(folder, tmp_path / "mounts") == system
    assert network_filesystem(folder, tmp_path / "none") is None


def test_network_file_system_is_refused(path, monkeypatch):
    monkeypatch.setattr(cache_module, "network_filesystem", lambda folder: "nfs4")
    with pytest.raises(UsageError, match=r"(?s)nfs4.*PREFLOOP_CACHE=/local/path/cache\.db"):
        Cache(path)
    assert not path.exists()


def test_a_missing_folder_is_made(tmp_path):
    Cache(tmp_path / "a" / "b" / "cache.db").close()
    assert (tmp_path / "a" / "b" / "cache.db").is_file()


def test_a_place_that_cannot_be_written_says_where_to_put_it(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.db").mkdir()
    for place in (tmp_path / "file" / "cache.db", tmp_path / "folder.db"):
        with pytest.raises(UsageError, match=r"(?s)cannot be.*PREFLOOP_CACHE=/local/path/cache\.db") as caught:
            Cache(place)
        assert caught.value.where == str(place)
