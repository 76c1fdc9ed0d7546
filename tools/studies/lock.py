"""Locks on files: they end with the process that holds them, however it ends.

filelock would do, if it gave its descriptor away: a training that outlives its study keeps the
lock on its folder through it.
"""

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import Iterator

__all__ = ["Busy", "locked"]


class Busy(RuntimeError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a lock on a file, which is made if need be and stays; :class:`Busy` if another does.

    A child process that gets the file descriptor holds the lock too, until the last of them ends.

    Args:
        path: the file; whoever holds the lock writes who it is into it.

    Returns:
        the file descriptor, for ``pass_fds``.
    """
    path = Path(path)
    # Never through a link: who holds the lock would be written over its target.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = path.read_text().strip() or "unknown"
            raise Busy(f"{path.parent} is in use by {owner}") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
