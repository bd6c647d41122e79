import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from spectro.processes import cores, threads
os.environ.pop("OMP_NUM_THREADS", None)
print(cores(), threads())
for given in ("3", "3,1", "0", "many"):
    os.environ["OMP_NUM_THREADS"] = given
    print(cores(), threads())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_cores_follow_the_affinity_mask_and_threads_the_variable() -> None:
    printed = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["1 1", "1 3", "1 3", "1 1", "1 1"]
