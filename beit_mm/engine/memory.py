"""Keeping memory that was freed, for the processes of our tools: what a training step frees, the next one needs again.

glibc returns large blocks to the system when they are freed and has every page of them faulted in when it gets them
back, which takes five times as long as filling them. A tool asks for nothing to be returned. Users of the library are
not touched, nor is whoever says otherwise: BEIT_MM_KEEP_FREED_MEMORY=0, or any MALLOC_* variable of glibc's own.
"""

import ctypes
import os
import sys

import torch

WAY_OUT = 'BEIT_MM_KEEP_FREED_MEMORY'
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h
SETTINGS = {
    M_MMAP_MAX: 0,  # large blocks come from the heap too, which keeps them
    M_TRIM_THRESHOLD: -1,  # the heap never shrinks
    M_TOP_PAD: 64 * 2**20,  # and grows in these steps, in bytes
}


def keep_freed_memory() -> bool:
    """On Linux with glibc and without CUDA: keep all memory that is freed from now on; whether that is so.

    The same as MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=67108864 before the start. The
    process keeps its peak until it ends; nothing else changes. benchmarks/runner.py measures both.
    """
    if os.environ.get(WAY_OUT) == '0' or any(name.startswith('MALLOC_') for name in os.environ):
        return False
    if 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', '') or not sys.platform.startswith('linux'):
        return False
    if torch.cuda.is_available():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, 'gnu_get_libc_version'):
        return False
    taken = [library.mallopt(setting, value) == 1 for setting, value in SETTINGS.items()]
    return all(taken)
