"""The optimal bias of Sampling-Free training, measured on the training data without a backbone.

The parts work on any head: :func:`count_labels` and :class:`PriorSums` measure,
:func:`set_prior_bias` sets a layer's bias. :class:`OptimalBias` makes a detector one that
:func:`measure_priors` finds by itself.

Shapes: N images, R priors (anchors or points) of all levels, C classes. In the paper, N is also the
number of samples and N_f that of foreground ones; here these are ``samples`` and ``foreground``.
"""

import math
import sys
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Union

import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import nn

from d2ext.combinations import check, present
from d2ext.config import arguments, validate
from d2ext.ops.reduce import reduce_sum
from d2ext.ops.sampling_free import optimal_prior, softmax_prior_bias

from .backbones.feature_sizes import FeatureSizes, fake_features
from .losses.guided import sampling_free_on

__all__ = [
    "OptimalBias",
    "PriorMeasurement",
    "PriorSums",
    "SamplingFreeOptions",
    "count_labels",
    "find_optimal_bias",
    "measure_priors",
    "set_prior_bias",
    "set_softmax_bias",
]


class SamplingFreeOptions(NamedTuple):
    """How a head trains without sampling, apart from its guide.

    Attributes:
        prior: pi to start with; 0: it will be measured.
        prior_per_class: one pi for each class.
        score_thresh: threshold at inference, "fixed", "fg_ratio" or "class_adaptive".
        reg_norm: divisor of the box loss, "fg" or "native".
        ignore_as_negative: count ignored samples as background.
    """

    prior: float = 0.0
    prior_per_class: bool = False
    score_thresh: str = "fg_ratio"
    reg_norm: str = "fg"
    ignore_as_negative: bool = False

    @classmethod
    def from_cfg(cls, cfg: Any, place: str) -> Optional["SamplingFreeOptions"]:
        """What ``MODEL.SAMPLING_FREE`` says about a place, or None if it is off there."""
        if not sampling_free_on(cfg, place):
            return None
        validate(cfg, "MODEL.SAMPLING_FREE")
        node = cfg.MODEL.SAMPLING_FREE
        adaptive = node.SCORE_THRESH == "class_adaptive"
        check("sampling free", *present(given_prior=node.PRIOR, adaptive_threshold=adaptive))
        return cls(**arguments(cfg, "MODEL.SAMPLING_FREE"))


class PriorMeasurement(NamedTuple):
    """What was counted in a number of batches; plain numbers, fit for JSON.

    Attributes:
        foreground: samples matched to an object.
        samples: foreground and background samples, without ignored ones.
        class_foreground: C numbers, foreground samples of each class.
        class_objects: C numbers, annotated objects of each class.
        batches: batches counted, over all ranks.
        relative_error: standard error of ``foreground / samples`` over that ratio.
    """

    foreground: float
    samples: float
    class_foreground: List[float]
    class_objects: List[float]
    batches: int
    relative_error: float

    @property
    def ratio(self) -> float:
        """Share of the foreground, N_f / N."""
        return self.foreground / self.samples if self.samples else 0.0

    def prior(self) -> float:
        """``N_f / (C N)``, one for all classes."""
        return optimal_prior(self.foreground, self.samples, len(self.class_foreground))

    def class_priors(self) -> torch.Tensor:
        """(C,) the prior of each class alone; one never seen counts as half a sample."""
        counts = torch.tensor(self.class_foreground, dtype=torch.float64)
        return counts.clamp(min=0.5) / self.samples


