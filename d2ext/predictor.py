"""Prediction with a trained detector: one image or many, from arrays, PIL images or files.

Shapes: H and W the size of an image.
"""

import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image

from . import model_zoo
from ._files import open_image
from .config import validate
from .safe_load import weights_file

__all__ = ["Predictor", "describe_weights", "load_config"]

logger = logging.getLogger(__name__)

# What exported detectors and folders of safetensors say of their scores.
_SAID = ("thresholds", "chosen_on", "calibration")
Picture = Union[np.ndarray, Image.Image, str, Path]


def load_config(
    cfg_or_name: Union[CfgNode, str, Path, Sequence[str], None], weights: str = ""
) -> CfgNode:
    """A config from a config, a YAML file, a name of the model zoo or a checkpoint.

    Args:
        cfg_or_name: None: the config that the checkpoint ``weights`` holds.
        weights: a checkpoint, or an exported detector.

    Returns:
        a config of its own, not frozen
    """
    from .engine.description import config_of

    if isinstance(cfg_or_name, CfgNode):
        cfg = cfg_or_name.clone()
        cfg.defrost()
        return cfg
    if cfg_or_name is not None:
        names: Any = cfg_or_name
        return model_zoo.get_config(*(names if isinstance(names, (list, tuple)) else [names]))
    if not weights:
        raise ValueError("Neither a config nor a checkpoint is given; name at least one.")
    description = describe_weights(weights)
    if "config" not in description:
        raise ValueError(
            f"{weights} holds no config, so it was not written by d2ext's trainer; name the "
            "config it was trained with."
        )
    return config_of(description["config"])


def describe_weights(weights: str) -> Dict[str, Any]:
    """What a checkpoint or an exported detector says about itself; empty if nothing."""
    from .engine.description import read_description
    from .export.runtime import is_exported, load_exported

    return load_exported(weights)[1] if is_exported(weights) else read_description(weights)


class Predictor:
    """Detections of images, in pixels of the images as they came.

    >>> predictor = Predictor(None, "output/model_final.pth")
    >>> predictor("street.jpg")["instances"].pred_boxes
    >>> outputs = predictor(["a.jpg", Image.open("b.png"), array])

    Args:
        cfg_or_name: a config, the name of a YAML file or of a config of the model zoo, or a list of
            names, later ones over earlier ones; None: the config that the checkpoint holds.
        weights: a checkpoint, a model-zoo file, a folder of safetensors or an exported detector,
            which runs on the CPU; "": ``MODEL.WEIGHTS`` of the config.
        device: where the model runs; None: ``MODEL.DEVICE``, or the CPU where there is no GPU.
        score_thresh: detections below this score are left out; a list has one score a class;
            "auto": those with the highest F1, which an evaluation left beside ``weights``.
        calibrated: whether scores become probabilities of being right, as ``d2ext calibrate`` has
            fitted them. ``score_thresh`` is then one of them, unless it is "auto".
        batch_size: images that go through the model together. Smaller images of a batch are padded
            to the largest one, which can move a score in its last digits.
        allow_pickle: read ``weights`` even if it is a pickle, which may run any code.

    Attributes:
        class_names: from the checkpoint, else from the data sets of the config, else numbers.
        weights: the file that was loaded.
        about: thresholds and calibration, where its file holds them.
    """

    def __init__(
        self,
        cfg_or_name: Union[CfgNode, str, Path, Sequence[str], None] = None,
        weights: Union[str, Path] = "",
        *,
        device: Optional[str] = None,
        score_thresh: Union[float, Sequence[float], str] = 0.0,
        calibrated: bool = False,
        batch_size: int = 8,
        allow_pickle: bool = False,
    ):
        from .engine.checkpoint import Checkpointer
        from .engine.description import class_names_of
        from .engine.setup import choose_device
        from .export.runtime import ExportedModel, is_exported

        weights = weights_file(weights)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        cfg = load_config(cfg_or_name, weights)
        if device is not None:
            cfg.MODEL.DEVICE = str(device)
        # How it was trained does not matter here.
        validate(cfg, "MODEL", "INPUT", "TEST")
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise ValueError(
                f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, and Predictor gives a model BGR or RGB only; "
                "convert images yourself, with Detectron2's convert_PIL_to_numpy, and call the "
                "model with them."
            )
        choose_device(cfg)
        self.cfg = cfg
        if is_exported(weights):
            self.model: torch.nn.Module = ExportedModel(weights)
            extra = self.model.about
        else:
            self.model = build_model(cfg).eval()
            checkpointer = Checkpointer(self.model, allow_pickle=allow_pickle)
            extra = checkpointer.load(weights or cfg.MODEL.WEIGHTS)
            if weights:
                _refuse_other_weights(self.model, checkpointer.last_incompatible, weights)
        names = extra.get("class_names") or class_names_of(cfg)
        self.class_names: List[str] = list(names or _numbers(self.model))
        self.weights = weights = weights or cfg.MODEL.WEIGHTS
        self.about = {key: extra[key] for key in _SAID if key in extra}
        self.recalibration = None
        if calibrated:
            from .evaluation.recalibration import Recalibration

            self.recalibration = Recalibration.of(weights, self.about)
            if self.recalibration is None:
                raise ValueError(
                    f"There is no calibration for {weights}; fit one with 'd2ext calibrate'."
                )
        if score_thresh == "auto":
            from .evaluation.thresholds import thresholds_of

            score_thresh = thresholds_of(weights, self.about, self.class_names).of(self.class_names)
            if self.recalibration is not None:
                classes = range(len(score_thresh))
                mapped = self.recalibration.apply(score_thresh, classes, self.class_names)
                score_thresh = mapped.tolist()
        self.score_thresh = score_thresh
        self.batch_size = batch_size
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def __call__(
        self, images: Union[Picture, Sequence[Picture]]
    ) -> Union[Dict[str, Any], List[Dict[str, Any]]]:
        """Detect objects.

        Args:
            images: one image, or a list or tuple of them. An image is an array (H, W, 3) in BGR or
                (H, W), as OpenCV reads it and as Detectron2's ``DefaultPredictor`` takes it, a PIL
                image, or the name of a file.

        Returns:
            What Detectron2's models return for it: a dict with "instances", on the CPU. A list of
            them for a list of images.
        """
        if not isinstance(images, (list, tuple)):
            image: Any = images
            return self._predict([image])[0]
        outputs: List[Dict[str, Any]] = []
        for start in range(0, len(images), self.batch_size):
            outputs += self._predict(images[start : start + self.batch_size])
        return outputs

    @torch.no_grad()
    def _predict(self, images: Sequence[Picture]) -> List[Dict[str, Any]]:
        outputs = self.model([self.prepare(image) for image in images])
        results = []
        for output in outputs:
            found = output["instances"].to("cpu")
            if self.recalibration is not None:
                classes = found.pred_classes.numpy()
                scores = self.recalibration.apply(found.scores, classes, self.class_names)
                found.scores = torch.from_numpy(scores).float()
            least = torch.as_tensor(self.score_thresh)
            if least.ndim:
                least = least[found.pred_classes]
            results.append({**output, "instances": found[found.scores >= least]})
        return results

    def prepare(self, image: Picture) -> Dict[str, Any]:
        """The model's input for an image: a dict with "image", "height" and "width"."""
        array = as_bgr(image)
        height, width = array.shape[:2]
        resize = self.resize.get_transform(array)
        if isinstance(resize, T.ResizeTransform):  # a very thin image would lose its short side
            resize.new_h, resize.new_w = max(resize.new_h, 1), max(resize.new_w, 1)
        array = resize.apply_image(array)
        if self.cfg.INPUT.FORMAT == "RGB":
            array = array[:, :, ::-1]
        tensor = torch.as_tensor(
            np.ascontiguousarray(array.transpose(2, 0, 1)), dtype=torch.float32
        )
        return {"image": tensor, "height": height, "width": width}


