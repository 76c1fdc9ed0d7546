"""The trainer: one loop for every number format, every launch and every hook."""

import contextlib
import logging
import time
import weakref
from typing import Any, ContextManager, Dict, Iterable, Iterator, List, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.engine import HookBase as UpstreamHookBase
from detectron2.engine import TrainerBase
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2ext.data.packed_batch import batch_on
from d2ext.ops.reduce import Deferred, deferring

from .builders import Builders
from .checkpoint import Checkpointer
from .errors import expected_error
from .module_state import ChangedAttributes, recent_storage
from .nonfinite import NonFiniteGuard
from .output_lock import lock_output_folder
from .precision import GlobalNormClipper, Precision
from .state import TrainerState
from .step_record import StepRecord, StepRecorder

__all__ = ["Trainer", "create_ddp_model"]

logger = logging.getLogger(__name__)


def create_ddp_model(model: nn.Module, *, find_unused_parameters: bool = False) -> nn.Module:
    """Wrap a model in DistributedDataParallel if there are several ranks, on GPU or CPU."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(
        model,
        # Detectron2's helper names the GPU by the rank: DDP refuses that on the CPU, and a process
        # that sees one GPU alone has no other number for it than 0.
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=find_unused_parameters,
    )


class Trainer(TrainerState, Builders, TrainerBase):
    """Trains a model that returns a dictionary of losses.

    ``Trainer(cfg)`` builds everything from a config, as Detectron2's ``DefaultTrainer`` does, and
    through the same overridable methods (``build_model``, ``build_train_loader``, ...).
    ``Trainer(model=..., data_loader=..., optimizer=...)`` takes ready parts and adds no hook.

    A step::

        before_step
        for each micro-step:  forward, on_losses, backward
        after_backward, clipping, optimiser
        after_step

    Args:
        model: returns a dict of scalar losses (or one loss) for a batch.
        data_loader: yields batches without end; with ``state_dict`` and ``load_state_dict`` (see
            :class:`ResumableLoader`) the order of the data survives a resume.
        optimizer: optimises the model's parameters.
        max_iter: steps to train.
        scheduler: a learning-rate scheduler, for the hook that steps it.
        precision: number format; float32 by default.
        accumulate: micro-steps, each with a batch of its own, in one step.
        clipper: clips all gradients together.
        guard: what to do about a non-finite loss.
        output_dir: where checkpoints go; "" writes none.
        max_to_keep: numbered checkpoints to keep; 0 keeps all.
        find_unused_parameters: see :class:`DistributedDataParallel`.
        config: the config all this comes from, if it does.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        max_iter: int = 0,
        scheduler: Any = None,
        precision: Optional[Precision] = None,
        accumulate: int = 1,
        clipper: Optional[GlobalNormClipper] = None,
        guard: Optional[NonFiniteGuard] = None,
        output_dir: str = "",
        max_to_keep: int = 0,
        find_unused_parameters: bool = False,
        config: Optional[CfgNode] = None,
    ):
        super().__init__()
        if accumulate < 1:
            raise ValueError(f"SOLVER.ACCUMULATE is {accumulate}; it must be at least 1.")
        self.cfg = config
        self.raw_model = model
        self.device = next(model.parameters()).device
        self.model = create_ddp_model(model, find_unused_parameters=find_unused_parameters)
        self.model.train()
        self.data_loader = data_loader
        self._data_iterator: Optional[Iterator] = None
        self.optimizer, self.scheduler = optimizer, scheduler
        self.precision = precision or Precision()
        self.accumulate, self.clipper = accumulate, clipper
        self.guard = guard or NonFiniteGuard(output_dir=output_dir)
        self.max_iter, self.output_dir = max_iter, output_dir
        self.micro_step = 0
        self.results: Optional[Dict[str, Any]] = None
        self.finished = False
        self._init_stopping()
        self._last_hooks: List[UpstreamHookBase] = []
        self._loss_hooks: List[Any] = []
        lag = self.device.type == "cuda" and not self.guard.skipping
        self._recorder = StepRecorder(self.device, lag)
        self._attributes = ChangedAttributes(model)
        self._init_state()
        self.checkpointer = Checkpointer(
            model, output_dir, max_to_keep=max_to_keep, trainer=weakref.proxy(self)
        )
        if config is not None:
            self.register_hooks(self.build_hooks())

    # ---------------------------------------------------------------- hooks

    def register_hooks(self, hooks: List[Optional[UpstreamHookBase]]) -> None:
        """Add hooks behind those there are; hooks marked ``runs_last`` stay behind all others."""
        super().register_hooks(hooks)
        self._hooks.sort(key=lambda hook: bool(getattr(hook, "runs_last", False)))
        self._last_hooks = [h for h in self._hooks if getattr(h, "runs_last", False)]
        self._loss_hooks = [h for h in self._hooks if hasattr(h, "on_losses")]

    def on_losses(self, loss_dict: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        for hook in self._loss_hooks:
            replaced = hook.on_losses(loss_dict)
            if replaced is not None:
                loss_dict = replaced
        return loss_dict

    def after_step(self) -> None:
        self._after_step(self._hooks[: len(self._hooks) - len(self._last_hooks)])

    def _after_step(self, hooks: List[UpstreamHookBase]) -> None:
        self._decide_stop()
        for hook in hooks:
            hook.after_step()
        self._decide_late_stop()
        for hook in self._last_hooks:
            hook.after_step()

    # ----------------------------------------------------------------- loop

    def train(
        self, start_iter: Optional[int] = None, max_iter: Optional[int] = None
    ) -> Optional[Dict[str, Any]]:
        """Train from ``start_iter`` to ``max_iter``; by default from where the state is.

        Returns:
            The last evaluation's results, on rank 0.
        """
        self.start_iter = self.start_iter if start_iter is None else start_iter
        self.max_iter = self.max_iter if max_iter is None else max_iter
        self.iter = self.completed_steps = self.start_iter
        lock = lock_output_folder(self.output_dir)
        if lock is not None:
            self.checkpointer.remove_leftovers()
        logger.info(f"Training from step {self.start_iter} to {self.max_iter}.")
        with lock or contextlib.nullcontext(), recent_storage(self.start_iter) as self.storage:
            try:
                self._restore_storage()
                self.before_train()
                self.check_states()
                self._restore_random_state()
                self._resume_stopped(interrupted=bool(self._interrupted_at_load))
                self._save_new_schedule()
                self._run_interrupted_hooks()
                for iteration in range(self.start_iter, self.max_iter):
                    if self.stopping:
                        break
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.flush_metrics()
                self.finished = self._is_finished()
                self.iter = self.completed_steps
                self._say_why_stopped()
            except Exception as error:
                if expected_error(error) is None:
                    logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()
        self._verify_results()
        return self.results

    def _verify_results(self) -> None:
        expected = self.cfg is not None and len(self.cfg.TEST.EXPECTED_RESULTS)
        if expected and self.finished and self.results and comm.is_main_process():
            verify_results(self.cfg, self.results)

    def run_step(self) -> None:
        """Forward, backward and update on ``accumulate`` batches."""
        if not self.model.training:
            raise RuntimeError(
                "The model is in evaluation mode; a hook must leave it in training mode."
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.begin_step(self.iter, self.optimizer.param_groups[0]["lr"], self.raw_model)
        losses: Dict[str, torch.Tensor] = {}
        data_time, deferred = 0.0, Deferred()
        for micro_step in range(self.accumulate):
            self.micro_step = micro_step
            start = time.perf_counter()
            batch = self._next_batch()
            data_time += time.perf_counter() - start
            is_last = micro_step + 1 == self.accumulate
            # An earlier micro-step's statistics are read by the next one; a step that may be
            # skipped sends no message at its end.
            later = deferring(deferred, enabled=is_last and not self.guard.skipping)
            with self._without_reduction(not is_last), later:
                micro_losses = self._micro_step(batch)
            if micro_losses is None:
                return
            for name, loss in micro_losses.items():
                share = loss.detach() / self.accumulate if self.accumulate > 1 else loss.detach()
                losses[name] = losses[name] + share if name in losses else share
        self.precision.unscale(self.optimizer)
        self.after_backward()
        grad_norm = None if self.clipper is None else self.clipper(self.optimizer)
        wishes = (self._wishes[0], self._wishes[1])
        records = self._recorder.push(self.iter, losses, data_time, wishes, grad_norm, deferred)
        self._take_in(records)
        self.precision.step(self.optimizer)
        self.completed_steps = self.iter + 1

    def _micro_step(self, batch: Any) -> Optional[Dict[str, torch.Tensor]]:
        """Forward and backward; None if the whole step is left out."""
        # Here, because DistributedDataParallel and the model would move it tensor by tensor.
        inputs = batch_on(batch, self.device)
        with self.precision.autocast():
            losses = self.model(inputs)
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        if self.guard.skipping and self._recorder.any_nonfinite(losses):
            self.guard.saw(batch, losses)
            self.guard.skip(self.raw_model)
            self.optimizer.zero_grad(set_to_none=True)
            self.storage.put_scalar("skipped_steps", self.guard.skips, smoothing_hint=False)
            self.completed_steps = self.iter + 1
            return None
        losses = self.on_losses(losses)
        self.guard.saw(batch, losses)
        total: Any = sum(losses.values())
        if self.accumulate > 1:
            total = total / self.accumulate
        self.precision.scale(total).backward()
        return losses

    def _without_reduction(self, enabled: bool) -> ContextManager:
        """Ranks exchange gradients in the last micro-step only."""
        if enabled and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _next_batch(self) -> Any:
        if self._data_iterator is None:
            self._data_iterator = iter(self.data_loader)
        try:
            return next(self._data_iterator)
        except StopIteration:
            # A finite loader, given explicitly, begins anew.
            self._data_iterator = iterator = iter(self.data_loader)
            return next(iterator)

    # -------------------------------------------------------------- metrics

    def flush_metrics(self) -> None:
        """Read the losses of all steps done. Every rank must call it at the same point."""
        self._take_in(self._recorder.flush())

    def _take_in(self, records: List[StepRecord]) -> None:
        for record in records:
            self.guard.check(record, self.raw_model)
            self._write_metrics(record)
            self._note_wishes(record)

    def _write_metrics(self, record: StepRecord) -> None:
        """Put a step's figures into the storage, equal on all ranks."""
        put = self.storage.put_scalar
        put("rank_data_time", record.rank_data_time, cur_iter=record.iteration)
        put("data_time", record.data_time, cur_iter=record.iteration)
        put("total_loss", record.total, cur_iter=record.iteration)
        if len(record.losses) > 1:
            for name, value in record.losses.items():
                put(name, value, cur_iter=record.iteration)
        if record.grad_norm is not None:
            put("grad_norm", record.grad_norm, cur_iter=record.iteration)
