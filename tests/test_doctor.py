"""The check-up: it says what is wrong in a row of its own, and leaves nothing behind."""

from __future__ import annotations

import pytest

from prefloop import doctor
from prefloop.engine import load
from prefloop.errors import UsageError
from prefloop.store import cache as cache_module
from prefloop.store.cache import Cache


def test_a_fresh_checkout_is_well(tmp_path):
    path = tmp_path / ".prefloop" / "cache.db"
    check = doctor._cache(path)
    assert (check["state"], "not there yet" in check["found"]) == ("ok", True)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_is_counted(tmp_path):
    with Cache(tmp_path / "cache.db") as cache:
        cache.put_many("generate", {"a": 1, "b": 2}, "m")
    assert doctor._cache(tmp_path / "cache.db")["found"].endswith("2 entries")


def test_a_place_that_cannot_hold_a_cache_fails_before_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "network_filesystem", lambda folder: "nfs4")
    check = doctor._cache(tmp_path / ".prefloop" / "cache.db")
    assert check["state"] == "fail"
    assert "PREFLOOP_CACHE" in check["found"]


def test_a_place_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").write_text("")
    check = doctor._cache(tmp_path / "file" / "cache.db")
    assert check["state"] == "fail"
    assert "PREFLOOP_CACHE=/local/path/cache.db" in check["found"]


def test_a_missing_embedded_model_is_a_row(monkeypatch):
    def missing(path):
        raise UsageError("the embedded model is not installed", where=path)

    monkeypatch.setattr(load, "resolve_model_path", missing)
    check = doctor._sandbox()
    assert (check["state"], "not installed" in check["found"]) == ("fail", True)


@pytest.mark.parametrize(("name", "state"), [("torch", "ok"), ("no-such-package-here", "fail")])
def test_packages(name, state):
    assert doctor._package(name)["state"] == state
