"""Makes tests/tiny_models.py importable, keeps every test off the network, and the collector off the libraries."""

import gc
import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(scope="session", autouse=True)
def _frozen_libraries():
    """Each training begins with a full garbage collection; a million objects of imported modules are half its time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
