"""Where generated data sets live, and how they get there whole or not at all."""

import logging
import os
import shutil
from typing import Callable, List, Mapping, Optional

from filelock import FileLock

__all__ = ["dataset_folder", "is_current", "publish"]

logger = logging.getLogger(__name__)

_STAMP = "d2ext_stamp.txt"


def dataset_folder(name: str, stamp: str, environ: Optional[Mapping[str, str]] = None) -> str:
    """Folder of a generated data set, as an absolute path.

    ``$D2EXT_DATA`` if it is set; otherwise the first of ``$DETECTRON2_DATASETS`` (Detectron2's own
    variable; ``datasets`` if unset) and the user's cache that already holds this version of the
    data set; otherwise the first of them that exists and can be written to; otherwise the cache.

    Args:
        name: name of the data set's folder.
        stamp: its version.
        environ: the environment variables; those of this process if not given.
    """
    environ = os.environ if environ is None else environ
    if environ.get("D2EXT_DATA"):
        return _join(environ["D2EXT_DATA"], name)
    datasets = _join(environ.get("DETECTRON2_DATASETS") or "datasets")
    cache = _join(environ.get("XDG_CACHE_HOME") or "~/.cache", "d2ext")
    roots: List[str] = [datasets, cache]
    for root in roots:
        if is_current(_join(root, name), stamp):
            return _join(root, name)
    usable = os.path.isdir(datasets) and os.access(datasets, os.W_OK | os.X_OK)
    return _join(datasets if usable else cache, name)


def _join(*parts: str) -> str:
    return os.path.abspath(os.path.expanduser(os.path.join(*parts)))


def is_current(folder: str, stamp: str) -> bool:
    """Whether the folder holds this version of the data set, complete."""
    try:
        with open(os.path.join(folder, _STAMP)) as f:
            return f.read().strip() == stamp
    except OSError:
        return False


def publish(folder: str, stamp: str, build: Callable[[str], None]) -> None:
    """Make sure that a folder holds a data set, building it if need be.

    It is built in a folder beside the final one, under a lock, and renamed when complete. So
    a reader of ``folder`` finds all of it or nothing; of several processes that need it at
    once, one builds it and the others wait.

    Args:
        folder: the final folder, an absolute path.
        stamp: version of the data set; a folder with another is replaced.
        build: called with an empty folder that it is to fill.
    """
    if is_current(folder, stamp):
        return
    parent, name = os.path.split(folder)
    try:
        os.makedirs(parent, exist_ok=True)
        with FileLock(os.path.join(parent, f".{name}.lock")):
            if not is_current(folder, stamp):
                _build_and_rename(parent, name, stamp, build)
    except OSError as error:
        raise OSError(
            f"Cannot write the data set '{name}' to {parent} ({error.strerror or error}); set the "
            "environment variable D2EXT_DATA to a folder that can be written to and has room."
        ) from error


def _build_and_rename(parent: str, name: str, stamp: str, build: Callable[[str], None]) -> None:
    # We hold the lock: what lies here under these names was left by a process that was killed.
    for entry in os.listdir(parent):
        if entry.startswith((f".{name}.partial-", f".{name}.old-")):
            shutil.rmtree(os.path.join(parent, entry), ignore_errors=True)
    partial = os.path.join(parent, f".{name}.partial-{os.getpid()}")
    old = os.path.join(parent, f".{name}.old-{os.getpid()}")
    folder = os.path.join(parent, name)
    logger.info(f"Generating the data set '{name}' in {parent}; this happens once.")
    try:
        os.makedirs(partial)
        build(partial)
        with open(os.path.join(partial, _STAMP), "w") as f:
            f.write(f"{stamp}\n")
        if os.path.lexists(folder):
            os.rename(folder, old)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
