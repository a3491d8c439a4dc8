"""Memory that is freed and asked for again: pages that the system has to hand out anew."""

import platform
import subprocess
import sys

import pytest

CHURN = """
import resource, sys
import torch
from phenaki.training.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def churn():
    for _ in range(10):
        torch.ones(16 << 20)  # 64 MiB, freed at once
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_freed_memory_is_used_again_without_asking_the_system():
    faults = {how: int(subprocess.check_output([sys.executable, "-c", CHURN, how])) for how in ("keep", "give back")}
    assert faults["keep"] < 100
    assert faults["give back"] > 10 * 100, "else this test shows nothing"
