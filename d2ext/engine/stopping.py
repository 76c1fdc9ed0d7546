"""When a run ends: with its last step, because something asked for it, or as it did before."""

import logging
from typing import Any, Dict, List

from detectron2.utils import comm

from .attributes import TrainerAttributes
from .errors import EXIT_PREEMPTED
from .step_record import StepRecord

__all__ = ["Stopping"]

logger = logging.getLogger(__name__)


class Stopping(TrainerAttributes):
    """The part of :class:`Trainer` that decides when it ends; no class of its own.

    That is decided once a step, before the first ``after_step``: all hooks of a step have to agree
    on whether it is the last one, those that evaluate and the one that writes model_final.
    """

    def _init_stopping(self) -> None:
        # Pairs are (because of a signal, for another reason).
        self._wishes, self._stop_reason = [False, False], ""
        self._stop_next = self._stop_agreed = (False, False)
        self._stopped_before = ""  # why the run of the loaded checkpoint had ended early

    # ------------------------------------------------------------- wishes

    def request_stop(
        self, reason: str, by_signal: bool = False, *, evaluated: bool = False
    ) -> None:
        """End the training after this step, or after the next one if this one is being finished.

        Any rank may ask, and all stop at the same step; on several GPUs it is one more.

        Args:
            reason: why, for the log.
            by_signal: the run is to be resumed: exit code 75 instead of 0, no final evaluation.
            evaluated: asked in ``after_step``, when all has been evaluated that the last step
                evaluates: a single process ends with this step then.
        """
        self._wishes[0 if by_signal else 1] = True
        self._stop_reason = self._stop_reason or reason
        if evaluated and comm.get_world_size() == 1:
            self._stop_agreed = (self._stop_agreed[0], True)

    def _note_wishes(self, record: StepRecord) -> None:
        """Take in what the ranks wished in a step. It may be read in the middle of a step."""
        if comm.get_world_size() > 1:
            self._stop_next = (record.stop_wishes[0] > 0, record.stop_wishes[1] > 0)

    def _decide_stop(self) -> None:
        """Before the hooks of a step."""
        if comm.get_world_size() == 1:
            self._stop_next = (self._wishes[0], self._wishes[1])
        self._stop_agreed = self._stop_next

    def _decide_late_stop(self) -> None:
        """Before the hooks that write: a signal changes nothing for the others."""
        if comm.get_world_size() == 1 and not self.stopping:
            self._stop_agreed = (self._wishes[0], False)

    # ------------------------------------------------------------- decisions

    @property
    def stopping(self) -> bool:
        """Whether all ranks have agreed to stop after this step."""
        return any(self._stop_agreed)

    @property
    def _stopping_early(self) -> bool:
        return self._stop_agreed[1] and not self._stop_agreed[0]

    @property
    def is_last_step(self) -> bool:
        """Whether training is complete with this step."""
        return self.iter + 1 >= self.max_iter or self._stopping_early

    @property
    def stopped_by_signal(self) -> bool:
        """Whether the run ends before its last step, to be resumed."""
        return self._stop_agreed[0] and not self.finished

    @property
    def exit_code(self) -> int:
        if self.stopped_by_signal:
            return EXIT_PREEMPTED
        return 0

    def is_due(self, period: int) -> bool:
        """Whether something done every ``period`` steps, and at the end, is due in this step."""
        return (period > 0 and (self.iter + 1) % period == 0) or self.is_last_step

    def _is_finished(self) -> bool:
        return self.completed_steps >= self.max_iter or self._stopping_early

    def _why_stopped(self) -> str:
        return self._stop_reason or "another process asked to"

    def _say_why_stopped(self) -> None:
        if self.stopping:
            why = self._why_stopped()
            advice = "; --resume goes on from here" if self.stopped_by_signal else ""
            logger.info(f"Stopped after step {self.completed_steps}: {why}{advice}.")

    # ------------------------------------------------------------- resuming

    def _stop_state(self) -> Dict[str, Any]:
        return {"stopped_early": self._why_stopped() if self._stopping_early else ""}

    def _resume_stopped(self, interrupted: bool) -> None:
        """A run that had ended early stays so if a hook still wants it, as EarlyStopping does.

        Args:
            interrupted: the last run was killed in its final evaluation, which comes first.
        """
        if not self._stopped_before:
            return
        wishes: List[bool] = comm.all_gather(self._wishes[1])
        if interrupted or any(wishes):
            self._wishes[1] = True
            self._stop_reason = self._stop_reason or self._stopped_before
            self._stop_next = self._stop_agreed = (False, True)
