"""Writing: metrics, checkpoints, and precise batch-norm statistics before both."""

from typing import Any, Dict, List

from detectron2.engine import hooks as upstream
from detectron2.utils.events import EventWriter

from d2ext._files import writing

from ..random_state import isolated_random_state
from .base import HookBase

__all__ = ["PeriodicCheckpointer", "PeriodicWriter", "PreciseBN"]


class PeriodicWriter(HookBase):
    """Calls the writers every ``period`` steps, at the last one and when the run stops.

    Writers with ``state_dict`` go on where they stopped: a figure is written once, however
    often the run is interrupted.
    """

    runs_last = True

    def __init__(self, writers: List[EventWriter], period: int = 20):
        self._writers, self._period = writers, period

    def before_train(self) -> None:
        for writer in self._writers:
            if hasattr(writer, "start"):
                writer.start(self.trainer)

    def after_step(self) -> None:
        for writer in self._writers:
            if hasattr(writer, "step"):
                writer.step(self.trainer)
        if self.trainer.is_due(self._period):
            self.trainer.flush_metrics()
            for writer in self._writers:
                _write(writer)
            self._look_at_folder()

    def _look_at_folder(self) -> None:
        """Stop before more work is lost if the output folder is gone; see RunState."""
        lock = self.trainer.lock
        lost = lock.problem() if lock is not None else ""
        if lost:
            self.trainer.request_stop(lost, by_signal=True)

    def after_train(self) -> None:
        try:
            for writer in self._writers:
                # A stopped run leaves the rest to the run that resumes it, from the checkpoint.
                if not self.trainer.stopped_by_signal:
                    self._write_last(writer)
        finally:
            for writer in self._writers:
                writer.close()

    def _write_last(self, writer: EventWriter) -> None:
        """A run that has failed reports its own error, whatever a writer makes of the figures of
        half a step (Detectron2's printer divides by zero) or of a disk that is still full."""
        try:
            _write(writer)
        except Exception:
            if self.trainer.finished:
                raise

    def state_dict(self) -> Dict[str, Any]:
        states = [w.state_dict() if hasattr(w, "state_dict") else {} for w in self._writers]
        return {"writers": {type(w).__name__: s for w, s in zip(self._writers, states) if s}}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        for writer in self._writers:
            state = state_dict["writers"].get(type(writer).__name__)
            if state and hasattr(writer, "load_state_dict"):
                writer.load_state_dict(state)


def _write(writer: EventWriter) -> None:
    with writing(f"the figures of {type(writer).__name__}"):
        writer.write()


class PeriodicCheckpointer(HookBase):
    """Writes ``model_{step}.pth`` every ``period`` steps and when the run is stopped, and
    ``model_final.pth`` at the end; after all other hooks, whose state it saves."""

    runs_last = True

    def __init__(self, period: int):
        self.period = period

    def name_if_due(self) -> str:
        """The name of the checkpoint that this step ends with, or ""."""
        if self.trainer.is_last_step:
            return "model_final"
        if self.trainer.stopping or self.trainer.is_due(self.period):
            return f"model_{self.trainer.iter:07d}"
        return ""

    def after_step(self) -> None:
        name = self.name_if_due()
        if name:
            self.trainer.save_checkpoint(name)


class PreciseBN(upstream.PreciseBN):
    """Detectron2's, on the same batches each time: so it has no state of its own, and a resumed
    run measures what an uninterrupted one does."""

    def after_step(self) -> None:
        # Detectron2's looks at max_iter alone, and a run may end before that.
        if not self._disabled and self.trainer.is_due(self._period):
            self.update_stats()

    def update_stats(self) -> None:
        self._data_iter = None
        loader: Any = getattr(self, "_data_loader", None)
        if hasattr(loader, "batches_consumed"):
            loader.batches_consumed = 0
            # A random seed is saved with the training loader, and comes back with it.
            loader.seed = getattr(self.trainer.data_loader, "seed", loader.seed)
        with isolated_random_state():
            super().update_stats()
        self._data_iter = None
