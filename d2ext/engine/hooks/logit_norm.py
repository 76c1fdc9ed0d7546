"""The hook that collects the statistics of LogN at the end of a training."""

import contextlib
import logging
from typing import Any, Callable, Dict, Iterable, Optional

from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from d2ext.modeling.roi_heads.logit_norm import LogitNorm, collect_logits

from ..random_state import isolated_random_state
from .base import HookBase
from .measure_prior import Closing, own_batches
from .validation_loss import untouched

__all__ = ["CollectLogits", "build_collect_logits"]

logger = logging.getLogger(__name__)

FAST_DEV_RUN_IMAGES = 4


class CollectLogits(HookBase):
    """After the last step, before it is evaluated and saved, fills the statistics of the logits.

    Weights, other buffers, random states and the training loader are left as they were.

    Args:
        model: the model without a wrapper.
        batches: makes an endless iterable of training batches, apart from the training loader's.
        num_images: images on all ranks together.
    """

    def __init__(self, model: nn.Module, batches: Callable[[], Iterable[Any]], num_images: int):
        self.model, self.batches, self.num_images = model, batches, num_images

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self.collect()

    def collect(self) -> None:
        """Run the model over training images."""
        norms: Dict[str, Any] = {
            n: m for n, m in self.model.named_modules() if isinstance(m, LogitNorm)
        }
        logger.info(f"Collecting the logits of {self.num_images} training images.")
        with contextlib.ExitStack() as stack:
            for context in (untouched(self.model), isolated_random_state(), EventStorage()):
                stack.enter_context(context)
            batches = stack.enter_context(contextlib.closing(Closing(self.batches())))
            self.model.train()
            counted = collect_logits(self.model, batches, self.num_images)
            sums = {name: norm.sums.clone() for name, norm in norms.items()}
        for name, norm in norms.items():
            norm.sums.copy_(sums[name])
            count, total, squares = sums[name][:, :-1]
            var = (squares - total**2 / count.clamp(min=1)) / (count - 1).clamp(min=1)
            if bool((var < 1e-6).any()):
                logger.warning(
                    f"The logits of {int((var < 1e-6).sum())} classes in {name} hardly vary, and "
                    "normalising would blow them up; train longer, or turn LogN off "
                    "(MODEL.ROI_BOX_HEAD.LOGIT_NORM.ENABLED)."
                )
        logger.info("Logits of {proposals} proposals in {images} images.".format(**counted))


def build_collect_logits(
    cfg: CfgNode, model: nn.Module, build_loader: Callable[[CfgNode], Iterable[Any]]
) -> Optional[CollectLogits]:
    """The hook, if the model has logits to normalise.

    Args:
        cfg: a config, or the settings of a LazyConfig.
        model: the model without a wrapper.
        build_loader: makes a training loader from a config.
    """
    if not any(isinstance(m, LogitNorm) for m in model.modules()):
        return None
    if cfg.ENGINE.EMA.ENABLED:
        raise ValueError(
            "LogN collects the logits of the last weights, not of their average; leave it out, or "
            "turn the average off (ENGINE.EMA.ENABLED, in a LazyConfig train.ema.enabled)."
        )
    number = cfg.MODEL.ROI_BOX_HEAD.LOGIT_NORM.NUM_IMAGES
    if cfg.ENGINE.FAST_DEV_RUN:
        number = FAST_DEV_RUN_IMAGES
    return CollectLogits(model, own_batches(cfg, build_loader), number)
