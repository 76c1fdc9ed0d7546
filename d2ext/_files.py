"""Files that are whole or not there, and errors that end a run with one sentence."""

import contextlib
import os
from typing import Any, Iterator

__all__ = ["RunError", "WriteError", "atomic_write", "writing"]


class RunError(Exception):
    """Ends a run with one sentence that says what to change, and without a traceback."""

    exit_code = 1


class WriteError(RunError):
    """A file could not be written, most often because the disk is full."""


@contextlib.contextmanager
def writing(path: Any) -> Iterator[None]:
    """What the system says against writing ``path`` becomes a :class:`WriteError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"Could not write {error.filename or path} ({reason}); free some disk space, or make "
            "the place writable, and start again (a training with --resume)."
        ) from error


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[Any]:
    """A binary stream whose content becomes ``path`` at once, on the disk, or not at all."""
    aside = f"{path}.{os.getpid()}.part"
    try:
        with open(aside, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
        _sync_directory(os.path.dirname(path) or ".")
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(aside)
        raise


def _sync_directory(directory: str) -> None:
    """Make a rename itself durable; some file systems do not let a directory be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
