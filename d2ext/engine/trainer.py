"""The trainer: one loop for every number format, every launch and every hook."""

import contextlib
import logging
import os
import weakref
from typing import Any, Callable, Dict, Iterable, List, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.engine import HookBase as UpstreamHookBase
from detectron2.engine import TrainerBase
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2ext.modeling.compile import compile_from_config
from d2ext.modeling.methods_in_use import check_methods_in_use

from . import hooks
from .build_data import build_test_loader, build_train_loader
from .builders import arguments_from_config, check_config, check_evaluators
from .checkpoint import Checkpointer
from .data_loader import ignore_stop_signals
from .ddp import create_ddp_model
from .errors import EXIT_PREEMPTED, expected_error
from .evaluation import augmented, evaluate_data_sets, max_batches_of, tiled, with_average
from .learning_rate import build_lr_scheduler
from .logs import FILE_ONLY
from .memory_format import order_channels
from .module_state import recent_storage
from .nonfinite import NonFiniteGuard
from .optimizer import build_optimizer
from .output_lock import OutputLock, lock_output_folder
from .precision import GlobalNormClipper, Precision
from .schedule import scale_to_world_size
from .state import RunState
from .step import TrainingStep
from .stopping import StopVotes
from .validation_data import ValidationBatches
from .writers import build_writers

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(TrainerBase):
    """Trains a model that returns a dictionary of losses.

    ``Trainer(cfg)`` builds everything from a config, as Detectron2's ``DefaultTrainer`` does, and
    through the same overridable methods (``build_model``, ``build_train_loader``, ...).
    ``Trainer(model, data_loader, optimizer)`` takes ready parts, as ``SimpleTrainer`` does, and
    adds no hook.

    A step::

        before_step
        for each micro-step:  forward, on_losses, backward
        after_backward, clipping, optimiser
        after_step

    Args:
        model: returns a dict of scalar losses (or one loss) for a batch; it may be wrapped in
            DistributedDataParallel already.
        data_loader: yields batches without end; with ``state_dict`` and ``load_state_dict`` (see
            :class:`ResumableLoader`) the order of the data survives a resume.
        optimizer: optimises the model's parameters.
        gather_metric_period: steps between two that are recorded in the storage.
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

    cfg: Any  # a CfgNode; None for a trainer that was made from ready parts
    start_iter: int

    @configurable
    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        *,
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
            raise ValueError(f"A step has {accumulate} micro-steps; it must have at least 1.")
        self.cfg: Any = config
        wrapped = model if isinstance(model, DistributedDataParallel) else None
        self.raw_model = model = model if wrapped is None else wrapped.module
        self.device = next(model.parameters()).device
        self.model = wrapped or create_ddp_model(
            model, find_unused_parameters=find_unused_parameters
        )
        self.model.train()
        self.data_loader = data_loader
        self.optimizer, self.scheduler = optimizer, scheduler
        self.precision = precision or Precision()
        self.accumulate, self.clipper = accumulate, clipper
        self.gather_metric_period = gather_metric_period
        self.guard = guard or NonFiniteGuard(output_dir=output_dir)
        self.start_iter, self.max_iter, self.output_dir = 0, max_iter, output_dir
        self.micro_step = 0
        self.results: Optional[Dict[str, Any]] = None
        self.finished = False
        self.completed_steps = 0
        self.stop, self.state = StopVotes(), RunState(weakref.proxy(self), model)
        self.lock: Optional[OutputLock] = None
        self.ema: Optional[hooks.ModelEMA] = None
        self._last_hooks: List[UpstreamHookBase] = []
        self._loss_hooks: List[Any] = []
        self.step = TrainingStep(weakref.proxy(self))
        self.checkpointer = Checkpointer(
            model, output_dir, max_to_keep=max_to_keep, trainer=weakref.proxy(self)
        )
        if config is not None:
            self.register_hooks(self.build_hooks())

    # ---------------------------------------------------------------- hooks

    def register_hooks(self, hooks: List[Optional[UpstreamHookBase]]) -> None:
        """Add hooks after the existing ones; hooks marked ``runs_last`` stay last."""
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

    @property
    def all_hooks(self) -> List[UpstreamHookBase]:
        """All hooks, in the order they run."""
        return self._hooks

    def after_step(self) -> None:
        self._after_step(self._first_hooks())

    def _first_hooks(self) -> List[UpstreamHookBase]:
        return self._hooks[: len(self._hooks) - len(self._last_hooks)]

    def _after_step(self, first_hooks: List[UpstreamHookBase]) -> None:
        self.stop.decide()
        for hook in first_hooks:
            hook.after_step()
        self.stop.decide_late()
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
        self.lock = lock_output_folder(self.output_dir)
        if self.lock is not None:
            self.checkpointer.remove_leftovers()
        logger.info(f"Training from step {self.start_iter} to {self.max_iter}.")
        storage = recent_storage(self.start_iter)
        with self.lock or contextlib.nullcontext(), storage as self.storage:
            try:
                self.state.restore_storage()
                self.before_train()
                self.state.check_states()
                self.state.restore_random_state()
                self.stop.resume(interrupted=bool(self.state.interrupted_at))
                self.state.save_new_schedule()
                self._run_interrupted_hooks()
                self.step.order.replay()
                if hasattr(self.data_loader, "begin_at"):
                    self.data_loader.begin_at(self.start_iter)
                for iteration in range(self.start_iter, self.max_iter):
                    if self.stopping:
                        break
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.flush_metrics()
                self.finished = self.completed_steps >= self.max_iter or self.stop.early
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

    def _run_interrupted_hooks(self) -> None:
        """Finish ``after_step`` where a kill interrupted it."""
        hook, first_hooks = self.state.take_interrupted_hook(), self._first_hooks()
        if hook in first_hooks:
            self.iter = self.storage.iter = self.start_iter - 1
            self._after_step(first_hooks[first_hooks.index(hook) :])

    def _say_why_stopped(self) -> None:
        if self.stopping:
            advice = "; --resume goes on from here" if self.stopped_by_signal else ""
            logger.info(f"Stopped after step {self.completed_steps}: {self.stop.reason}{advice}.")

    def _verify_results(self) -> None:
        expected = self.cfg is not None and len(self.cfg.TEST.EXPECTED_RESULTS)
        if expected and self.finished and self.results and comm.is_main_process():
            verify_results(self.cfg, self.results)

    def run_step(self) -> None:
        """Forward, backward and update on ``accumulate`` batches."""
        self.step.run()

    def flush_metrics(self) -> None:
        """Read the losses of all steps done. Every rank must call it at the same point."""
        self.step.flush()

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Go on with another loader; the old one is released first, as in Detectron2."""
        self.step.forget_data()
        del self.data_loader
        self.data_loader = data_loader_builder()

    # ------------------------------------------------------------- the end

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
        self.stop.ask(reason, by_signal, evaluated=evaluated)

    @property
    def resumed(self) -> bool:
        """Whether the run goes on from a checkpoint."""
        return self.state.resumed

    @property
    def stopping(self) -> bool:
        """Whether all ranks have agreed to stop after this step."""
        return self.stop.stopping

    @property
    def is_last_step(self) -> bool:
        """Whether training is complete with this step."""
        return self.iter + 1 >= self.max_iter or self.stop.early

    @property
    def stopped_by_signal(self) -> bool:
        """Whether the run ends before its last step, to be resumed."""
        return self.stop.by_signal and not self.finished

    @property
    def exit_code(self) -> int:
        return EXIT_PREEMPTED if self.stopped_by_signal else 0

    def is_due(self, period: int) -> bool:
        """Whether something done every ``period`` steps, and at the end, is due in this step."""
        return (period > 0 and (self.iter + 1) % period == 0) or self.is_last_step

    # ------------------------------------------------------------ the state

    def state_dict(self) -> Dict[str, Any]:
        return self.state.state_dict()

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, or what Detectron2's trainer saved."""
        self.state.load_state_dict(state_dict)

    def save_checkpoint(self, name: str, *, tag: bool = True) -> None:
        """See :meth:`RunState.save_checkpoint`. Every rank must call it."""
        self.state.save_checkpoint(name, tag=tag)

    def resume_or_load(self, resume: bool = True, *, new_schedule: bool = False) -> None:
        """Resume from ``output_dir``, or load MODEL.WEIGHTS; see :class:`RunState`."""
        self.state.resume_or_load(resume, new_schedule=new_schedule)

    # ------------------------------------------------- built from a config

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """Refuse impossible values, before anything is built; see docs/reliability_config.md."""
        check_config(cfg, Trainer, cls)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        cls.check_config(cfg)
        check_evaluators(cfg, Trainer, cls)
        return arguments_from_config(cfg, cls)

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Batch and schedule for another number of ranks; see SOLVER.REFERENCE_WORLD_SIZE."""
        return scale_to_world_size(cfg, num_workers)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        check_methods_in_use(cfg, model)
        logger.info(f"Model:\n{model}", extra=FILE_ONLY)
        return compile_from_config(cfg, order_channels(cfg, model))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser ``SOLVER.OPTIMIZER``. Its per-parameter clipping is part of it; clipping
        all gradients together is the trainer's."""
        if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE in GlobalNormClipper.TYPES:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """An endless loader; see :func:`d2ext.engine.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """A loader of a data set's images; a sample's error names its file."""
        loader = build_test_loader(cfg, dataset_name)
        loader.worker_init_fn = ignore_stop_signals
        return loader

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        from d2ext.evaluation import build_evaluator

        if output_folder is None:
            output_folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Optional[List[DatasetEvaluator]] = None,
    ) -> Dict[str, Any]:
        """Evaluate a model on each of DATASETS.TEST.

        Returns:
            Figures by task and name, by data set before that if there are several. Empty on all
            ranks but the first.
        """
        given = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        own = dict(zip(cfg.DATASETS.TEST, given or ()))
        return evaluate_data_sets(
            cfg.DATASETS.TEST,
            tiled(cfg, model) if cfg.DATASETS.TILES else model,
            lambda name: cls.build_test_loader(cfg, name),
            lambda name: own.get(name) or cls.build_evaluator(cfg, name),
            max_batches=max_batches_of(cfg),
        )

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> Dict[str, Any]:
        """:meth:`test` with test-time augmentation (TEST.AUG), as in Detectron2's train_net.py.

        Returns:
            Figures under "bbox_TTA" and the like, or "{data set}_TTA" if there are several.
        """
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        names = cfg.DATASETS.TEST
        evaluators = [cls.build_evaluator(cfg, n, os.path.join(folder, n)) for n in names]
        results = cls.test(cfg, augmented(cfg, model), evaluators)
        return {f"{name}_TTA": figures for name, figures in results.items()}

    # ------------------------------------------------- what a trainer itself builds

    def build_hooks(self) -> List[Optional[UpstreamHookBase]]:
        """All hooks, in order. Every rank has the same ones."""
        cfg, model = self.cfg, self.raw_model
        self.ema = hooks.build_ema(cfg, model)
        epoch_size = getattr(self.data_loader, "epoch_size", 0.0)
        evaluates, augments = bool(cfg.DATASETS.TEST), cfg.TEST.AUG.ENABLED
        return hooks.default_hooks(
            cfg,
            model,
            writers=self.build_writers() if comm.is_main_process() else [],
            ema=self.ema,
            measure_prior=hooks.build_measure_prior(
                cfg, model, self.build_train_loader, epoch_size
            ),
            given=[
                *self.build_loss_hooks(),
                *hooks.build_registered_hooks(cfg, cfg.ENGINE.HOOKS),
            ],
            class_balance=hooks.build_class_balance(cfg, model),
            precise_bn=self._build_precise_bn(),
            collect_logits=hooks.build_collect_logits(cfg, model, self.build_train_loader),
            validation_batches=ValidationBatches(cfg),
            evaluate=self.evaluate if evaluates else None,
            evaluate_augmented=self._evaluate_with_TTA if evaluates and augments else None,
        )

    def build_loss_hooks(self) -> List[Optional[UpstreamHookBase]]:
        """Hooks that weigh the losses."""
        weights = hooks.build_loss_weights(self.cfg)
        return [] if weights is None else [weights]

    def build_writers(self) -> List[EventWriter]:
        """Where figures go, on rank 0."""
        return build_writers(self.cfg, self.max_iter)

    def _build_precise_bn(self) -> Optional[hooks.PreciseBN]:
        cfg = self.cfg
        if not (cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.raw_model)):
            return None
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = self.build_train_loader(cfg)
        period, count = cfg.TEST.EVAL_PERIOD, cfg.TEST.PRECISE_BN.NUM_ITER
        return hooks.PreciseBN(period, self.raw_model, loader, count)

    def evaluate(self) -> Dict[str, Any]:
        """Evaluate the model, and its moving average beside it as "ema/..."."""
        results = with_average(self._test_into, self.ema if self.cfg.ENGINE.EMA.EVAL else None)
        self.results = results
        return results

    def _test_into(self, folder: str) -> Dict[str, Any]:
        """:meth:`test`, whose files go into a folder below OUTPUT_DIR."""
        cfg = self.cfg
        if folder:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, folder)
        return self.test(cfg, self.raw_model)

    def _evaluate_with_TTA(self) -> Dict[str, Any]:
        results = self.test_with_TTA(self.cfg, self.raw_model)
        self.results = {**(self.results or {}), **results}
        return results
