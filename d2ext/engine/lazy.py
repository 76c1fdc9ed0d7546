"""Training from LazyConfigs, Python files in the layout of Detectron2's lazy script.

A file defines ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``. This
trainer's additions are ``train.hooks``, a list of LazyCalls, ``train.clipper``, a LazyCall of
:class:`GlobalNormClipper`, and ``train.prior``, arguments of :class:`hooks.MeasurePrior`.
"""

import argparse
import contextlib
import logging
import os
from typing import Any, Dict, List, Optional

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import hooks as upstream
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from omegaconf import OmegaConf
from omegaconf.errors import ConfigTypeError

from d2ext.data import require_dataset
from d2ext.data.checks import checked_datasets
from d2ext.modeling.losses.criterion import set_log_period
from d2ext.modeling.sampling_free import find_optimal_bias
from d2ext.ops.loss_weights import AdaptiveLossWeight

from . import hooks
from .checkpoint import Checkpointer
from .hooks.class_balance import find_balanced_losses
from .precision import Precision
from .schedule import FAST_DEV_RUN_STEPS
from .setup import fast_dev_run_folder, load_weights, missing_gpu, set_up_output
from .trainer import Trainer
from .writers import MetricsWriter

__all__ = ["adaptive_loss_weights", "build_lazy_trainer", "train_lazy"]

logger = logging.getLogger(__name__)


def adaptive_loss_weights(**kwargs: Any) -> hooks.LossWeights:
    """The hook of ALWA; arguments of :class:`d2ext.ops.loss_weights.AdaptiveLossWeight`."""
    AdaptiveLossWeight(**kwargs)  # refuses bad settings now, not in the first step
    return hooks.LossWeights(make_weighting=lambda: AdaptiveLossWeight(**kwargs))


def load_lazy(args: argparse.Namespace) -> Any:
    """The LazyConfig of a command line, with its overrides."""
    if len(args.config_file) != 1:
        raise ValueError(
            f"--lazy takes one --config-file, not {len(args.config_file)}: a LazyConfig is Python "
            "and imports what it is made of."
        )
    return LazyConfig.apply_overrides(LazyConfig.load(args.config_file[0]), args.opts)


def train_lazy(args: argparse.Namespace) -> Optional[int]:
    """``train_net.py --lazy``: train or evaluate what a LazyConfig describes.

    Overrides are ``key=value`` words, such as ``train.max_iter=100 model.num_classes=20``.
    """
    cfg = load_lazy(args)
    warning = missing_gpu("train.device", str(cfg.train.device))
    if warning:
        cfg.train.device = "cpu"
    if args.init_from:
        cfg.train.init_checkpoint = args.init_from
    if args.fast_dev_run:
        _apply_fast_dev_run(cfg)
        if not args.eval_only:
            cfg.train.output_dir = fast_dev_run_folder(cfg.train.output_dir)
    _require_datasets(cfg, train=not args.eval_only)
    set_up_output(cfg, args, cfg.train.output_dir)
    if warning:
        logger.warning(warning)  # there is a log only now
    model = instantiate(cfg.model).to(cfg.train.device)
    if args.eval_only:
        checkpointer = Checkpointer(model, cfg.train.output_dir, allow_pickle=args.allow_pickle)
        load_weights(checkpointer, cfg.train.init_checkpoint, args.resume)
        _evaluate(cfg, model)
        return 0
    trainer = build_lazy_trainer(cfg, model)
    trainer.checkpointer.allow_pickle = args.allow_pickle
    if args.resume or args.reset_schedule:
        trainer.resume_or_load(resume=args.resume, new_schedule=args.reset_schedule)
    else:
        trainer.checkpointer.load(cfg.train.init_checkpoint, checkpointables=[])
    trainer.train()
    return trainer.exit_code


def build_lazy_trainer(cfg: Any, model: torch.nn.Module) -> Trainer:
    """The trainer of a LazyConfig, with its hooks, for a model that is on its device."""
    train = cfg.train
    set_log_period(model, train.log_period)
    cfg.optimizer.params.model = model
    trainer = Trainer(
        model=model,
        data_loader=_build_loader(cfg, "train"),
        optimizer=instantiate(cfg.optimizer),
        max_iter=train.max_iter,
        precision=Precision(dtype="fp16" if train.amp.enabled else "fp32", device=train.device),
        clipper=instantiate(train.get("clipper")),
        output_dir=train.output_dir,
        max_to_keep=train.checkpointer.max_to_keep,
        find_unused_parameters=train.ddp.find_unused_parameters,
    )
    writers = []
    if comm.is_main_process():
        file = os.path.join(train.output_dir, "metrics.json")
        writers = [CommonMetricPrinter(train.max_iter), MetricsWriter(file)]
    given = [instantiate(hook) for hook in train.get("hooks", [])]
    trainer.register_hooks(
        [
            # First, and before weights are loaded: see there.
            _measure_prior(cfg, model),
            upstream.IterationTimer(),
            hooks.StopOnSignal(["SIGTERM", "SIGINT"]),
            upstream.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            *given,
            _class_balance(cfg, model, given),
            hooks.Evaluate(train.eval_period, lambda: _evaluate(cfg, model))
            if "test" in cfg.dataloader
            else None,
            hooks.PeriodicWriter(writers, train.log_period),
            hooks.PeriodicCheckpointer(train.checkpointer.period),
        ]
    )
    return trainer


def _measure_prior(cfg: Any, model: torch.nn.Module) -> Optional[hooks.MeasurePrior]:
    """The hook of Sampling-Free training, if a part of the model trains without sampling."""
    if not find_optimal_bias(model):
        return None
    limits = cfg.train.get("prior", {})
    return hooks.MeasurePrior(model, lambda: _build_loader(cfg, "train"), **limits)


def _class_balance(
    cfg: Any, model: torch.nn.Module, given: List[Any]
) -> Optional[hooks.ClassBalance]:
    """The log of EFL and its relatives, if the model has one and the config does not name it."""
    if not find_balanced_losses(model) or any(isinstance(h, hooks.ClassBalance) for h in given):
        return None
    names = _dataset_names(cfg, "train")
    return hooks.ClassBalance(period=cfg.train.log_period, train_names=names)


def _apply_fast_dev_run(cfg: Any) -> None:
    """A handful of steps, in place; an evaluation runs over all of its data."""
    cfg.train.max_iter = cfg.train.eval_period = FAST_DEV_RUN_STEPS
    cfg.train.log_period = 1
    cfg.train.prior = {**cfg.train.get("prior", {}), "max_batches": 2}


def _require_datasets(cfg: Any, train: bool) -> None:
    """Refuse a data set that is not there before anything is built."""
    for key in ("train", "test") if train else ("test",):
        require_dataset(*_dataset_names(cfg, key))


def _dataset_names(cfg: Any, key: str) -> List[str]:
    """The registered data sets of a loader; none where it is of another make."""
    names = None
    with contextlib.suppress(ConfigTypeError):  # a list of batches, say
        names = OmegaConf.select(cfg, f"dataloader.{key}.dataset.names")
    return [names] if isinstance(names, str) else list(names or ())


def _build_loader(cfg: Any, key: str) -> Any:
    """``dataloader.train`` or ``dataloader.test``, whose data sets are checked as they load."""
    with checked_datasets(_dataset_names(cfg, key), training=key == "train"):
        return instantiate(cfg.dataloader[key])


def _evaluate(cfg: Any, model: torch.nn.Module) -> Dict[str, Any]:
    if "evaluator" not in cfg.dataloader:
        return {}
    loader, evaluator = _build_loader(cfg, "test"), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results
