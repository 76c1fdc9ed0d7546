"""The log of a run: all of it in the file, on the terminal what a person reads there."""

import argparse
import functools
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, List, Set

from detectron2.config import CfgNode, LazyConfig
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.logger import setup_logger

from d2ext.model_zoo import config_files

__all__ = ["FILE_ONLY", "open_logs", "write_preamble"]

logger = logging.getLogger(__name__)

#: ``extra=`` of a record that the terminal does not need.
FILE_ONLY = {"file_only": True}

_NAMES = ("detectron2", "fvcore", "d2ext")
# Below a warning, these say nothing that matters during a training.
_CHATTER = ("detectron2.data.common", "fvcore.common.checkpoint", "detectron2.data.dataset_mapper")
_TABLE = "Distribution of instances"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class _ForTerminal(logging.Filter):
    """Lets through what a person reads: tables once, no environment, config and model."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: Set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return True
        if getattr(record, "file_only", False) or record.name in _CHATTER:
            return False
        text = record.getMessage()
        if text.startswith(_TABLE):
            known = text in self._seen
            self._seen.add(text)
            return not known
        return True


class _Plain(logging.Formatter):
    """Without the colour codes that some messages bring along."""

    def __init__(self, inner: logging.Formatter):
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return _ESCAPES.sub("", self._inner.format(record))


def open_logs(folder: str) -> None:
    """Log to the terminal (rank 0) and to ``log.txt`` in a folder.

    A log that cannot be written is said once, not at every line; the terminal still has it.
    """
    rank = comm.get_rank()
    for name in _NAMES:
        setup_logger(folder, distributed_rank=rank, color=sys.stdout.isatty(), name=name)
    terminal = _ForTerminal()
    for name in _NAMES:
        for handler in _stream_handlers(name):
            if _is_below(handler, folder):
                give_up = functools.partial(_give_up_log_file, handler)
                handler.handleError = give_up  # type: ignore[method-assign]
            elif handler.stream is sys.stdout:
                if not any(isinstance(f, _ForTerminal) for f in handler.filters):
                    handler.addFilter(terminal)
                if sys.stdout.isatty():
                    continue
            else:
                continue
            if not isinstance(handler.formatter, _Plain):
                handler.setFormatter(_Plain(handler.formatter or logging.Formatter()))


def _stream_handlers(name: str) -> List[logging.StreamHandler]:
    handlers = logging.getLogger(name).handlers
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]


def _is_below(handler: logging.StreamHandler, folder: str) -> bool:
    path = str(getattr(handler.stream, "name", ""))
    return bool(folder) and path.startswith(os.path.join(folder, ""))


def write_preamble(cfg: Any, args: argparse.Namespace, folder: str) -> None:
    """What a run was made of, for the log file and ``config.yaml``."""
    say = functools.partial(logger.info, extra=FILE_ONLY)
    say(f"Rank of this process: {comm.get_rank()} of {comm.get_world_size()}.")
    say(f"Environment:\n{collect_env_info()}")
    say(f"Command line: {args}")
    for file in config_files(getattr(args, "config_file", "")):
        say(f"Contents of config file {file}:\n{Path(file).read_text()}")
    if not comm.is_main_process() or not folder:
        return
    path = os.path.join(folder, "config.yaml")
    if isinstance(cfg, CfgNode):
        text = cfg.dump()
        say(f"Config:\n{text}")
        with open(path, "w") as stream:
            stream.write(text)
    else:
        LazyConfig.save(cfg, path)
    log = os.path.join(folder, "log.txt")
    logger.info(f"Writing to {folder}; environment, config and model are in {log}.")


def _give_up_log_file(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(handler, record)
        return
    # What the stream still holds must go somewhere, or closing it fails at the end of the run.
    # All handlers of the file share the stream, so that this happens once.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, handler.stream.fileno())
    os.close(nowhere)
    print(
        f"Could not write {handler.stream.name} ({error.strerror}); the log goes on here only.",
        file=sys.stderr,
    )
