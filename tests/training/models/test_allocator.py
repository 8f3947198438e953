import os
import platform
import subprocess
import sys

import pytest

_CYCLE = """
import resource
from rws.training.models.allocator import keep_freed_memory
import numpy as np
if {keep}:
    assert keep_freed_memory()
def step():
    buffers = [np.ones(4_000_000, np.float32) for _ in range(4)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    command = [sys.executable, "-c", _CYCLE.format(keep=keep)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=plain)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_buffers_of_one_step_serve_the_next_without_new_pages():
    assert page_faults(True) * 10 < page_faults(False)
