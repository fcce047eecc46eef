"""glibc's allocator, told to keep freed memory: on a CPU, fresh pages cost more than many kernels that write to them.

By default glibc gives large tensors pages of their own and returns them when they are freed, so that the next tensor
of the same size makes the kernel clear hundreds of pages again.
"""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
SETTINGS = {
    M_MMAP_THRESHOLD: 2**25,  # bytes from which an allocation has pages of its own; the largest that glibc takes
    M_TRIM_THRESHOLD: 2**31 - 1,  # free bytes at the top of the heap from which they are returned
    M_TOP_PAD: 2**26,  # bytes that the heap grows by at least
}


def keep_freed_memory() -> bool:
    """Sets this for the rest of the process. Whether it did: not without glibc, nor where the user has set it.

    A process then holds what it held at most; nothing else changes.
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if own or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(name, value) for name, value in SETTINGS.items()])
