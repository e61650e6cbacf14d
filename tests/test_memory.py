"""engine/memory.py: who gets the allocator's settings, and that they are glibc's."""

import ctypes
import sys

import pytest
import torch

from beit_mm.engine import memory
from beit_mm.engine.memory import WAY_OUT, keep_freed_memory


class Library:
    """glibc as far as it is asked."""

    def __init__(self) -> None:
        self.set: dict[int, int] = {}

    def gnu_get_libc_version(self) -> None: ...

    def mallopt(self, setting: int, value: int) -> int:
        self.set[setting] = value
        return 1


@pytest.fixture
def library(monkeypatch) -> Library:
    made = Library()
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: made)
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for name in [WAY_OUT, 'GLIBC_TUNABLES', 'MALLOC_ARENA_MAX', 'MALLOC_MMAP_MAX_']:
        monkeypatch.delenv(name, raising=False)
    return made


def test_freed_memory_is_kept(library):
    assert keep_freed_memory()
    assert library.set == {-4: 0, -1: -1, -2: 64 * 2**20}  # malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD


@pytest.mark.parametrize(
    ('name', 'value'),
    [(WAY_OUT, '0'), ('MALLOC_ARENA_MAX', '2'), ('GLIBC_TUNABLES', 'glibc.malloc.mmap_max=1')],
)
def test_whoever_says_otherwise_is_heard(library, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()
    assert library.set == {}


def test_other_systems_and_gpus_are_left_alone(library, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert not keep_freed_memory()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(memory.sys, 'platform', 'darwin')
    assert not keep_freed_memory()
    monkeypatch.setattr(memory.sys, 'platform', 'linux')
    monkeypatch.delattr(Library, 'gnu_get_libc_version')  # musl
    assert not keep_freed_memory()
    assert library.set == {}
