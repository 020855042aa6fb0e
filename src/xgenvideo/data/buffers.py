"""Memory for the videos of batches, used again when a batch is let go: to get fresh pages from the system costs several
times what writing them costs, in shared memory 2 ms a pair.
"""

import mmap
import os
import sys
import tempfile
import weakref
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Buffers:
    """`count` pieces of `size` bytes (whole pages) of a file, each lent to one batch at a time.

    In a process that is started with it as an argument the same bytes are there; only the process that made them lends.
    """

    def __init__(self, file: int, count: int, size: int) -> None:
        self.size, self._file = size, file
        # Mapped whole: pages take memory once they are written, not before.
        self._memory = mmap.mmap(file, 0)
        self._free = list(range(count))

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherited, (DupFd(self._file), len(self._free), self.size)

    def lend(self) -> int | None:
        """The number of a piece that nothing refers to, the one last used; None while all are in use."""
        return self._free.pop() if self._free else None

    def tensor(self, number: int) -> Tensor:
        """A piece, [size] uint8."""
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=self.size, offset=number * self.size)

    def last_tensor(self, number: int) -> Tensor:
        """As `tensor`, of a piece that was lent: it is free again when neither this tensor nor a view of it is left."""
        array = np.frombuffer(self._memory, dtype=np.uint8, count=self.size, offset=number * self.size)
        weakref.finalize(array, self._free.append, number)  # torch holds the array for as long as it has the memory
        return torch.from_numpy(array)

    def take(self) -> Tensor | None:
        """`lend` and `last_tensor` in one."""
        number = self.lend()
        return None if number is None else self.last_tensor(number)

    def close_file(self) -> None:
        """Once all processes that share the pieces are started; what is mapped stays."""
        os.close(self._file)


def make_buffers(count: int, size: int) -> Buffers:
    """`count` pieces of at least `size` bytes, none where `size` is 0, in a file without a name."""
    # Not in /dev/shm, of which a container has 64 MB unless told otherwise.
    if sys.platform == "linux":
        file = os.memfd_create("batches")
    else:
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    os.ftruncate(file, max(count * size, mmap.PAGESIZE))
    return Buffers(file, count if size else 0, size)


def _inherited(file: Any, count: int, size: int) -> Buffers:
    """In the process that was started."""
    buffers = Buffers(file.detach(), count, size)
    buffers.close_file()
    return buffers
