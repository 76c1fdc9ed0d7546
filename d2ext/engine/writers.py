"""Where the figures go: a JSON file, TensorBoard, Weights & Biases, a bar on the terminal."""

import contextlib
import json
import logging
import os
import sys
import time
from datetime import timedelta
from typing import Any, Dict, List, Optional, TextIO, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from tqdm import tqdm

from d2ext._files import atomic_write, writing
from d2ext.config import validate

__all__ = ["MetricsWriter", "ProgressBar", "WandbWriter", "build_writers"]

logger = logging.getLogger(__name__)


def build_writers(cfg: CfgNode, max_iter: int, new_schedule: bool = False) -> List[EventWriter]:
    """The writers a config asks for."""
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    writers: List[EventWriter] = [
        CommonMetricPrinter(max_iter),
        MetricsWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json")),
    ]
    if cfg.ENGINE.TENSORBOARD:
        try:
            import torch.utils.tensorboard  # noqa: F401

            writers.append(TensorboardXWriter(cfg.OUTPUT_DIR))
        except ImportError:
            logger.warning("No TensorBoard log: the package tensorboard is not installed.")
    if cfg.ENGINE.WANDB.ENABLED:
        writers.append(WandbWriter(cfg))
    validate(cfg, "ENGINE.PROGRESS_BAR")
    choice = cfg.ENGINE.PROGRESS_BAR
    if choice == "on" or (choice == "auto" and sys.stderr.isatty()):
        writers.append(ProgressBar(max_iter))
    return writers


class MetricsWriter(JSONWriter):
    """``metrics.json``, one object a line, which stays true over kills and resumes.

    A killed run may have written lines beyond its last checkpoint. They are removed when it is
    resumed, because the steps are done, and logged, again.
    """

    _file_handle: TextIO
    _last_write: int

    def __init__(self, json_file: str, window_size: int = 20):
        self._path, self._restored = json_file, False
        self._earlier = 0  # lines of earlier schedules, whose steps are counted apart
        super().__init__(json_file, window_size)

    def start(self, trainer: Any) -> None:
        """Called before the first step of a run."""
        last = float("inf")
        if trainer.state.resumed and not trainer.state.schedule_is_new:
            # Figures of earlier steps that the checkpoint has and the file may have as well.
            last = self._last_write if self._restored else trainer.start_iter - 1
        elif trainer.state.restarted:
            last = -1  # the last run ended before its first checkpoint
        kept = self._remove_lines_after(last)
        if last == float("inf"):
            self._earlier = kept

    def write(self) -> None:
        with writing(self._path):
            for step, values in _figures_since(self._last_write, self._window_size):
                line = {**values, "iteration": step}
                self._file_handle.write(json.dumps(line, sort_keys=True) + "\n")
                self._last_write = step
            self._file_handle.flush()
            os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        # After a write that failed, closing tries it again. These lines are not needed: they are
        # newer than the checkpoint that the next run resumes from.
        with contextlib.suppress(OSError):
            self._file_handle.close()

    def _remove_lines_after(self, iteration: float) -> int:
        """Keep earlier lines, and those of steps up to one; never a line that was cut off.

        Returns:
            how many are kept
        """
        self._file_handle.close()
        kept: List[bytes] = []
        if os.path.isfile(self._path):
            with open(self._path, "rb") as stream:
                for number, line in enumerate(stream):
                    limit = float("inf") if number < self._earlier else iteration
                    if _iteration(line) <= limit:
                        kept.append(line)
        with writing(self._path), atomic_write(self._path) as stream:
            stream.writelines(kept)
        self._file_handle = open(self._path, "a")  # noqa: SIM115  (closed by close())
        return len(kept)

    def state_dict(self) -> Dict[str, Any]:
        return {"last_write": self._last_write, "earlier": self._earlier}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._last_write, self._restored = state["last_write"], True
        self._earlier = state.get("earlier", 0)


def _figures_since(last: int, window: int) -> List[Tuple[int, Dict[str, float]]]:
    """The figures newer than step ``last``, by step in order."""
    by_step: Dict[int, Dict[str, float]] = {}
    newest = get_event_storage().latest_with_smoothing_hint(window)
    for name, (value, step) in newest.items():
        if step > last:
            by_step.setdefault(step, {})[name] = value
    return sorted(by_step.items())


