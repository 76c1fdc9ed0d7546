"""The hook that sets the optimal bias of Sampling-Free training before the first step."""

import contextlib
import functools
import hashlib
import json
import logging
import os
from typing import Any, Callable, Dict, Iterable, Optional

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from d2ext.losses import GuidedScale
from d2ext.modeling.sampling_free import (
    OptimalBias,
    PriorMeasurement,
    find_optimal_bias,
    measure_priors,
)

from ..checkpoint import atomic_write
from ..random_state import isolated_random_state
from .base import HookBase

__all__ = ["MeasurePrior", "PriorCache", "build_measure_prior", "prior_fingerprint"]

logger = logging.getLogger(__name__)

# What no sample's label depends on. Anything else may be read by a detector of the user's own.
_NOT_IN_PRIOR = (
    "VERSION", "OUTPUT_DIR", "SEED", "CUDNN_BENCHMARK", "ENGINE", "TEST", "SOLVER",
    "MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.COMPILE", "MODEL.SAMPLING_FREE.PRIOR_FILE",
    "DATALOADER.NUM_WORKERS", "DATASETS.TEST",
)  # fmt: skip
_IN_PRIOR = ("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE")


class MeasurePrior(HookBase):
    """Before iteration 0, gives each classifier without sampling the bias of its optimal prior.

    A part whose layer came with the loaded weights keeps it; only its buffers ``prior`` and
    ``fg_ratio``, which the threshold at inference needs, are filled if they did not come too. A
    guide that freezes warms up again. A resumed run skips all of this.

    All ranks measure together and set the same value in place. Random states, the training
    loader and the optimiser are left as they were.

    Args:
        model: the model without a wrapper. The hook must be made before weights are loaded.
        batches: makes an endless iterable of training batches, apart from the training loader's.
        cache: known measurements; None: always measure.
        max_batches, tolerance: see :func:`~d2ext.modeling.sampling_free.measure_priors`.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], Iterable],
        *,
        cache: Optional["PriorCache"] = None,
        max_batches: int = 500,
        tolerance: float = 0.02,
    ):
        if max_batches < 1 or not 0 < tolerance < 1:
            raise ValueError(
                "MODEL.SAMPLING_FREE.PRIOR_BATCHES must be 1 or more and PRIOR_TOLERANCE between "
                f"0 and 1, not {max_batches} and {tolerance}."
            )
        self.model, self.batches, self.cache = model, batches, cache
        self.max_batches, self.tolerance = max_batches, tolerance
        self._initial = {
            name: _bias(part).detach().clone() for name, part in find_optimal_bias(model).items()
        }

    def before_train(self) -> None:
        trainer = self.trainer
        if trainer.start_iter > 0 or getattr(trainer, "resumed", False):
            return
        for module in self.model.modules():
            if isinstance(module, GuidedScale):
                module.restart()
        missing = self._missing_keys()
        parts = find_optimal_bias(self.model)
        new = {name: self._is_new(name, part, missing) for name, part in parts.items()}
        wanted = {
            name: part
            for name, part in parts.items()
            if float(part.fg_ratio) == 0 or (new[name] and not _given_prior(part))
        }
        if not wanted:
            return
        for name, measured in self._measure().items():
            if name in wanted:
                fixed = _given_prior(wanted[name]) > 0
                self._apply(name, wanted[name], measured, set_bias=new[name] and not fixed)

    def _missing_keys(self) -> Optional[set]:
        """Keys that the loaded weights did not have; None if no weights were loaded."""
        checkpointer = getattr(self.trainer, "checkpointer", None)
        incompatible = getattr(checkpointer, "last_incompatible", None)
        if incompatible is None:
            return None
        shapes = {key for key, *_ in incompatible.incorrect_shapes}
        return set(incompatible.missing_keys) | shapes

    def _is_new(self, name: str, part: OptimalBias, missing: Optional[set]) -> bool:
        """Whether the part's classifier is still as it was made."""
        bias = _bias(part)
        # Weights may also have come another way than through the trainer's checkpointer.
        if not torch.equal(bias.cpu(), self._initial[name].cpu()):
            return False
        key = next(key for key, p in self.model.named_parameters() if p is bias)
        return missing is None or key in missing

    def _measure(self) -> Dict[str, PriorMeasurement]:
        known = self.cache.read() if self.cache is not None else None
        if self.cache is not None and known is not None:
            logger.info(f"The prior is known from {self.cache.path}.")
            return known
        logger.info("Measuring the prior of foreground samples on the training data.")
        with isolated_random_state(), contextlib.closing(Closing(self.batches())) as batches:
            measured = measure_priors(
                self.model, batches, max_batches=self.max_batches, tolerance=self.tolerance
            )
        if self.cache is not None:
            self.cache.write(measured)
        return measured

    def _apply(
        self, name: str, part: OptimalBias, measured: PriorMeasurement, set_bias: bool
    ) -> None:
        where = name or type(part).__name__
        if measured.foreground == 0:
            logger.warning(
                f"None of {measured.samples:.0f} samples of {where} matched an object, so that "
                "its bias stays as it is; are there annotated images in DATASETS.TRAIN?"
            )
            return
        part.take_measurement(measured, set_bias=set_bias)
        logger.info(
            f"{where}: {measured.ratio:.4g} of the samples are foreground (one in "
            f"{1 / measured.ratio:.0f}; {measured.batches} batches, relative error "
            f"{measured.relative_error:.1%}); prior {measured.prior():.4g}, bias "
            f"{'set to' if set_bias else 'loaded,'} {_bias(part)[0].item():.4g}."
        )


