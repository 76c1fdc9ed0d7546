"""Files that are whole or not there, regular files only, and errors that end with one sentence."""

import contextlib
import errno
import functools
import os
import stat
from typing import Any, BinaryIO, Iterator, Optional, Tuple, Type

__all__ = [
    "RunError",
    "WriteError",
    "atomic_write",
    "mistakes_in_sentences",
    "open_image",
    "open_regular",
    "reason_of",
    "sentence_of",
    "writing",
]

# What photographs and drawings are kept in. Pillow reads more, PostScript by running Ghostscript.
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


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


# What a wrong name, value or file ends in while a run is set up. Anything else needs its traceback.
_MISTAKES = (ValueError, KeyError, AssertionError, ImportError, OSError)


@contextlib.contextmanager
def mistakes_in_sentences(config: str = "") -> Iterator[None]:
    """While a run is set up: an error that is a sentence ends it as a :class:`RunError` does.

    It stays what it was, a ``ValueError`` say, for those who call the same code. An error of a word
    or two says too little and keeps its traceback, except while a config is read.

    Args:
        config: name of the config that is read.
    """
    try:
        yield
    except RunError:
        raise
    except (*_MISTAKES, TypeError) as error:
        text = sentence_of(error)
        is_type_error = isinstance(error, (TypeError, UnicodeDecodeError))  # of bytes, or a list
        if not is_type_error and len(text.split()) >= 4:
            cls = next(kind for kind in _MISTAKES if isinstance(error, kind))
            raise _as_run_error(cls)(text) from error
        if not config:
            raise
        raise RunError(
            f"{config} cannot be read as a config ({text}); give a YAML file with sections of keys."
        ) from error


@functools.cache
def _as_run_error(cls: Type[Exception]) -> Type[Exception]:
    """A class that is both; as text a KeyError would have quotes around it."""
    return type(f"Run{cls.__name__}", (RunError, cls), {"__str__": BaseException.__str__})


def open_regular(path: Any) -> BinaryIO:
    """Open a file for reading bytes. Pipes, devices and sockets, which may never end, are refused.

    Raises:
        OSError: as of ``open``, and for what is not a regular file.
    """
    return open(path, "rb", opener=_only_regular)


def _only_regular(path: Any, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


@contextlib.contextmanager
def open_image(path: Any) -> Iterator[Any]:
    """Pillow's image of a file, in one of the usual formats, whatever its name ends with.

    An address such as "s3://..." is opened as Detectron2 opens it.
    """
    from PIL import Image, UnidentifiedImageError

    with _stream_of(path) as stream:
        try:
            image = Image.open(stream, formats=_image_formats())
        except UnidentifiedImageError:
            known = ", ".join(_image_formats())
            raise UnidentifiedImageError(
                f"cannot identify image file '{path}'; the formats are {known}"
            ) from None
        with image:
            yield image


def _stream_of(path: Any) -> BinaryIO:
    if "://" not in str(path):
        return open_regular(path)
    from detectron2.utils.file_io import PathManager

    return PathManager.open(str(path), "rb")


@functools.cache
def _image_formats() -> Tuple[str, ...]:
    from PIL import features

    has_avif = "avif" in features.modules and features.check("avif")  # Pillow 11.3 and later
    return (*_IMAGE_FORMATS, "AVIF") if has_avif else _IMAGE_FORMATS


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