def _iteration(line: bytes) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return float("nan")  # cut off by the kill, or by a full disk


class WandbWriter(EventWriter):
    """Logs to Weights & Biases; a resumed run goes on in the same one."""

    def __init__(self, cfg: CfgNode, window_size: int = 20):
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "ENGINE.WANDB.ENABLED needs the package wandb: run 'pip install wandb', "
                "or set it to False."
            ) from error
        self._wandb = wandb
        self._run: Any = None
        self._run_id: Optional[str] = None
        self._window_size, self._last_write = window_size, -1
        self._arguments = {
            "project": cfg.ENGINE.WANDB.PROJECT,
            "name": cfg.ENGINE.WANDB.NAME or None,
            "dir": cfg.OUTPUT_DIR,
            "config": {"cfg": cfg.dump()},
        }

    def start(self, trainer: Any) -> None:
        """Called before the first step of a run."""
        self._run = self._wandb.init(id=self._run_id, resume="allow", **self._arguments)
        self._run_id = self._run.id

    def write(self) -> None:
        for step, values in _figures_since(self._last_write, self._window_size):
            self._run.log(values, step=step)
            self._last_write = step

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def state_dict(self) -> Dict[str, Any]:
        return {"run_id": self._run_id, "last_write": self._last_write}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._run_id, self._last_write = state["run_id"], state["last_write"]


class ProgressBar(EventWriter):
    """One line on the terminal: steps, loss, learning rate, time left, memory.

    While it is there, the periodic lines of figures go to the log file only.
    """

    def __init__(self, max_iter: int, stream: Optional[TextIO] = None, interval: float = 0.2):
        self._max_iter, self._stream = max_iter, stream or sys.stderr
        self._interval, self._drawn_at = interval, 0.0
        self._bar: Optional[tqdm] = None
        self._filtered: List[logging.Handler] = []

    def start(self, trainer: Any) -> None:
        """Called before the first step of a run."""
        self._bar = tqdm(
            total=self._max_iter,
            initial=getattr(trainer, "start_iter", 0),
            file=self._stream,
            ascii=".#",
            dynamic_ncols=True,
            bar_format="[{bar:20}] {n_fmt}/{total_fmt}  {desc}",
        )
        names = ("", "detectron2", "fvcore", "d2ext")
        for handler in {h for name in names for h in logging.getLogger(name).handlers}:
            if isinstance(handler, logging.FileHandler):
                continue
            stream = getattr(handler, "stream", None)
            if getattr(stream, "isatty", lambda: False)():
                handler.addFilter(self._make_room)
                self._filtered.append(handler)

    def _make_room(self, record: logging.LogRecord) -> bool:
        if record.name == "detectron2.utils.events":
            return False
        if self._bar is not None:
            self._bar.clear()
        return True

    def step(self, trainer: Any) -> None:
        """Called after each step."""
        now = time.monotonic()
        drawn = now - self._drawn_at < self._interval and not trainer.is_last_step
        if self._bar is None or drawn:
            return
        self._drawn_at = now
        self._bar.n = trainer.iter + 1
        self._bar.set_description_str(self._words(trainer), refresh=False)
        self._bar.refresh()

    def _words(self, trainer: Any) -> str:
        storage, words = trainer.storage, []
        newest = storage.latest()
        if "total_loss" in newest:
            window = storage.count_samples("total_loss", 20)
            words.append(f"loss {storage.history('total_loss').median(window):.4g}")
        if "lr" in newest:
            words.append(f"lr {newest['lr'][0]:.3g}")
        if "time" in newest:
            left = storage.history("time").median(100) * (self._max_iter - trainer.iter - 1)
            words.append(f"eta {timedelta(seconds=int(left))}")
        words.append(f"mem {_memory_mb():.0f}M")
        return "  ".join(words)

    def write(self) -> None:
        pass

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        for handler in self._filtered:
            handler.removeFilter(self._make_room)


def _memory_mb() -> float:
    """The most memory used so far: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
