"""Memory that is freed and asked for again: pages that the system has to hand out anew."""

import platform
import subprocess
import sys

import pytest

CHURN = """
import resource
import torch
from phenaki.training.heap import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 << 20)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
assert keep_freed_memory()
faults()
print(min(faults() for _ in range(3)))  # now and then the heap grows once more before it is enough
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_freed_memory_is_used_again_without_asking_the_system():
    given_back, kept = map(int, subprocess.check_output([sys.executable, "-c", CHURN]).split())
    assert kept < 100
    assert given_back > 10 * 100, "else this test shows nothing"
