"""Shared by the tests: one thread per worker (pytest-xdist runs two), and the repository's root as working folder."""

from pathlib import Path

import pytest
import torch

import beit_mm.data
import beit_mm.engine
import beit_mm.models  # noqa: F401  (registers)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)
    torch.manual_seed(0)
