"""What ``train`` of a LazyConfig says about the run, as the keys of a YAML config.

So both have one list of hooks, one set of defaults and one set of rules.
"""

from typing import Any, Dict

from detectron2.config import CfgNode
from omegaconf import OmegaConf

from d2ext.config import get_cfg, validate

__all__ = ["LAZY_KEYS", "lazy_settings"]

#: Keys of ``train`` and the YAML keys that they are; the first ones are Detectron2's.
LAZY_KEYS: Dict[str, str] = {
    "output_dir": "OUTPUT_DIR",
    "device": "MODEL.DEVICE",
    "max_iter": "SOLVER.MAX_ITER",
    "eval_period": "TEST.EVAL_PERIOD",
    "log_period": "ENGINE.LOG_PERIOD",
    "checkpointer.period": "SOLVER.CHECKPOINT_PERIOD",
    "checkpointer.max_to_keep": "ENGINE.MAX_TO_KEEP",
    "amp.enabled": "SOLVER.AMP.ENABLED",
    "ddp.find_unused_parameters": "ENGINE.FIND_UNUSED_PARAMETERS",
    "amp.dtype": "SOLVER.AMP.DTYPE",
    "seed": "SEED",
    "accumulate": "SOLVER.ACCUMULATE",
    "stop_signals": "ENGINE.STOP_SIGNALS",
    "nonfinite": "ENGINE.NONFINITE",
    "max_skipped_steps": "ENGINE.MAX_SKIPPED_STEPS",
    "ema.enabled": "ENGINE.EMA.ENABLED",
    "ema.decay": "ENGINE.EMA.DECAY",
    "ema.warmup": "ENGINE.EMA.WARMUP",
    "ema.rule": "ENGINE.EMA.RULE",
    "ema.eval": "ENGINE.EMA.EVAL",
    "val_loss.period": "TEST.VAL_LOSS.PERIOD",
    "val_loss.max_batches": "TEST.VAL_LOSS.MAX_BATCHES",
    "best_checkpoint.metric": "ENGINE.BEST_CHECKPOINT.METRIC",
    "best_checkpoint.mode": "ENGINE.BEST_CHECKPOINT.MODE",
    "early_stopping.metric": "ENGINE.EARLY_STOPPING.METRIC",
    "early_stopping.patience": "ENGINE.EARLY_STOPPING.PATIENCE",
    "early_stopping.mode": "ENGINE.EARLY_STOPPING.MODE",
    "early_stopping.min_delta": "ENGINE.EARLY_STOPPING.MIN_DELTA",
    "logit_norm.num_images": "MODEL.ROI_BOX_HEAD.LOGIT_NORM.NUM_IMAGES",
    "progress_bar": "ENGINE.PROGRESS_BAR",
    "tensorboard": "ENGINE.TENSORBOARD",
    "wandb.enabled": "ENGINE.WANDB.ENABLED",
    "wandb.project": "ENGINE.WANDB.PROJECT",
    "wandb.name": "ENGINE.WANDB.NAME",
}
_SECTIONS = sorted({key.split(".")[0] for key in LAZY_KEYS if "." in key} - {"ddp", "checkpointer"})


def lazy_settings(train: Any) -> CfgNode:
    """The YAML keys that ``train`` sets, everything else at its default.

    Raises:
        ValueError: for a value that cannot be; the message names the key of ``train``.
        KeyError: for a key that one of our sections does not have.
    """
    cfg = get_cfg()
    for lazy, key in LAZY_KEYS.items():
        value = OmegaConf.select(train, lazy)
        if value is not None:
            *path, name = key.split(".")
            node = cfg
            for word in path:
                node = node[word]
            node[name] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    _refuse_unknown(train)
    names = {key: f"train.{lazy}" for lazy, key in LAZY_KEYS.items()}
    for key, lazy in names.items():
        try:
            validate(cfg, key)
        except ValueError as error:
            raise ValueError(str(error).replace(key, lazy)) from error
    return cfg


def _refuse_unknown(train: Any) -> None:
    for section in _SECTIONS:
        for name in train.get(section) or ():
            if f"{section}.{name}" not in LAZY_KEYS:
                known = [k for k in LAZY_KEYS if k.startswith(f"{section}.")]
                raise KeyError(f"train.{section}.{name} is not a key; choose {', '.join(known)}.")
