"""Files that are whole or not there, and errors that end a run with one sentence."""

import contextlib
import os
from typing import Any, Iterator, Optional

__all__ = ["RunError", "WriteError", "atomic_write", "reason_of", "sentence_of", "writing"]


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
        raise WriteError(
            f"Could not write {error.filename or path} ({reason_of(error)}); free some disk space, "
            "or make the place writable, and start again (a training with --resume)."
        ) from error


def reason_of(error: BaseException) -> str:
    """What the system said, in its own words where they are behind those of a library."""
    cause: Optional[BaseException] = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error) or type(error).__name__).splitlines()[0]


def sentence_of(error: BaseException) -> str:
    """What an error says; as text a KeyError would have quotes around it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text or type(error).__name__


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
