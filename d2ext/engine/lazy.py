"""Training from LazyConfigs, Python files in the layout of Detectron2's lazy script.

A file defines ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``. This
trainer's additions are ``train.hooks``, a list of LazyCalls, ``train.clipper``, a LazyCall of
:class:`GlobalNormClipper`, ``train.prior``, arguments of :class:`hooks.MeasurePrior`, and what
:mod:`d2ext.engine.lazy_settings` lists: the hooks and settings of a YAML training.
"""

import argparse
import copy
import functools
import logging
import os
from typing import Any, Dict, List, Optional

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm

from d2ext.data import require_dataset
from d2ext.modeling.losses.criterion import set_log_period
from d2ext.modeling.sampling_free import find_optimal_bias
from d2ext.ops.loss_weights import AdaptiveLossWeight
from d2ext.run_index import record_sets

from . import hooks
from .builders import run_arguments
from .checkpoint import Checkpointer
from .class_checks import check_classes
from .errors import mistakes_in_sentences
from .evaluation import with_average
from .hooks.class_balance import find_balanced_losses
from .hooks.logit_norm import FAST_DEV_RUN_IMAGES
from .lazy_data import build_loader, build_train_loader, dataset_names, validation_batches
from .lazy_settings import lazy_settings
from .schedule import FAST_DEV_RUN_STEPS
from .setup import fast_dev_run_folder, load_weights, missing_gpu, set_up_output
from .trainer import Trainer
from .writers import build_writers

__all__ = ["adaptive_loss_weights", "build_lazy_trainer", "train_lazy"]

logger = logging.getLogger(__name__)


def adaptive_loss_weights(**kwargs: Any) -> hooks.LossWeights:
    """The hook of ALWA; arguments of :class:`d2ext.ops.loss_weights.AdaptiveLossWeight`."""
    AdaptiveLossWeight(**kwargs)  # refuses bad settings now, not in the first step
    return hooks.LossWeights(make_weighting=lambda: AdaptiveLossWeight(**kwargs))


def lazy_file(args: argparse.Namespace) -> str:
    """The LazyConfig that a command line names; what is wrong with the words is refused."""
    if len(args.config_file) != 1:
        raise ValueError(
            f"--lazy takes one --config-file, not {len(args.config_file)}: a LazyConfig is Python "
            "and imports what it is made of."
        )
    (file,) = args.config_file
    if not file.endswith(".py"):
        raise ValueError(
            f"{file} is not a Python file as a LazyConfig is; leave --lazy out for YAML."
        )
    wrong = [word for word in args.opts if "=" not in word]
    if wrong:
        raise ValueError(
            f"Overrides of a LazyConfig are key=value words, and {wrong[0]} is not one."
        )
    return str(file)


def load_lazy(args: argparse.Namespace) -> Any:
    """The LazyConfig of a command line, with its overrides."""
    return LazyConfig.apply_overrides(LazyConfig.load(lazy_file(args)), args.opts)


def train_lazy(args: argparse.Namespace) -> Optional[int]:
    """``train_net.py --lazy``: train or evaluate what a LazyConfig describes.

    Overrides are ``key=value`` words, such as ``train.max_iter=100 model.num_classes=20``.
    """
    with mistakes_in_sentences():
        cfg = load_lazy(args)
        _require_datasets(cfg, train=not args.eval_only)
    warning = missing_gpu("train.device", str(cfg.train.device))
    if warning:
        cfg.train.device = "cpu"
    if args.init_from:
        cfg.train.init_checkpoint = args.init_from
    if args.fast_dev_run:
        _apply_fast_dev_run(cfg)
        if not args.eval_only:
            cfg.train.output_dir = fast_dev_run_folder(cfg.train.output_dir)
    set_up_output(cfg, args, cfg.train.output_dir)
    if not args.eval_only:
        record_sets(cfg.train.output_dir, *(dataset_names(cfg, k) for k in ("train", "test")))
    if warning:
        logger.warning(warning)  # there is a log only now
    with mistakes_in_sentences():
        model = instantiate(cfg.model).to(cfg.train.device)
        if args.eval_only:
            checkpointer = Checkpointer(model, cfg.train.output_dir, allow_pickle=args.allow_pickle)
            names = dataset_names(cfg, "test")
            load_weights(checkpointer, cfg.train.init_checkpoint, args.resume, names)
        else:
            trainer = build_lazy_trainer(cfg, model)
            trainer.checkpointer.allow_pickle = args.allow_pickle
            if args.resume or args.reset_schedule:
                trainer.resume_or_load(resume=args.resume, new_schedule=args.reset_schedule)
            else:
                trainer.checkpointer.load(cfg.train.init_checkpoint, checkpointables=[])
    if args.eval_only:
        _evaluate(cfg, model)
        return 0
    trainer.train()
    hooks.tell_results(trainer)
    return trainer.exit_code


