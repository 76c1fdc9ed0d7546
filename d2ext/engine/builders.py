"""How a trainer's parts come from a config; each method can be overridden alone."""

import inspect
import logging
import os
from collections import OrderedDict
from typing import Any, Dict, Iterable, Iterator, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase as UpstreamHookBase
from detectron2.engine import hooks as upstream
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from d2ext.config import validate
from d2ext.modeling.compile import compile_from_config
from d2ext.modeling.methods_in_use import check_methods_in_use

from . import hooks
from .attributes import TrainerAttributes
from .build_data import build_test_loader, build_train_loader
from .data_loader import check_batch_size, ignore_stop_signals
from .nonfinite import NonFiniteGuard
from .optimizer import build_optimizer
from .precision import GlobalNormClipper, Precision
from .schedule import FAST_DEV_RUN_IMAGES, resolve_schedule, scale_to_world_size
from .validation_data import ValidationBatches
from .writers import build_writers

__all__ = ["Builders"]

logger = logging.getLogger(__name__)

# Which method alone reads a key that names one of several choices.
_READERS = {
    "build_optimizer": ("SOLVER.OPTIMIZER",),
    "build_lr_scheduler": ("SOLVER.LR_SCHEDULER_NAME",),
    "build_train_loader": ("DATALOADER.SAMPLER_TRAIN", "DATALOADER.REPEAT_ROUNDING"),
    "build_model": ("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME"),
}