def as_bgr(image: Picture) -> np.ndarray:
    """Any image that `Predictor` takes as an array (H, W, 3) in BGR."""
    if isinstance(image, (str, Path)):
        try:
            with open_image(image) as picture:
                picture = detection_utils._apply_exif_orientation(picture)
                return detection_utils.convert_PIL_to_numpy(picture, "BGR")
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no image file '{image}'.") from None
        except (OSError, SyntaxError) as error:  # Pillow raises both for broken files
            raise ValueError(
                f"'{image}' is not an image that Pillow can read ({type(error).__name__}); leave "
                "it out or convert it."
            ) from error
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))[:, :, ::-1]
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"An image is an array, a PIL image or the name of a file, not a "
            f"{type(image).__name__}."
        )
    if image.size == 0:
        raise ValueError(
            f"An image of the shape {_tuple(image.shape)} has no pixels; leave it out."
        )
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"An image array has the shape (height, width, 3) or (height, width), not "
            f"{_tuple(image.shape)}; drop an alpha channel and put the colours last."
        )
    return image


def _refuse_other_weights(model: torch.nn.Module, incompatible: Any, weights: str) -> None:
    """Weights of another model would leave layers as they were drawn, and predict noise."""
    if incompatible is None:
        return
    mismatched = {*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)}
    # Buffers of losses may be missing: prediction does not read them.
    absent = sorted(mismatched & {key for key, _ in model.named_parameters()})
    if absent:
        raise ValueError(
            f"{weights} does not fit the config: {len(absent)} parameters are missing there or of "
            f"another shape, such as {absent[0]}; name the config it was trained with."
        )


def _tuple(shape: Sequence[int]) -> Tuple[int, ...]:
    return tuple(int(n) for n in shape)


def _numbers(model: torch.nn.Module) -> List[str]:
    """Names for the classes of a model without class names."""
    heads = getattr(model, "roi_heads", None)
    count: Any = getattr(model, "num_classes", None) or getattr(heads, "num_classes", 0)
    return [f"class {k}" for k in range(count)]
