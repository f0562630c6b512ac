"""How the C library's allocator is told to work for networks on a processor.

A network allocates and frees the same large blocks again and again. By default glibc gets each of
them fresh from the system and gives it back, and the system clears every page anew: a third of
the time of a segment. Kept in the process, blocks are reused as they are. Only the few largest
still go back, because between them the process' own memory would fill with gaps.
"""

from __future__ import annotations

import ctypes
import functools
import platform

__all__ = ["keep_freed_memory"]

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT_BYTES = 2**31 - 1  # the most that an int can tell
TOP_PAD_BYTES = 1 << 26
LARGEST_KEPT_BYTES = 1 << 25  # the most that glibc accepts


@functools.cache
def keep_freed_memory() -> bool:
    """Let the process keep what it frees; whether that was possible.

    Only where the C library is glibc; others are left as they are. Best called early: blocks
    that are there already go back to the system as before.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES),
        (M_TRIM_THRESHOLD, KEPT_BYTES),
        (M_TOP_PAD, TOP_PAD_BYTES),
    )
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)
