"""Freed memory stays in the process where the C library is glibc."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Blocks of 16 MB, which glibc would get from the system and give back each time: page faults tell.
CHILD = """
import resource, sys
import numpy as np
from models.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
np.ones(1 << 22, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(1 << 22, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-P", "-c", CHILD, how]
    # Explicit, because glibc otherwise learns the size of what is freed.
    environment = {"MALLOC_MMAP_THRESHOLD_": "131072"} if how == "leave" else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_blocks_are_used_again() -> None:
    assert faults("keep") < 0.1 * faults("leave")
