"""Every recipe runs at scale smoke, without data, to a set that loads."""

from __future__ import annotations

import pytest
import torch

from potstill.artefact import load
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
    assert len(s) == run.ipc * len(s.classes)
    assert s.origin.recipe == name
