"""A detector as a folder that hubs of models take: safetensors and the config beside them."""

import json
from pathlib import Path
from typing import Any, Dict, List

import yaml

from d2ext._files import atomic_write, writing
from d2ext.safe_load import ABOUT, CONFIG, WEIGHTS

from .formats import need

__all__ = ["write_folder"]


def write_folder(model: Any, folder: Path, about: Dict[str, Any]) -> List[Path]:
    """Write ``model.safetensors``, with the description as its metadata, and ``config.yaml``.

    Args:
        model: a detector; every tensor of its state is written.
        folder: made if it is not there.
        about: of :func:`~d2ext.export.about.describe`.
    """
    need("safetensors", "export")
    from safetensors.torch import save

    about = dict(about)
    weights, config = folder / WEIGHTS, folder / CONFIG
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(str(config)) as stream:
            stream.write(_public(about.pop("config")).encode())
        # Tensors of one memory would be refused.
        state = {key: value.cpu().clone().contiguous() for key, value in model.state_dict().items()}
        with atomic_write(str(weights)) as stream:
            stream.write(save(state, metadata={"format": "pt", ABOUT: json.dumps(about)}))
    return [weights, config]


def _public(config: str) -> str:
    """A config without the places of one machine, which tell who trained it and help nobody."""
    content = yaml.safe_load(config)
    for section, key in (("DATASETS", "DATA"), ("MODEL", "WEIGHTS")):
        content.get(section, {}).pop(key, None)
    content.pop("OUTPUT_DIR", None)
    return yaml.safe_dump(content, sort_keys=False)
