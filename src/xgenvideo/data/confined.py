"""Child processes for strangers' files: memory, rights and signals bounded, so that a crash, a hang or a bomb costs one
file. A child reads jobs as JSON lines and answers on a channel that no library prints to.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

SECRETS = ("XGV_TOKEN",)
OPEN_FILES = 64
UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})  # the disk's fault, and not the input's


def start_child(module: str, memory_mb: int) -> subprocess.Popen[bytes]:
    """Start `python -m module memory_mb` with pipes, one thread for arithmetic and none of this process's secrets."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    for name in SECRETS:
        environment.pop(name, None)
    # The child finds this package wherever the parent found it.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), *sys.path]))
    return subprocess.Popen(
        [sys.executable, "-m", module, str(memory_mb)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def confine(memory_mb: int) -> BinaryIO:
    """Called first in the child: bounds it for good. Returns where its answers go."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    # Both end the process even inside C code: a real-time limit, and one of processor time.
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    cv2.setNumThreads(1)
    np.seterr(all="ignore")
    # Answers get a channel of their own: libraries print to stdout.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers
