"""A step: forward and backward on each batch, the update, and what the host reads of it."""

import contextlib
import math
import time
from typing import Any, ContextManager, Dict, Iterator, List, Optional

import torch
from torch.nn.parallel import DistributedDataParallel

from d2ext.data.packed_batch import batch_on
from d2ext.ops.reduce import Deferred, deferring

from .ddp import GradientOrder
from .precision import sum_of_gradients
from .step_record import StepRecord, StepRecorder

__all__ = ["TrainingStep"]


class TrainingStep:
    """What :class:`Trainer` does in a step, between ``before_step`` and ``after_step``.

    Args:
        trainer: the trainer, or a weak reference that acts as it; its model, loader, optimiser,
            precision, clipper and guard are looked up in each step, so that they can be replaced.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        lag = trainer.device.type == "cuda" and not trainer.guard.skipping
        self.recorder = StepRecorder(trainer.device, lag)
        self.order = GradientOrder(trainer.model)
        self._data_iterator: Optional[Iterator] = None

    def run(self) -> None:
        """Forward, backward and update on ``accumulate`` batches."""
        trainer = self.trainer
        if not trainer.model.training:
            raise RuntimeError(
                "The model is in evaluation mode; a hook must leave it in training mode."
            )
        trainer.optimizer.zero_grad(set_to_none=True)
        lr = trainer.optimizer.param_groups[0]["lr"]
        trainer.guard.begin_step(trainer.iter, lr, trainer.raw_model)
        losses: Dict[str, torch.Tensor] = {}
        data_time, deferred, count = 0.0, Deferred(), trainer.accumulate
        for micro_step in range(count):
            trainer.micro_step = micro_step
            start = time.perf_counter()
            batch = self.next_batch()
            data_time += time.perf_counter() - start
            is_last = micro_step + 1 == count
            # An earlier micro-step's statistics are read by the next one; a step that may be
            # skipped sends no message at its end.
            later = deferring(deferred, enabled=is_last and not trainer.guard.skipping)
            with self._reduction(is_last), later:
                micro_losses = self.forward_backward(batch)
            if micro_losses is None:
                return
            for name, loss in micro_losses.items():
                share = loss.detach() / count if count > 1 else loss.detach()
                losses[name] = losses[name] + share if name in losses else share
        trainer.precision.unscale(trainer.optimizer)
        trainer.after_backward()
        self._update(losses, data_time, deferred)

    def _update(
        self, losses: Dict[str, torch.Tensor], data_time: float, deferred: Deferred
    ) -> None:
        """Clip, look at the figures of the step (or of the one before), and change the weights."""
        trainer = self.trainer
        norm = None if trainer.clipper is None else trainer.clipper(trainer.optimizer)
        figure = norm
        # Infinite gradients of fp16 are the scaler's business.
        if trainer.precision.scaler is not None:
            figure = None
        elif norm is None and trainer.guard.looks_at_gradients(trainer):
            figure = sum_of_gradients(trainer.optimizer)
        if trainer.guard.skipping and figure is not None:
            # Ranks have the same gradients: no message.
            if not math.isfinite(float(figure)):
                self._leave_out(of_gradient=True)
                return
            figure = None
        votes = (trainer.stop.wishes[0], trainer.stop.wishes[1])
        records = self.recorder.push(
            trainer.iter, losses, data_time, votes, norm, deferred, gradients=figure
        )
        self._take_in(records)
        trainer.precision.step(trainer.optimizer)
        trainer.completed_steps = trainer.iter + 1

    def _leave_out(self, of_gradient: bool = False) -> None:
        """Undo the step so far (ENGINE.NONFINITE: skip)."""
        trainer = self.trainer
        trainer.guard.skip(trainer.raw_model, of_gradient=of_gradient)
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.storage.put_scalar("skipped_steps", trainer.guard.skips, smoothing_hint=False)
        trainer.completed_steps = trainer.iter + 1

    def forward_backward(self, batch: Any) -> Optional[Dict[str, torch.Tensor]]:
        """Forward and backward; None if the whole step is left out."""
        trainer = self.trainer
        # Here, because DistributedDataParallel and the model would move it tensor by tensor.
        inputs = batch_on(batch, trainer.device)
        with trainer.precision.autocast():
            losses = trainer.model(inputs)
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        if trainer.guard.skipping and self.recorder.any_nonfinite(losses):
            trainer.guard.saw(batch, losses)
            self._leave_out()
            return None
        losses = trainer.on_losses(losses)
        trainer.guard.saw(batch, losses)
        total: Any = sum(losses.values())
        if trainer.accumulate > 1:
            total = total / trainer.accumulate
        trainer.precision.scale(total).backward()
        return losses

    def _reduction(self, enabled: bool) -> ContextManager:
        """Ranks exchange gradients in the last micro-step only."""
        if enabled:
            return self.order.recording()
        if isinstance(self.trainer.model, DistributedDataParallel):
            return self.trainer.model.no_sync()
        return contextlib.nullcontext()

    def next_batch(self) -> Any:
        if self._data_iterator is None:
            self._data_iterator = iter(self.trainer.data_loader)
        try:
            return next(self._data_iterator)
        except StopIteration:
            # A finite loader, given explicitly, starts over.
            self._data_iterator = iterator = iter(self.trainer.data_loader)
            return next(iterator)

    def forget_data(self) -> None:
        """The next step begins a new iterator over the trainer's loader."""
        self._data_iterator = None

    # -------------------------------------------------------------- metrics

    def flush(self) -> None:
        """Read the losses of all steps done. Every rank must call it at the same point."""
        self._take_in(self.recorder.flush())

    def _take_in(self, records: List[StepRecord]) -> None:
        for record in records:
            self.trainer.guard.check(record, self.trainer.raw_model)
            if (record.iteration + 1) % self.trainer.gather_metric_period == 0:
                self._write_metrics(record)
            self.trainer.stop.take_in(record)

    def _write_metrics(self, record: StepRecord) -> None:
        """Put a step's figures into the storage, equal on all ranks."""
        put = self.trainer.storage.put_scalar
        put("rank_data_time", record.rank_data_time, cur_iter=record.iteration)
        put("data_time", record.data_time, cur_iter=record.iteration)
        put("total_loss", record.total, cur_iter=record.iteration)
        if len(record.losses) > 1:
            for name, value in record.losses.items():
                put(name, value, cur_iter=record.iteration)
        if record.grad_norm is not None:
            put("grad_norm", record.grad_norm, cur_iter=record.iteration)