class Builders(TrainerAttributes):
    """The part of :class:`Trainer` that reads the config; no class of its own."""

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """Refuse impossible values, before anything is built; see docs/reliability_config.md.

        Names that an overridden method reads are its own business and may be anything.
        """
        skip = [
            key
            for method, keys in _READERS.items()
            if inspect.getattr_static(cls, method) is not inspect.getattr_static(Builders, method)
            for key in keys
        ]
        validate(cfg, skip=tuple(skip))

    @classmethod
    def _check_evaluators(cls, cfg: CfgNode) -> None:
        """Refuse a data set that nobody can evaluate now, and not at the first evaluation."""
        for method in ("build_evaluator", "test", "evaluate", "build_hooks"):
            if inspect.getattr_static(cls, method) is not inspect.getattr_static(Builders, method):
                return
        from d2ext.evaluation import evaluator_types

        for name in cfg.DATASETS.TEST:
            evaluator_types(name)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        cls.check_config(cfg)
        cls._check_evaluators(cfg)
        cfg = scale_to_world_size(cfg, comm.get_world_size())
        if cfg.SEED >= 0:
            seed_all_rng(cfg.SEED + comm.get_rank())
        data_loader = cls.build_train_loader(cfg)
        check_batch_size(data_loader, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE)
        cfg = resolve_schedule(cfg, getattr(data_loader, "epoch_size", 0.0))
        model = cls.build_model(cfg)
        optimizer = cls.build_optimizer(cfg, model)
        return {
            "model": model,
            "data_loader": data_loader,
            "optimizer": optimizer,
            "max_iter": cfg.SOLVER.MAX_ITER,
            "scheduler": cls.build_lr_scheduler(cfg, optimizer),
            "precision": Precision(cfg),
            "accumulate": cfg.SOLVER.ACCUMULATE,
            "clipper": GlobalNormClipper.from_config(cfg),
            "guard": NonFiniteGuard(
                cfg.ENGINE.NONFINITE, cfg.ENGINE.MAX_SKIPPED_STEPS, cfg.OUTPUT_DIR
            ),
            "output_dir": cfg.OUTPUT_DIR,
            "max_to_keep": cfg.ENGINE.MAX_TO_KEEP,
            "find_unused_parameters": cfg.ENGINE.FIND_UNUSED_PARAMETERS,
            "config": cfg,
        }

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        check_methods_in_use(cfg, model)
        logger.info(f"Model:\n{model}")
        return compile_from_config(cfg, model)

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
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        results: Dict[str, Any] = OrderedDict()
        for k, name in enumerate(cfg.DATASETS.TEST):
            loader = cls.build_test_loader(cfg, name)
            if cfg.ENGINE.FAST_DEV_RUN:
                loader = _FirstBatches(loader, FAST_DEV_RUN_IMAGES)
            evaluator = evaluators[k] if evaluators else cls.build_evaluator(cfg, name)
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                logger.info(f"Results on {name}:")
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> Dict[str, Any]:
        """:meth:`test` with test-time augmentation (TEST.AUG), as in Detectron2's train_net.py.

        Returns:
            Figures under "bbox_TTA" and the like, or "{data set}_TTA" if there are several.
        """
        logger.info("Evaluating with test-time augmentation.")
        augmented = GeneralizedRCNNWithTTA(cfg, model)
        # An evaluation puts all modules back into the mode that the outermost one was in.
        augmented.training = model.training
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        names = cfg.DATASETS.TEST
        evaluators = [cls.build_evaluator(cfg, n, os.path.join(folder, n)) for n in names]
        results = cls.test(cfg, augmented, evaluators)
        return {f"{name}_TTA": figures for name, figures in results.items()}

    # ------------------------------------------------- what a trainer itself builds

    def build_hooks(self) -> List[Optional[UpstreamHookBase]]:
        """All hooks, in order. Every rank has the same ones."""
        cfg = self.cfg
        engine = cfg.ENGINE
        self.ema = None
        if engine.EMA.ENABLED:
            self.ema = hooks.ModelEMA(self.raw_model, engine.EMA.DECAY, engine.EMA.WARMUP)
        best, stopping = engine.BEST_CHECKPOINT, engine.EARLY_STOPPING
        epoch_size = getattr(self.data_loader, "epoch_size", 0.0)
        return [
            # First: it changes the model that hooks behind it may copy.
            hooks.build_measure_prior(cfg, self.raw_model, self.build_train_loader, epoch_size),
            upstream.IterationTimer(),
            hooks.StopOnSignal(engine.STOP_SIGNALS),
            upstream.LRScheduler(),
            *self.build_loss_hooks(),
            *hooks.build_registered_hooks(cfg, engine.HOOKS),
            hooks.build_class_balance(cfg, self.raw_model),
            self._build_precise_bn(),
            self.ema,
            hooks.ValidationLoss(cfg.TEST.VAL_LOSS.PERIOD, self.raw_model, ValidationBatches(cfg))
            if cfg.TEST.VAL_LOSS.PERIOD > 0
            else None,
            hooks.Evaluate(cfg.TEST.EVAL_PERIOD, self.evaluate) if cfg.DATASETS.TEST else None,
            hooks.Evaluate(0, self._evaluate_with_TTA)
            if cfg.DATASETS.TEST and cfg.TEST.AUG.ENABLED
            else None,
            hooks.BestCheckpointer(best.METRIC, best.MODE) if best.METRIC else None,
            hooks.EarlyStopping(
                stopping.METRIC, stopping.PATIENCE, stopping.MODE, stopping.MIN_DELTA
            )
            if stopping.PATIENCE > 0
            else None,
            hooks.PeriodicWriter(
                self.build_writers() if comm.is_main_process() else [], engine.LOG_PERIOD
            ),
            hooks.PeriodicCheckpointer(cfg.SOLVER.CHECKPOINT_PERIOD),
        ]

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
        results = dict(self.test(self.cfg, self.raw_model))
        if self.ema is not None and self.cfg.ENGINE.EMA.EVAL:
            cfg = self.cfg.clone()
            cfg.defrost()
            # Another folder: its predictions must not overwrite the model's.
            cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "ema")
            with self.ema.applied():
                results["ema"] = self.test(cfg, self.raw_model)
        self.results = results
        return results

    def _evaluate_with_TTA(self) -> Dict[str, Any]:
        results = self.test_with_TTA(self.cfg, self.raw_model)
        self.results = {**(self.results or {}), **results}
        return results


class _FirstBatches:
    """The first batches of a loader, with a length."""

    def __init__(self, loader: Any, count: int):
        self._loader, self._count = loader, count

    def __len__(self) -> int:
        return min(self._count, len(self._loader))

    def __iter__(self) -> Iterator[Any]:
        for k, batch in enumerate(self._loader):
            if k >= self._count:
                return
            yield batch
