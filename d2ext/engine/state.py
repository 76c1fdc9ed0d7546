"""What a trainer saves and restores."""

import logging
from typing import Any, Dict, List, Optional

from detectron2.engine import HookBase as UpstreamHookBase
from detectron2.utils import comm
from torch import nn

from d2ext.modeling.backbones.pretrained import starting_weights

from .checkpoint import plain
from .class_checks import check_trained
from .description import describe_run
from .errors import RunError, WriteError
from .module_state import (
    ChangedAttributes,
    buffers_of,
    copy_into_buffers,
    load_storage,
    storage_state,
    without_repeats,
)
from .random_state import get_random_state, set_random_state
from .schedule import OPTIMIZER_KEYS, changed_keys, schedule_keys

__all__ = ["RunState"]

logger = logging.getLogger(__name__)

# A new schedule resets these.
_SCHEDULE_HOOKS = (
    "LRScheduler", "PeriodicWriter", "IterationTimer", "EarlyStopping", "Evaluate",
    "ValidationLoss", "ResultsTable",
)  # fmt: skip

# What tells optimisers apart in a group of their parameters.
_KINDS = {"momentum", "betas", "alpha", "rho", "lambd", "etas", "lr_decay"}


class RunState:
    """What :class:`Trainer` saves and restores, and where it stands after that.

    Args:
        trainer: the trainer, or a weak reference that acts as it.
        model: the model without a wrapper, as it was built.

    Attributes:
        resumed: whether the run goes on from a checkpoint.
        restarted: a resume was asked for, and there was nothing to resume from.
        schedule_is_new: the checkpoint's state goes on in a schedule that begins at step 0.
        writing: "now" while a checkpoint is being written, "written" after the last one of a run
            that stops, else "".
    """

    def __init__(self, trainer: Any, model: nn.Module):
        self.trainer = trainer
        self._attributes = ChangedAttributes(model)
        self.resumed = self.restarted = self.schedule_is_new = False
        self.writing = ""
        self._description: Optional[Dict[str, Any]] = None
        self._random_state: Optional[Dict[str, Any]] = None
        self._storage_state: Optional[Dict[str, Any]] = None
        self._optimizer_keys: Dict[str, Any] = {}  # those of the run that this one goes on with
        self._interrupted_at = self._interrupted_at_load = ""
        self._restored: List[str] = []
        self._missing: List[str] = []
        self._path = ""  # the checkpoint that is being resumed from

    # --------------------------------------------------------------- saving

    def hook_keys(self) -> Dict[str, UpstreamHookBase]:
        """Hooks by the key of their state: the class's name, followed by "#1" for the second."""
        keys: Dict[str, UpstreamHookBase] = {}
        for hook in self.trainer.all_hooks:
            name = getattr(hook, "name", None) or type(hook).__qualname__
            count = 0
            while (f"{name}#{count}" if count else name) in keys:
                count += 1
            keys[f"{name}#{count}" if count else name] = hook
        return keys

    def state_dict(self) -> Dict[str, Any]:
        """Everything but the model and what differs among ranks."""
        hooks = {key: hook.state_dict() for key, hook in self.hook_keys().items()}
        state = {
            "iteration": self.trainer.completed_steps - 1,
            "hooks": {key: value for key, value in hooks.items() if value},
            "optimizer": self.trainer.optimizer.state_dict(),
            "precision": self.trainer.precision.state_dict(),
            "guard": self.trainer.guard.state_dict(),
            "gradient_order": self.trainer.step.order.names,
            "interrupted_at": self._interrupted_at,
            **self.trainer.stop.state_dict(),
        }
        if hasattr(self.trainer, "storage"):
            state["storage"] = storage_state(self.trainer.storage)
        if hasattr(self.trainer.data_loader, "state_dict"):
            state["data"] = self.trainer.data_loader.state_dict()
        if self.trainer.cfg is not None:
            state["schedule"] = {**schedule_keys(self.trainer.cfg), **self._optimizer_keys}
        return state

    def check_states(self) -> None:
        """Fail before the first step, not at the first checkpoint, if a state cannot be saved."""
        for key, hook in self.hook_keys().items():
            plain(hook.state_dict(), f"The state of the hook {key}")

    def save_checkpoint(self, name: str, *, tag: bool = True) -> None:
        """Write ``{name}.pth`` with the state of all ranks. Every rank must call it.

        Args:
            name: the file's name without ".pth".
            tag: whether a resumed run starts from this file.

        Raises:
            WriteError: it could not be written; on every rank.
            NonFiniteLossError: there is a number in it that is not finite; on every rank.
        """
        self.writing = "now"
        try:
            self._save(name, tag)
        except BaseException:
            self.writing = ""
            raise
        self.writing = "written" if self.trainer.stopping and tag else ""

    def _save(self, name: str, tag: bool) -> None:
        self.trainer.flush_metrics()
        per_rank = {k: h for k, h in self.hook_keys().items() if _differs_among_ranks(h)}
        ranks = comm.gather(
            {
                "random": get_random_state(),
                "hooks": {key: plain(_rank_state(hook), key) for key, hook in per_rank.items()},
                "buffers": buffers_of(self.trainer.raw_model),
                "attributes": self._attributes.state_dict(),
            }
        )
        problem: Optional[RunError] = None
        if comm.is_main_process():
            if self._description is None:
                self._description = describe_run(self.trainer.cfg)
            lock = self.trainer.lock
            try:
                lost = lock.problem() if lock is not None else ""
                if lost and not lock.make_again():
                    raise WriteError(
                        f"{lost}; {name}.pth is not written into what is there now: see where the "
                        "files of the run are, and start again with --resume."
                    )
                self.trainer.checkpointer.save(
                    name,
                    tag=tag,
                    iteration=self.trainer.completed_steps - 1,
                    ranks=without_repeats(ranks),
                    **self._description,
                )
                if lost:
                    raise WriteError(
                        f"{lost}; {name}.pth is in a new folder of that name: move it to the other "
                        "files, if there are any, and start again with --resume."
                    )
            except RunError as error:
                problem = error
        problem = comm.all_gather(problem)[0]
        if problem is not None:
            raise problem

    def save_before(self, hook: UpstreamHookBase) -> None:
        """Called by a slow hook: if this step ends with a checkpoint, write one now as well.

        A run resumed from it begins with ``after_step`` of this hook and of those after it.
        """
        names = [h.name_if_due() for h in self.trainer.all_hooks if hasattr(h, "name_if_due")]
        for name in filter(None, names):
            keys = self.hook_keys()
            self._interrupted_at = next(key for key, h in keys.items() if h is hook)
            try:
                self.trainer.save_checkpoint(name)
            finally:
                self._interrupted_at = ""

    # ------------------------------------------------------------ restoring

    def resume_or_load(self, resume: bool = True, *, new_schedule: bool = False) -> None:
        """Resume from the last checkpoint in ``output_dir``, or start from weights.

        * ``resume``: everything goes on as if it had not stopped.
        * ``new_schedule``: model, optimiser, hooks and the order of the data are restored, but the
          count of steps and the learning rate start over, as the config has them.
        * neither, or no checkpoint there: only the weights of MODEL.WEIGHTS are loaded.
        """
        path = self.trainer.checkpointer.get_checkpoint_file() if resume or new_schedule else ""
        if not path:
            self._start_from_weights(resume or new_schedule)
            return
        self.schedule_is_new = new_schedule
        self._restored, self._missing = [], []
        self._path = path
        checkpointer = self.trainer.checkpointer
        extra = checkpointer.load(path)
        # A newer file of another model, say, where the tag is lost: it would start from nothing.
        check_trained(checkpointer.model, path, checkpointer.last_incompatible)
        self._path = ""
        self.trainer.checkpointer.adopt(extra)
        if not self._restored:
            self._missing.append("the trainer's state")
        self._load_rank_state(extra.get("ranks"))
        self.resumed = True
        self.trainer.start_iter = 0 if new_schedule else self.trainer.completed_steps
        self._report(path)

    def _start_from_weights(self, wanted_resume: bool) -> None:
        cfg = self.trainer.cfg
        weights = starting_weights(cfg) if cfg is not None else ""
        self.restarted = wanted_resume
        if wanted_resume:
            logger.warning(
                f"No checkpoint to resume from in '{self.trainer.output_dir}'; starting over."
            )
        elif self.trainer.checkpointer.has_checkpoint():
            logger.warning(
                f"'{self.trainer.output_dir}' holds checkpoints, which this new run will "
                "overwrite; --resume would go on from them."
            )
        self.trainer.checkpointer.load(weights, checkpointables=[])

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, or what Detectron2's trainer saved."""
        state = {**state_dict.get("_trainer", {}), **state_dict}
        if not self.schedule_is_new:
            self.trainer.completed_steps = int(state["iteration"]) + 1
            # As in Detectron2, whose scripts go on with the step after it.
            self.trainer.iter = int(state["iteration"])
            self._storage_state = state.get("storage")
            self._interrupted_at_load = state.get("interrupted_at", "")
            self.trainer.stop.before = state.get("stopped_early", "")
        self.trainer.step.order.names = list(state.get("gradient_order", []))
        self._load_optimizer(state)
        self._load_hooks(state.get("hooks", {}))
        for key, part in (
            ("precision", self.trainer.precision),
            ("guard", self.trainer.guard),
            ("data", self.trainer.data_loader),
        ):
            if key in state and hasattr(part, "load_state_dict"):
                part.load_state_dict(state[key])
                self._restored.append(key)
            elif key in state or hasattr(part, "load_state_dict"):
                self._missing.append(key)
        if not hasattr(self.trainer.data_loader, "load_state_dict"):
            logger.warning("The data loader has no state: the order of the data starts over.")
        self._compare_schedules(state.get("schedule"))

    def _load_optimizer(self, state: Dict[str, Any]) -> None:
        if "optimizer" not in state:
            self._missing.append("optimizer")
            return
        saved, optimizer = state["optimizer"], self.trainer.optimizer
        self._require_same_model(saved["param_groups"])
        self._require_same_optimizer(saved["param_groups"])
        if self.schedule_is_new:
            saved = {**saved, "param_groups": optimizer.state_dict()["param_groups"]}
        optimizer.load_state_dict(saved)
        self._restored.append("optimizer")

    def _require_same_model(self, saved_groups: List[Dict[str, Any]]) -> None:
        """A run cannot go on in another model: its optimiser's state would fit nothing."""
        found = self.trainer.checkpointer.last_incompatible
        if not self._path or found is None:
            return
        parameters = dict(self.trainer.raw_model.named_parameters())
        other = [
            f"{name} is {tuple(saved)} there and {tuple(now)} here"
            for name, saved, now in found.incorrect_shapes
            if name in parameters
        ]
        if _sizes(saved_groups) != _sizes(self.trainer.optimizer.param_groups):
            other += [f"it has no {name}" for name in found.missing_keys if name in parameters]
        if other:
            more = f", and {len(other) - 1} more differ" if len(other) > 1 else ""
            raise RunError(
                f"The checkpoint {self._path} is of another model ({other[0]}{more}), and a run "
                "goes on with its own; choose another OUTPUT_DIR and start from its weights with "
                f"--init-from {self._path}."
            )

    def _require_same_optimizer(self, saved: List[Dict[str, Any]]) -> None:
        groups = self.trainer.optimizer.param_groups
        kinds = [{key for group in part for key in group} & _KINDS for part in (saved, groups)]
        if _sizes(saved) == _sizes(groups) and kinds[0] == kinds[1]:
            return
        now = type(self.trainer.optimizer).__name__
        raise RunError(
            f"The checkpoint {self._path or 'to resume from'} was written with another optimiser, "
            f"or with other groups of parameters, than {now} has here; resume with the keys in "
            "SOLVER that it was trained with, or choose another OUTPUT_DIR and start from its "
            "weights with --init-from."
        )

    def _load_hooks(self, states: Dict[str, Any]) -> None:
        hooks = self.hook_keys()
        for key, saved in states.items():
            if self.schedule_is_new and key.split("#")[0] in _SCHEDULE_HOOKS:
                continue
            if key in hooks and hasattr(hooks[key], "load_state_dict"):
                hooks[key].load_state_dict(saved)
                self._restored.append(f"hook {key}")
            else:
                self._missing.append(f"a hook for the saved state of {key}")
        for key, hook in hooks.items():
            if key not in states and hook.state_dict():
                self._missing.append(f"a saved state of the hook {key}")

    def _load_rank_state(self, ranks: Optional[List[Dict[str, Any]]]) -> None:
        if ranks is None:
            self._missing.append("random states")
            return
        if len(ranks) != comm.get_world_size():
            self._missing.append(
                f"random states (saved by {len(ranks)} processes, now {comm.get_world_size()})"
            )
            return
        mine = ranks[comm.get_rank()]
        self._random_state = mine["random"]
        copy_into_buffers(self.trainer.raw_model, mine["buffers"])
        self._attributes.load_state_dict(mine["attributes"])
        hooks = self.hook_keys()
        for key, saved in mine["hooks"].items():
            # What ranks share now, all of them have from rank 0 already.
            if key in hooks and _differs_among_ranks(hooks[key]):
                hooks[key].load_state_dict(saved)
        self._restored.append(f"random states of {len(ranks)} process(es)")

    def _compare_schedules(self, saved: Optional[Dict[str, Any]]) -> None:
        if saved is None or self.trainer.cfg is None or self.schedule_is_new:
            return
        self._optimizer_keys = {key: saved[key] for key in OPTIMIZER_KEYS if key in saved}
        changed, kept = changed_keys(saved, schedule_keys(self.trainer.cfg))
        if changed:
            logger.warning(
                f"The schedule is not the checkpoint's: {', '.join(changed)}. The count of steps "
                "goes on; --reset-schedule would start the new schedule at its first step."
            )
        if kept:
            logger.warning(
                "The optimiser is the checkpoint's, so the config does not change it: "
                f"{', '.join(kept)}. --reset-schedule would take the config's, at step 0."
            )

    def _report(self, path: str) -> None:
        incompatible = self.trainer.checkpointer.last_incompatible
        if incompatible is not None:
            self._missing += [f"model key {k}" for k in incompatible.missing_keys]
            self._missing += [f"a place for {k}" for k in incompatible.unexpected_keys]
            self._missing += [
                f"model key {k[0]} (its shape)" for k in incompatible.incorrect_shapes
            ]
        what = (
            "with a new schedule" if self.schedule_is_new else f"at step {self.trainer.start_iter}"
        )
        logger.info(f"Resumed {what} from {path}; restored: model, {', '.join(self._restored)}.")
        if self._missing:
            logger.warning(f"Missing on resume: {', '.join(self._missing)}.")
        else:
            logger.info("Missing on resume: nothing.")

    # -------------------------------------------- restoring inside of train

    @property
    def interrupted_at(self) -> str:
        """The key of the hook in whose ``after_step`` the last run was killed, or ""."""
        return self._interrupted_at_load

    def restore_storage(self) -> None:
        if self._storage_state is not None:
            load_storage(self.trainer.storage, self._storage_state)
            self._storage_state = None

    def restore_random_state(self) -> None:
        """After ``before_train``, whose hooks may draw: the uninterrupted run drew before, too."""
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def save_new_schedule(self) -> None:
        """Before the first step of a new schedule: a run that is resumed before the first regular
        checkpoint must go on with it, and not with the schedule that had ended."""
        if self.schedule_is_new and self.trainer.start_iter == 0:
            self.trainer.save_checkpoint("model_0000000")

    def take_interrupted_hook(self) -> Optional[UpstreamHookBase]:
        """The hook whose ``after_step`` a kill interrupted, once."""
        key, self._interrupted_at_load = self._interrupted_at_load, ""
        hook = self.hook_keys().get(key)
        if hook is not None:
            logger.info(f"The last run was interrupted at {key}; doing that first.")
        return hook


def _sizes(groups: List[Dict[str, Any]]) -> List[int]:
    return [len(group["params"]) for group in groups]


def _differs_among_ranks(hook: UpstreamHookBase) -> bool:
    return getattr(hook, "per_rank_state", False) and hasattr(hook, "load_state_dict")


def _rank_state(hook: UpstreamHookBase) -> Dict[str, Any]:
    """What of a hook's state differs among ranks; all of it unless the hook says more."""
    own = getattr(hook, "rank_state_dict", None)
    return hook.state_dict() if own is None else own()
