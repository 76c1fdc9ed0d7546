"""One run at a time in an output folder.

Two runs that write the same checkpoints, log and ``metrics.json`` would leave a mixture of both.
"""

import atexit
import contextlib
import errno
import json
import logging
import os
import socket
import stat
import time
from typing import Any, Dict, List, Optional

from detectron2.utils import comm

from d2ext._files import RunError, writing

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "OutputInUseError",
    "OutputLock",
    "keep_until_the_end",
    "lock_output_folder",
    "release_kept_locks",
]

logger = logging.getLogger(__name__)

_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class OutputInUseError(RunError):
    """Another run holds the output folder; the message says which."""


class OutputLock:
    """Holds a folder for this process, as a context manager or between two calls.

    The file ``.lock`` says who holds it. What counts is the system's lock on that file, which ends
    with the process however it ends: so nothing has to be cleaned up after a kill, also on another
    machine. It is a record lock, because the children of a process (data workers, which may outlive
    a kill for a moment) do not share those. Where the file system has none, the process named in
    the file counts, as long as it lives. (filelock would do but for the workers: they inherit its
    flock.)

    Several locks of one process on one folder are one; the last release frees it.

    Example::

        with OutputLock("output/run"):
            ...

    Args:
        folder: the folder; it is made if it is missing.
    """

    name = ".lock"
    _held: Dict[Any, "_Held"] = {}

    def __init__(self, folder: str):
        self.folder = str(folder)
        self._key: Any = None

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.name)

    def acquire(self) -> "OutputLock":
        """Take the lock.

        Raises:
            OutputInUseError: another process holds it.
        """
        if self._key is not None:
            return self
        with writing(self.path):
            os.makedirs(self.folder, exist_ok=True)
        # With the process: a fork has the table of its parent, but not its locks.
        key = (os.getpid(), os.path.realpath(self.folder))
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = _Held(self.path, self.folder)
        held.count += 1
        self._key = key
        return self

    def release(self) -> None:
        """Give the lock back; nothing happens without one."""
        key, self._key = self._key, None
        if key is None or key[0] != os.getpid():
            return
        held = self._held[key]
        held.count -= 1
        if held.count == 0:
            del self._held[key]
            held.close()

    def problem(self) -> str:
        """Whether the folder is another one by now, or gone: a sentence, or "".

        A lock file that was removed alone is made again.
        """
        held = self._held.get(self._key)
        return "" if held is None else held.problem()

    def make_again(self) -> bool:
        """Make a deleted folder again, and lock it; False: another has its name."""
        return self._held[self._key].make_again()

    def __enter__(self) -> "OutputLock":
        return self.acquire()

    def __exit__(self, *error: Any) -> None:
        self.release()


class _Held:
    """The open and locked file of a folder that this process holds.

    The file is opened once and read through that descriptor: closing any other descriptor of it
    would give up the record lock.
    """

    def __init__(self, path: str, folder: str):
        self.path, self.folder, self.count = path, folder, 0
        self._file = self._directory = -1
        self._open()

    def _open(self) -> None:
        with writing(self.path):
            self._file = _open_locked(self.path, self.folder)
            with contextlib.suppress(OSError):  # not on Windows
                # An open folder's number goes to no other one.
                self._directory = os.open(self.folder, os.O_RDONLY)
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "started": _start_of(os.getpid()),
            }
            text = json.dumps(holder).encode()
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, text)
            os.ftruncate(self._file, len(text))

    def problem(self) -> str:
        if self._directory < 0:
            return ""
        if not self._is_at(self.folder, self._directory):
            return (
                f"The output folder {self.folder} was deleted, moved or replaced while this run "
                "wrote to it"
            )
        if not self._is_at(self.path, self._file):
            self.make_again()
        return ""

    def _is_at(self, path: str, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(path))
        except OSError:
            return False

    def make_again(self) -> bool:
        if os.path.lexists(self.path):
            return False
        with writing(self.path):
            os.makedirs(self.folder, exist_ok=True)
        self._close_files()
        self._open()
        return True

    def _close_files(self) -> None:
        os.close(self._file)
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def close(self) -> None:
        if self._is_at(self.path, self._file):
            with contextlib.suppress(OSError):
                os.remove(self.path)  # while it is locked: see _open_locked
        self._close_files()


def _open_locked(path: str, folder: str) -> int:
    while True:
        try:
            # Never through a link: who it is that holds the lock would be written over its target.
            file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                raise _not_a_lock(path) from error
            raise
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise _not_a_lock(path)
            _lock(file, path, folder)
            # The one before may have removed the file between our opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _not_a_lock(path: str) -> RunError:
    return RunError(
        f"{path} is a link or no regular file, so that it cannot be the lock of its folder; remove "
        "it, or choose another OUTPUT_DIR."
    )


def _lock(file: int, path: str, folder: str) -> None:
    """Lock an open file, or raise OutputInUseError."""
    advice = ""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no record locks")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            holder = _holder(file)
            free = holder is None or not _may_live(holder)
            advice = f" (if you know that it has ended, delete {path})"
        elif error.errno in (errno.EACCES, errno.EAGAIN):
            free = False
        else:
            raise
    holder = _holder(file)
    if not free:
        who = _name(holder) if holder else "another process"
        raise OutputInUseError(
            f"{folder} is in use by {who}; wait for that run, stop it or choose another "
            f"OUTPUT_DIR{advice}."
        )
    if holder:
        logger.warning(
            f"{folder} was held by {_name(holder)}, which ended without releasing it: taking it."
        )


def _holder(file: int) -> Optional[Dict[str, Any]]:
    """Who a lock file names; None: no one."""
    os.lseek(file, 0, os.SEEK_SET)
    try:
        holder = json.loads(os.read(file, 4096))
        return {key: holder[key] for key in ("pid", "host", "since", "started")}
    except (ValueError, KeyError, TypeError):
        return None


def _name(holder: Dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _may_live(holder: Dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname() or os.name != "posix":
        return True  # nothing can be known about it from here
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # The number may have gone to a new process since.
    return holder["started"] in ("", _start_of(int(holder["pid"])))


def _start_of(pid: int) -> str:
    """When a process started, in the system's own ticks; "" where that cannot be read."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def lock_output_folder(folder: str) -> Optional[OutputLock]:
    """Lock a folder in rank 0 on behalf of all ranks; None on the others, and without a folder.

    Every rank must call it, and every rank raises if the folder is in use.
    """
    lock: Optional[OutputLock] = None
    problem: Optional[RunError] = None
    if comm.is_main_process() and folder:
        try:
            lock = OutputLock(folder).acquire()
        except RunError as error:
            problem = error
    problem = comm.all_gather(problem)[0]
    if problem is not None:
        raise problem
    return lock


def keep_until_the_end(lock: Optional[OutputLock]) -> None:
    """Release a lock in :func:`release_kept_locks`, at the latest when the process ends."""
    if lock is not None:
        _kept.append(lock)
        atexit.register(release_kept_locks)


def release_kept_locks() -> None:
    """Release the locks that were to be kept until the end of the run."""
    while _kept:
        _kept.pop().release()


_kept: List[OutputLock] = []
