"""Hashes of values, files, folders, code and models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.errors import UsageError
from prefloop.store import fingerprint
from prefloop.store.cache import Cache
from prefloop.store.fingerprint import code_digest, digest, file_digest, folder_digest, model_digest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class DictMemo(dict):
    def digest_get(self, path, stamp):
        return self.get((path, stamp))

    def digest_put(self, path, stamp, value):
        self[path, stamp] = value


def age(path, seconds=10.0):
    """Give a file a time before the window in which digests are not remembered."""
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


@pytest.fixture
def settled(monkeypatch):
    """Remember digests of files that were just written, too (ctime cannot be set back)."""
    monkeypatch.setattr(fingerprint, "_SETTLED_SECONDS", -1.0)


def test_digest_is_the_sha256_of_canonical_json():
    # printf '{"a":1,"b":[true,null]}' | sha256sum
    assert digest({"b": [True, None], "a": 1}) == "1cc69c7fa23616ca2ec3ee70d24390a6225c8832db8a4c814c7e0e7f942f8668"


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=5))
def test_key_order_does_not_matter(value):
    assert digest(dict(reversed(value.items()))) == digest(value)


@settings(deadline=None)
@given(JSON, JSON)
def test_any_value_matters(a, b):
    assert (digest(a) == digest(b)) == (json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True))


def test_digest_takes_broken_unicode():
    assert digest("\ud800") != digest("\udfff")


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_memo_answers_for_an_unchanged_file_only(tmp_path, settled):
    path, memo = tmp_path / "f", DictMemo()
    path.write_bytes(b"one")
    first = file_digest(path, memo)
    assert list(memo.values()) == [first]
    (key,) = memo
    memo[key] = "remembered"
    assert file_digest(path, memo) == "remembered"
    # Same size, other content: the times tell.
    path.write_bytes(b"two")
    age(path)
    assert file_digest(path, memo) == file_digest(path)


def test_memo_sees_a_change_that_keeps_size_and_mtime(tmp_path, settled):
    path, memo = tmp_path / "f", DictMemo()
    path.write_bytes(b"one")
    age(path)
    stat = path.stat()
    file_digest(path, memo)
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert file_digest(path, memo) == file_digest(path)


def test_memo_does_not_trust_a_file_that_was_just_written(tmp_path):
    path, memo = tmp_path / "f", DictMemo()
    path.write_bytes(b"one")
    file_digest(path, memo)
    assert memo == {}


def test_cache_is_a_memo_and_reads_nothing_the_second_time(tmp_path, settled, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"w" * 1000)
    with Cache(tmp_path / "cache.db") as cache:
        first = folder_digest(folder, cache)
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", lambda *a: pytest.fail("the file was read"))
    with Cache(tmp_path / "cache.db") as cache:
        assert folder_digest(folder, cache) == first


def test_folder_digest_covers_names_and_contents(tmp_path):
    folder = tmp_path / "m"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    seen = {folder_digest(folder)}
    (folder / "1_Pooling" / "config.json").write_text("[]")
    seen.add(folder_digest(folder))
    (folder / "config.json").rename(folder / "konfig.json")
    seen.add(folder_digest(folder))
    (folder / "chat_template.jinja").write_text("x")
    seen.add(folder_digest(folder))
    assert len(seen) == 4


def test_folder_digest_leaves_out_hidden_files_and_checkpoints(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = folder_digest(tmp_path)
    (tmp_path / ".gitattributes").write_text("x")
    for name in (".cache", "checkpoint-50"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "optimizer.pt").write_text("x")
    assert folder_digest(tmp_path) == before


def test_folder_digest_follows_links_and_ends(tmp_path):
    (tmp_path / "blob").write_text("weights")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to("../blob")
    (folder / "loop").symlink_to(".")
    before = folder_digest(folder)
    (tmp_path / "blob").write_text("WEIGHTS")
    assert folder_digest(folder) != before


def test_empty_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="empty"):
        folder_digest(tmp_path)


def test_code_digest_changes_with_a_byte_of_the_named_boxes_only(tmp_path):
    for name in ("signals/judge.py", "signals/templates/judge.j2", "train/losses.py", "records.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "signals" / "notes.md").write_text("x")
    (tmp_path / "signals" / "__pycache__").mkdir()
    (tmp_path / "signals" / "__pycache__" / "judge.cpython-311.pyc").write_text("x")

    def now():
        return code_digest("signals", "records.py", root=tmp_path)

    first = now()
    (tmp_path / "train/losses.py").write_text("x = 2\n")
    (tmp_path / "signals" / "notes.md").write_text("y")
    (tmp_path / "signals" / "__pycache__" / "judge.cpython-311.pyc").write_text("y")
    assert now() == first
    for name in ("signals/judge.py", "signals/templates/judge.j2", "records.py"):
        before = now()
        (tmp_path / name).write_text("x = 2\n")
        assert now() != before
    assert code_digest("records.py", "signals", root=tmp_path) == now()


def test_code_digest_of_this_package_and_of_a_wrong_name():
    assert code_digest("store", "records.py") != code_digest("store")
    with pytest.raises(ValueError, match="no_such_box"):
        code_digest("no_such_box")


def test_model_digest_of_a_folder_is_its_folder_digest(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert model_digest(str(tmp_path)) == folder_digest(tmp_path)


def test_model_digest_of_an_adapter_covers_its_base(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = model_digest(str(adapter))
    (base / "config.json").write_text("[]")
    assert model_digest(str(adapter)) != before


def test_model_digest_of_a_hub_model_is_the_commit_in_the_local_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_digest("org/name") == "hub:org/name@main?unresolved"
    assert model_digest("org/name", "dev") == "hub:org/name@dev?unresolved"
    refs = tmp_path / "models--org--name" / "refs"
    (refs / "refs").mkdir(parents=True)
    (refs / "main").write_text("a" * 40)
    (refs / "refs" / "pr").mkdir()
    (refs / "refs" / "pr" / "1").write_text("b" * 40)
    assert model_digest("org/name") == f"hub:org/name@{'a' * 40}"
    assert model_digest("org/name", "refs/pr/1") == f"hub:org/name@{'b' * 40}"
    assert model_digest("org/name", "c" * 40) == f"hub:org/name@{'c' * 40}"


def test_hub_layout_is_the_one_that_huggingface_hub_writes(tmp_path, monkeypatch):
    from huggingface_hub.file_download import repo_folder_name

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / repo_folder_name(repo_id="org/some-name", repo_type="model") / "refs"
    refs.mkdir(parents=True)
    (refs / constants.DEFAULT_REVISION).write_text("d" * 40)
    assert fingerprint.hub_commit("org/some-name") == "d" * 40


@pytest.mark.parametrize("path", ["./missing", "/no/such/folder", "a/b/c", "../x", ""])
def test_what_is_neither_folder_nor_hub_id_is_a_usage_error(path):
    with pytest.raises(UsageError, match="no such model folder"):
        model_digest(path)


def test_store_imports_nothing_heavy():
    code = (
        "import sys, prefloop.store.atomic, prefloop.store.cache, prefloop.store.fingerprint, prefloop.store.rundir\n"
        "from prefloop.store.fingerprint import code_digest, model_digest\n"
        "code_digest('store'); model_digest('org/name')\n"
        "heavy = {'torch', 'transformers', 'datasets', 'httpx', 'httpx2', 'requests', 'pyarrow', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
