"""Freed memory of a training process stays with it: asking for it anew in every step costs a sixth of a CPU's time."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Has the C library keep what is freed for what is allocated next; False where it is not glibc.

    Else each large tensor is mapped from the system when it is made and given back when it is freed, and every page of it is cleared
    by the system once more: a training step frees and makes the same gigabytes in each pass. The process then holds what it needed
    at most until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
