import platform
import resource
import subprocess
import sys

import pytest

from rhythm.allocator import keep_freed_memory

RETURNED = """
import torch
from rhythm.allocator import keep_freed_memory
def resident_pages():
    return int(open("/proc/self/statm").read().split()[1])
if {keep}:
    assert keep_freed_memory()
tensor = torch.ones(30 * 2**18)  # 30 MiB
held = resident_pages()
del tensor
print(held - resident_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_the_pages_of_a_freed_tensor_stay():
    """One tensor, for glibc raises its thresholds itself as tensors of one size come and go, by luck of the heap."""
    returned = [
        int(subprocess.run([sys.executable, "-c", RETURNED.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    ]
    pages = 30 * 2**20 // resource.getpagesize()
    assert returned == [pytest.approx(pages, rel=0.02), pytest.approx(0, abs=0.02 * pages)]


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    assert not keep_freed_memory()
