"""Shared by the tests: one thread per worker (pytest-xdist runs two), and the repository's root as working folder."""

import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import base_dataset
from mmengine.registry import DefaultScope

import beit_mm.data
import beit_mm.engine
import beit_mm.models  # noqa: F401  (registers)

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'tools'))  # where a door finds _door.py when it is a command


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    DefaultScope._instance_dict.clear()  # a Runner makes its config's scope the default one of the process


@pytest.fixture
def no_pretty_printing(monkeypatch):
    """mmengine formats every config four times for its logs, and collects garbage for every data set: most of the
    time that a short training would take."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda config: repr(config.to_dict())))
    monkeypatch.setattr(base_dataset.gc, 'collect', lambda: 0)
