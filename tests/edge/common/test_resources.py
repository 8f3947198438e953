import subprocess
import sys

import pytest

# Each of eight threads takes blocks of a size that glibc takes from its own heap, once a larger one was freed.
THREADS = """
import re, threading
from pathlib import Path
from rws.edge.common.resources import return_memory, use_one_heap

def own():
    return int(re.search(r"Anonymous: +(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1]) // 1024

def work(together=None):
    together and together.wait()
    for size in (2**22, 2**21, 2**21):
        bytearray(b"x") * size

use_one_heap()
work()
before = own()
together = threading.Barrier(8)
threads = [threading.Thread(target=work, args=[together]) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
return_memory()
print(own() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what memory is a process's own")
def test_threads_that_have_ended_keep_no_memory():
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4
