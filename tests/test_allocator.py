import platform
import subprocess
import sys

import pytest

from rhythm.allocator import keep_freed_memory

FAULTS = """
import resource, torch
from rhythm.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def step():
    return [torch.ones(2**18) for _ in range(32)]  # 1 MiB each, freed together
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_new_pages():
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    ]
    assert 5 * faults[1] < faults[0]


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    assert not keep_freed_memory()