def _bias(part: OptimalBias) -> torch.Tensor:
    bias = part.classifier.bias
    if not isinstance(bias, torch.Tensor):
        raise ValueError(f"The last classification layer of {type(part).__name__} has no bias.")
    return bias


def _given_prior(part: OptimalBias) -> float:
    """The prior that the options give; 0: it is to be measured."""
    return part.sampling_free.prior if part.sampling_free is not None else 0.0


class Closing:
    """An iterator whose worker processes end when it is closed, not some time later."""

    def __init__(self, batches: Iterable):
        self._iterator = iter(batches)

    def __iter__(self):
        return self._iterator

    def close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


class PriorCache:
    """Measurements in a JSON file, by a fingerprint of all they depend on.

    Args:
        path: the file; several runs may share it.
        fingerprint: see :func:`prior_fingerprint`.
    """

    def __init__(self, path: str, fingerprint: str):
        self.path, self.fingerprint = path, fingerprint

    def _load(self) -> Dict[str, Any]:
        try:
            with open(self.path) as stream:
                content = json.load(stream)
            return content if isinstance(content, dict) else {}
        except (OSError, ValueError, RecursionError):
            return {}

    def read(self) -> Optional[Dict[str, PriorMeasurement]]:
        """The measurements as rank 0 finds them, or None. Every rank must call it."""
        found = self._load().get(self.fingerprint) if comm.is_main_process() else None
        found = comm.all_gather(found)[0]
        if found is None:
            return None
        try:
            measured = {name: PriorMeasurement(**numbers) for name, numbers in found.items()}
            is_whole = all(map(_is_measurement, measured.values()))
        except (TypeError, AttributeError):
            is_whole = False
        if not is_whole:
            logger.warning(f"{self.path} holds no whole measurement; the prior is measured again.")
            return None
        return measured

    def write(self, measured: Dict[str, PriorMeasurement]) -> None:
        """Add measurements to the file, on rank 0; a disk that refuses does not stop the run."""
        if not comm.is_main_process():
            return
        content = self._load()
        content[self.fingerprint] = {name: x._asdict() for name, x in measured.items()}
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            with atomic_write(self.path) as stream:
                stream.write(json.dumps(content, indent=1).encode())
        except OSError as error:
            logger.warning(f"Could not keep the measured prior in {self.path}: {error}.")


def _is_measurement(measured: PriorMeasurement) -> bool:
    """Whether what a file says are counts that belong together."""
    lists = (measured.class_foreground, measured.class_objects)
    if not all(isinstance(values, list) for values in lists) or len({*map(len, lists)}) != 1:
        return False
    counts = (measured.foreground, measured.samples, measured.batches, *lists[0], *lists[1])
    return _is_count(measured.relative_error) and all(map(_is_count, counts))


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < 1e300


def prior_fingerprint(cfg: CfgNode, epoch_size: float = 0.0) -> str:
    """A hash of everything in a config that the prior may depend on.

    Args:
        cfg: the config.
        epoch_size: images in the training set, which its name may not tell.
    """
    values: Dict[str, Any] = {"epoch_size": epoch_size, "ranks": comm.get_world_size()}
    values.update({key: _value(cfg, key) for key in _IN_PRIOR})
    rest = cfg.clone()
    rest.defrost()
    for key in _NOT_IN_PRIOR:
        *path, name = key.split(".")
        node = rest if not path else _value(rest, ".".join(path))
        node.pop(name, None)
    values["config"] = rest
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def own_batches(
    cfg: CfgNode, build_loader: Callable[[CfgNode], Iterable]
) -> Callable[[], Iterable]:
    """Makes training batches apart from the training loader's."""

    def batches() -> Iterable:
        own = cfg.clone()
        own.defrost()
        # A seed of its own also where the config has none: a random one would be drawn from the
        # generators that training uses.
        own.SEED = max(cfg.SEED, 0) + 1
        return build_loader(own)

    return batches


def _value(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(lambda node, word: node[word], key.split("."), cfg)


def build_measure_prior(
    cfg: CfgNode,
    model: nn.Module,
    build_loader: Callable[[CfgNode], Iterable],
    epoch_size: float = 0.0,
) -> Optional[MeasurePrior]:
    """The hook for ``MODEL.SAMPLING_FREE``; None if it is off.

    Args:
        cfg: the config.
        model: the model without a wrapper, before weights are loaded.
        build_loader: makes a training loader from a config.
        epoch_size: images in the training set.
    """
    node = cfg.MODEL.SAMPLING_FREE
    if not node.ENABLED:
        return None
    if not any(hasattr(module, "sampling_free") for module in model.modules()):
        raise ValueError(
            f"MODEL.SAMPLING_FREE.ENABLED is True, but no part of {type(model).__name__} can train "
            "without sampling; use ExtRetinaNet, ExtFCOS, ATSS, ExtRPN or the Ext ROI heads."
        )
    if not find_optimal_bias(model):
        return None

    batches = own_batches(cfg, build_loader)
    if cfg.ENGINE.FAST_DEV_RUN:
        return MeasurePrior(model, batches, max_batches=2, tolerance=node.PRIOR_TOLERANCE)
    path = node.PRIOR_FILE or os.path.join(cfg.OUTPUT_DIR, "prior.json")
    return MeasurePrior(
        model,
        batches,
        cache=PriorCache(path, prior_fingerprint(cfg, epoch_size)),
        max_batches=node.PRIOR_BATCHES,
        tolerance=node.PRIOR_TOLERANCE,
    )
