"""Every recipe runs at scale smoke, without data, to a set that loads."""

from __future__ import annotations

import pytest
import torch

from potstill.artefact import load
from potstill.coresets import size_of
from potstill.data import open_data
from potstill.recipes import RECIPES, from_recipe
from potstill.run import distil


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES.names())
def test_recipe_runs_at_smoke(name, tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    run = from_recipe(name, data=None, scale="smoke")
    distil(run, tmp_path / "run")
    s = load(tmp_path / "run")
    images = len(open_data(run.data, limit=run.limit).train)
    assert len(s) == (run.ipc * len(s.classes) if run.size is None else size_of(run.size, images))
    assert s.origin.recipe == name