def build_lazy_trainer(cfg: Any, model: torch.nn.Module) -> Trainer:
    """The trainer of a LazyConfig, with its hooks, for a model that is on its device."""
    train, settings = cfg.train, lazy_settings(cfg.train)
    sets = (dataset_names(cfg, "train"), dataset_names(cfg, "test"))
    check_classes(model, sets[0], sets[1], "model.num_classes")
    set_log_period(model, settings.ENGINE.LOG_PERIOD)
    cfg.optimizer.params.model = model
    trainer = Trainer(
        model=model,
        data_loader=build_train_loader(cfg, settings.SOLVER.ACCUMULATE, settings.SEED),
        optimizer=instantiate(cfg.optimizer),
        clipper=instantiate(train.get("clipper")),
        **run_arguments(settings),
    )
    given = [instantiate(hook) for hook in train.get("hooks", [])]
    ema = trainer.ema = hooks.build_ema(settings, model)
    shown = ema if settings.ENGINE.EMA.EVAL else None
    has_test = "test" in cfg.dataloader
    trainer.register_hooks(
        hooks.default_hooks(
            settings,
            model,
            writers=build_writers(settings, train.max_iter) if comm.is_main_process() else [],
            ema=ema,
            # Before weights are loaded: see there.
            measure_prior=_measure_prior(cfg, model),
            scheduler=instantiate(cfg.lr_multiplier),
            given=given,
            class_balance=_class_balance(cfg, model, given),
            collect_logits=hooks.build_collect_logits(
                settings, model, lambda _: build_loader(cfg, "train")
            ),
            validation_batches=validation_batches(cfg, settings.TEST.VAL_LOSS.MAX_BATCHES)
            if has_test and settings.TEST.VAL_LOSS.PERIOD > 0
            else None,
            evaluate=(lambda: with_average(functools.partial(_evaluate, cfg, model), shown))
            if has_test
            else None,
        )
    )
    return trainer


def _measure_prior(cfg: Any, model: torch.nn.Module) -> Optional[hooks.MeasurePrior]:
    """The hook of Sampling-Free training, if a part of the model trains without sampling."""
    if not find_optimal_bias(model):
        return None
    limits = cfg.train.get("prior", {})
    return hooks.MeasurePrior(model, lambda: build_loader(cfg, "train"), **limits)


def _class_balance(
    cfg: Any, model: torch.nn.Module, given: List[Any]
) -> Optional[hooks.ClassBalance]:
    """The log of EFL and its relatives, if the model has one and the config does not name it."""
    if not find_balanced_losses(model) or any(isinstance(h, hooks.ClassBalance) for h in given):
        return None
    names = dataset_names(cfg, "train")
    return hooks.ClassBalance(period=cfg.train.log_period, train_names=names)


def _apply_fast_dev_run(cfg: Any) -> None:
    """A handful of steps, in place; an evaluation runs over all of its data."""
    cfg.train.max_iter = cfg.train.eval_period = FAST_DEV_RUN_STEPS
    cfg.train.log_period = 1
    cfg.train.prior = {**cfg.train.get("prior", {}), "max_batches": 2}
    cfg.train.logit_norm = {"num_images": FAST_DEV_RUN_IMAGES}


def _require_datasets(cfg: Any, train: bool) -> None:
    """Refuse a missing data set before anything is built."""
    for key in ("train", "test") if train else ("test",):
        require_dataset(*dataset_names(cfg, key))


def _evaluate(cfg: Any, model: torch.nn.Module, folder: str = "") -> Dict[str, Any]:
    if "evaluator" not in cfg.dataloader:
        return {}
    loader, node = build_loader(cfg, "test"), cfg.dataloader.evaluator
    if folder and node.get("output_dir"):
        node = copy.deepcopy(node)
        node.output_dir = os.path.join(node.output_dir, folder)
    results = inference_on_dataset(model, loader, instantiate(node))
    if comm.is_main_process():
        print_csv_format(results)
    return results