def count_labels(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Count labels of any shape: (C + 1,) float64, the classes and then the background.

    Args:
        labels: 0..C-1 classes, C background, -1 ignored.
        num_classes: C.
    """
    shifted = labels.flatten().long() + 1
    return torch.bincount(shifted, minlength=num_classes + 2)[1:].double()


class PriorSums:
    """Sums over batches from which the foreground's share and its error follow.

    Example::

        sums = PriorSums(num_classes)
        for batch in batches:
            sums.add(labels_of_all_samples(batch))
        set_prior_bias(head.cls_score, sums.result().prior())

    Args:
        num_classes: C; 1 for a proposal network.
        device: where to sum.
    """

    def __init__(self, num_classes: int, device: Union[str, torch.device] = "cpu"):
        self.num_classes = num_classes
        self.moments = torch.zeros(6, dtype=torch.float64, device=device)
        self.counts = torch.zeros(2, num_classes, dtype=torch.float64, device=device)

    def add(self, labels: torch.Tensor, object_classes: Optional[torch.Tensor] = None) -> None:
        """Take in a batch.

        Args:
            labels: of all its samples, any shape.
            object_classes: (G,) classes of its annotated objects.
        """
        counts = count_labels(labels, self.num_classes)
        fg, n = counts[:-1].sum(), counts.sum()
        self.moments += torch.stack([torch.ones_like(n), fg, n, fg * fg, fg * n, n * n])
        self.counts[0] += counts[:-1]
        if object_classes is not None:
            self.counts[1] += torch.bincount(object_classes, minlength=self.num_classes)

    def result(self) -> PriorMeasurement:
        """The measurement over all ranks; every rank must call it."""
        sums = reduce_sum(torch.cat([self.moments, self.counts.flatten()])).tolist()
        batches, fg, n, fg_fg, fg_n, n_n = sums[:6]
        error = math.inf
        if batches > 1 and fg > 0:
            # Of a ratio of sums: the spread of fg - ratio * n over batches.
            ratio = fg / n
            spread = max(fg_fg - 2 * ratio * fg_n + ratio * ratio * n_n, 0.0)
            error = math.sqrt(spread * batches / (batches - 1)) / fg
        classes = self.num_classes
        return PriorMeasurement(
            fg, n, sums[6 : 6 + classes], sums[6 + classes :], int(batches), error
        )


@torch.no_grad()
def set_prior_bias(layer: nn.Module, prior: Union[float, torch.Tensor]) -> None:
    """Set the bias of a sigmoid classification layer so that it starts with score ``prior``.

    In place, so that an optimiser keeps hold of it.

    Args:
        layer: a convolution or linear layer with C outputs for each anchor of a location, the
            classes of an anchor side by side.
        prior: one probability, or (C,).
    """
    prior = torch.as_tensor(prior, dtype=torch.float64)
    if not bool(((prior > 0) & (prior < 1)).all()):
        raise ValueError(f"Priors must lie strictly between 0 and 1, not at {prior.tolist()}.")
    own: Optional[torch.Tensor] = getattr(layer, "bias", None)
    if own is None:
        raise ValueError(
            f"{type(layer).__name__} has no bias to set; give the last classification layer one."
        )
    bias = (prior.log() - (-prior).log1p()).reshape(-1)
    own.view(-1, len(bias)).copy_(bias)


@torch.no_grad()
def set_softmax_bias(layer: nn.Linear, foreground_ratio: float) -> None:
    """Set the bias of a softmax layer, background last, to its uniform optimum.

    Args:
        layer: a layer with C + 1 outputs.
        foreground_ratio: N_f / N.
    """
    num_classes = len(layer.bias) - 1
    counts = torch.full((num_classes,), foreground_ratio / num_classes)
    layer.bias.copy_(softmax_prior_bias(counts, 1.0, uniform=True))


class OptimalBias:
    """Mixin of a head, or a detector with one, whose classifier starts at the optimal prior.

    Attributes:
        prior: buffer, pi; (C,) if there is one for each class. 0 until it is known.
        fg_ratio: buffer, N_f / N; 0 until it is known.
        class_counts: buffer (C,), annotated objects N_j of each class.
        score_power: scores are class scores to this power.
        sampling_free: the options, None if it is off.
    """

    register_buffer: Callable[..., None]  # nn.Module's
    prior: torch.Tensor
    fg_ratio: torch.Tensor
    class_counts: torch.Tensor
    score_power = 1.0
    sampling_free: Optional[SamplingFreeOptions] = None

    def enable_optimal_bias(self, options: Optional[SamplingFreeOptions], num_classes: int) -> None:
        """Register the buffers, unless ``options`` is None, and set the bias to a given prior."""
        self.sampling_free = options
        if options is None:
            return
        shape = (num_classes,) if options.prior_per_class and num_classes > 1 else ()
        self.register_buffer("prior", torch.zeros(shape))
        self.register_buffer("fg_ratio", torch.zeros(()))
        self.register_buffer("class_counts", torch.zeros(num_classes))
        if options.prior:
            self.prior.fill_(options.prior)
            self.fg_ratio.fill_(min(options.prior * num_classes, 1.0))
            set_prior_bias(self.classifier, options.prior)

    @property
    def classifier(self) -> nn.Module:
        """The last classification layer."""
        raise NotImplementedError(f"{type(self).__name__} must define classifier.")

    @property
    def sample_features(self) -> Sequence[str]:
        """Names of the feature maps that have priors."""
        raise NotImplementedError(f"{type(self).__name__} must define sample_features.")

    def label_samples(
        self, features: List[torch.Tensor], gt_instances: List[Instances]
    ) -> torch.Tensor:
        """Labels (N, R) of all samples; of the features only the size counts."""
        raise NotImplementedError(f"{type(self).__name__} must define label_samples.")

    @torch.no_grad()
    def take_measurement(self, measured: PriorMeasurement, *, set_bias: bool = True) -> None:
        """Keep a measurement in the buffers and, if wanted, in the classifier's bias."""
        prior = measured.class_priors() if self.prior.dim() else torch.tensor(measured.prior())
        self.prior.copy_(prior)
        self.fg_ratio.fill_(measured.ratio)
        self.class_counts.copy_(torch.tensor(measured.class_objects))
        if set_bias:
            set_prior_bias(self.classifier, prior)

    def score_thresholds(self, fixed: float) -> Union[float, torch.Tensor]:
        """The threshold at inference, one number or (C,); ``fixed`` while no ratio is known."""
        options = self.sampling_free
        if options is None or options.score_thresh == "fixed":
            return fixed
        threshold = self.fg_ratio
        if options.score_thresh == "class_adaptive":
            threshold = threshold * self.class_counts / self.class_counts.sum().clamp(min=1)
        return torch.where(self.fg_ratio > 0, threshold**self.threshold_power, fixed)

    @property
    def threshold_power(self) -> float:
        """Measured thresholds are of class scores; what is compared with them is to this power."""
        return self.score_power


def find_optimal_bias(model: nn.Module) -> Dict[str, OptimalBias]:
    """The parts of a model that have an optimal bias, by their name in it ("" for itself)."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, OptimalBias) and module.sampling_free is not None
    }


@torch.no_grad()
def measure_priors(
    model: Any,
    batches: Iterable[List[Dict[str, Any]]],
    *,
    max_batches: int = 500,
    tolerance: float = 0.02,
    min_batches: int = 10,
    show_progress: bool = True,
) -> Dict[str, PriorMeasurement]:
    """Measure the share of foreground samples with a model's own anchors and matching.

    The model is not changed. Every rank must call it, with as many batches.

    Args:
        model: with a ``backbone``, and parts that are :class:`OptimalBias`.
        batches: training batches: lists of dicts with ``image`` and ``instances``.
        max_batches: batches of a rank at most.
        tolerance: relative standard error at which to stop earlier, at every tenth batch.
        min_batches: batches of a rank at least.
        show_progress: a progress bar on rank 0; few lines where the output is not a terminal.

    Returns:
        A measurement for each part, under its name in the model.
    """
    parts = find_optimal_bias(model)
    device = next(model.parameters()).device
    sums = {name: PriorSums(len(part.class_counts), device) for name, part in parts.items()}
    sizes = FeatureSizes(model.backbone, channels=model.pixel_mean.numel())
    results: Dict[str, PriorMeasurement] = {}
    with _progress_bar(max_batches, show_progress) as bar:
        for number, batch in enumerate(batches, start=1):
            image_sizes = [tuple(x["image"].shape[-2:]) for x in batch]
            targets = [x["instances"].to(device) for x in batch]
            feature_sizes = sizes(image_sizes)
            classes = torch.cat([x.gt_classes for x in targets])
            for name, part in parts.items():
                features = fake_features(feature_sizes, part.sample_features, device)
                classes_here = classes if len(part.class_counts) > 1 else torch.zeros_like(classes)
                sums[name].add(part.label_samples(features, targets), classes_here)
            bar.update()
            if number >= max_batches:
                break
            if number % 10 == 0:
                results = {name: x.result() for name, x in sums.items()}
                worst = max(x.relative_error for x in results.values())
                bar.set_postfix_str(f"relative error {worst:.1%}", refresh=False)
                if number >= min_batches and worst < tolerance:
                    return results
    return {name: x.result() for name, x in sums.items()}


def _progress_bar(total: int, show: bool) -> Any:
    from tqdm import tqdm

    # A log file needs a line now and then, not ten a second.
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        desc="Measuring the prior",
        unit="batch",
        mininterval=interval,
        maxinterval=max(interval, 10.0),
        disable=not (show and comm.is_main_process()),
    )
