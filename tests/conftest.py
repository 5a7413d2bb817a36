"""Fixtures that several test files use."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """Return a function that imports a script of benchmarks/ by its name, fresh in each test."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Give a test a cache of its own, and one thread."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture
def toy(alone, tmp_path):
    """Give a test of probes a store, data, their targets, and a set made of them."""
    import probing
    from potstill.core.store import Store

    store, data = Store(tmp_path / "store"), probing.data_set()
    targets = probing.targets_of(data, store, tmp_path / "encoder")
    return store, data, targets, probing.set_of(data, targets, store)
