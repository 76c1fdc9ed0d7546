"""When a run ends: with its last step, because something asked for it, or as it did before."""

from typing import Any, Dict, List, Tuple

from detectron2.utils import comm

from .step_record import StepRecord

__all__ = ["StopVotes"]


class StopVotes:
    """What the ranks of a run wish about its end, and what they have agreed on.

    That is decided once a step, before the first ``after_step``: all hooks of a step have to agree
    on whether it is the last one, those that evaluate and the one that writes model_final.

    Pairs are (because of a signal, for another reason).
    """

    def __init__(self) -> None:
        self.wishes = [False, False]  # of this rank
        self.agreed: Tuple[bool, bool] = (False, False)
        self.before = ""  # why the run of the loaded checkpoint had ended early
        self._next: Tuple[bool, bool] = (False, False)
        self._reason = ""

    # ------------------------------------------------------------- wishes

    def ask(self, reason: str, by_signal: bool = False, *, evaluated: bool = False) -> None:
        """See :meth:`Trainer.request_stop`."""
        self.wishes[0 if by_signal else 1] = True
        self._reason = self._reason or reason
        if evaluated and comm.get_world_size() == 1:
            self.agreed = (self.agreed[0], True)

    def take_in(self, record: StepRecord) -> None:
        """What the ranks wished in a step. It may be read in the middle of a step."""
        if comm.get_world_size() > 1:
            self._next = (record.stop_wishes[0] > 0, record.stop_wishes[1] > 0)

    def decide(self) -> None:
        """Before the hooks of a step."""
        if comm.get_world_size() == 1:
            self._next = (self.wishes[0], self.wishes[1])
        self.agreed = self._next

    def decide_late(self) -> None:
        """Before the hooks that write: a signal changes nothing for the others."""
        if comm.get_world_size() == 1 and not self.stopping:
            self.agreed = (self.wishes[0], False)

    # ------------------------------------------------------------- decisions

    @property
    def stopping(self) -> bool:
        """Whether all ranks have agreed to stop after this step."""
        return any(self.agreed)

    @property
    def by_signal(self) -> bool:
        return self.agreed[0]

    @property
    def early(self) -> bool:
        """Whether training is complete with this step, although more were planned."""
        return self.agreed[1] and not self.agreed[0]

    @property
    def reason(self) -> str:
        return self._reason or "another process asked to"

    # ------------------------------------------------------------- resuming

    def state_dict(self) -> Dict[str, Any]:
        return {"stopped_early": self.reason if self.early else ""}

    def resume(self, interrupted: bool) -> None:
        """A run that ended early does not go on if a hook, such as EarlyStopping, still says so.

        Args:
            interrupted: the last run was killed in its final evaluation, which comes first.
        """
        if not self.before:
            return
        wishes: List[bool] = comm.all_gather(self.wishes[1])
        if interrupted or any(wishes):
            self.wishes[1] = True
            self._reason = self._reason or self.before
            self._next = self.agreed = (False, True)
