"""The configs that come with d2ext, by name, from a checkout and from an installed wheel alike."""

import difflib
import fnmatch
import importlib.resources
import os
from pathlib import Path, PurePosixPath
from typing import Any, Dict, List, Optional, Sequence, Union

from .config.node import CfgNode, get_cfg

__all__ = [
    "AUTHORS_AP",
    "config_files",
    "config_root",
    "describe_config",
    "get_config",
    "get_config_file",
    "list_configs",
    "list_fragments",
]

# Folders named after a data set; every other one bears the name of the method it configures.
_PLAIN_FOLDERS = ("", "COCO", "LVISv1", "VOC", "Demo")

#: Box AP that the authors of a method report for a config: COCO val2017, or LVIS v1 val for EFL.
#: These are their numbers, from the pages named in the docs of each method; none is measured here.
AUTHORS_AP = {
    "DualWeighting/dw_R_50_FPN_1x.yaml": 41.5,
    "DualWeighting/dw_R_50_FPN_1x_refine.yaml": 42.1,
    "DualWeighting/dw_R_50_FPN_2x_ms_refine.yaml": 44.8,
    "DualWeighting/dw_R_50_FPN_dcn_2x_ms_refine.yaml": 47.9,
    "DualWeighting/dw_R_101_FPN_2x_ms.yaml": 46.1,
    "EqualizedFocalLoss/improved_baseline_R_50_FPN_24e_efl.yaml": 27.5,
    "EqualizedFocalLoss/mask_rcnn_R_50_FPN_1x_eqlv2_authors.yaml": 24.2,
    "EqualizedFocalLoss/improved_baseline_R_101_FPN_24e_efl.yaml": 29.2,
    "YOLOX/yolox_s_300e.yaml": 40.5,
    "YOLOX/yolox_m_300e.yaml": 46.9,
    "YOLOX/yolox_ip_s_300e_efl.yaml": 23.3,
    "YOLOX/yolox_ip_s_300e_eqfl.yaml": 24.2,
    "YOLOX/yolox_ip_m_300e_efl.yaml": 30.0,
    "YOLOX/yolox_ip_m_300e_eqfl.yaml": 31.0,
}


def config_root() -> Path:
    """The folder of the configs.

    A wheel carries them inside the package. A checkout has them beside it, where an editable
    install reads them too.
    """
    package = Path(str(importlib.resources.files("d2ext")))
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"d2ext in {package} has lost its configs folder; install it again with "
        "'pip install --force-reinstall --no-deps' from a complete source tree."
    )


def list_configs(pattern: Optional[str] = None, *, include_base: bool = False) -> List[str]:
    """Names of the configs, as `get_config` takes them, sorted.

    Args:
        pattern: a shell pattern for the whole name (``Demo/*``), or, without any of ``*?[``, a
            part of the name. Upper and lower case are the same.
        include_base: also list the ``Base-*.yaml`` files that others build upon.
    """
    root = config_root()
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))
    if not include_base:
        names = [n for n in names if not PurePosixPath(n).name.startswith("Base-")]
    if pattern is None:
        return names
    wanted = pattern.lower()
    if not any(letter in wanted for letter in "*?["):
        wanted = f"*{wanted}*"
    return [n for n in names if fnmatch.fnmatchcase(n.lower(), wanted)]


def list_fragments() -> List[str]:
    """Names of the configs that are no detector but can be added to any, sorted.

    They are added to a config: ``--config-file COCO/fcos_R_50_FPN_1x --config-file
    ALWA/Base-ALWA-2``, or in `get_config`.
    """
    bases = set(list_configs(include_base=True)) - set(list_configs())
    return [name for name in sorted(bases) if not _detector_of(name)]


def _detector_of(name: str) -> Any:
    values = CfgNode.load_yaml_with_base(str(config_root() / name))
    return values.get("MODEL", {}).get("META_ARCHITECTURE")


def get_config_file(path: str) -> str:
    """The file of a config.

    Args:
        path: its name below ``configs/``, such as ``"Demo/retinanet.yaml"``; ``.yaml`` may be left
            out. A LazyConfig is ``"lazy/fcos.py"``.

    Returns:
        the full name of the file

    Raises:
        FileNotFoundError: there is no such config; the message names the nearest ones
    """
    lazy = sorted(f"lazy/{file.name}" for file in (config_root() / "lazy").glob("*.py"))
    known = list_configs(include_base=True) + lazy
    name = PurePosixPath(path.replace("\\", "/")).as_posix()
    for candidate in (name, f"{name}.yaml"):
        if candidate in known:
            return str(config_root() / candidate)
    if os.path.isdir(path):
        raise FileNotFoundError(f"{path} is a folder, not a config; name a YAML file in it.")
    near = _nearest(name, known)
    hint = f"the nearest are {', '.join(near)}" if near else "nothing comes near"
    raise FileNotFoundError(
        f"d2ext has no config '{path}'; {hint}, and d2ext.model_zoo.list_configs() names all."
    )


def config_files(names: Union[str, Sequence[str]]) -> List[str]:
    """The files of a config that may be made of several, in the order in which they are merged.

    Args:
        names: files or names as in `get_config_file`; a text may hold several, with "+" between
            them (``COCO/retinanet_R_50_FPN_1x+ALWA/Base-ALWA-2``)
    """
    found: List[str] = []
    for name in [names] if names and isinstance(names, (str, os.PathLike)) else names:
        name = os.fspath(name)
        parts = [name] if os.path.isfile(name) else name.split("+")
        found += [part if os.path.isfile(part) else get_config_file(part) for part in parts]
    return found


def get_config(*names: str) -> CfgNode:
    """A config by its name, merged into the defaults and ready for overrides.

    Args:
        names: as in `config_files`, YAML configs. What a later one says holds over what an earlier
            one says, as in ``get_config("COCO/fcos_R_50_FPN_1x", "ALWA/Base-ALWA-2")``
    """
    files = config_files(names)
    lazy = [file for file in files if file.endswith(".py")]
    if lazy:
        raise ValueError(
            f"{lazy[0]} is a LazyConfig; load it with Detectron2's LazyConfig, or train it with "
            "--lazy."
        )
    cfg = get_cfg()
    cfg.merge_from_file(files)
    return cfg


def describe_config(path: str) -> Dict[str, str]:
    """What a config is about, for a table: its name, method, detector and data."""
    file = get_config_file(path)
    values = CfgNode.load_yaml_with_base(file)
    model = values.get("MODEL", {})
    detector = model.get("META_ARCHITECTURE", "GeneralizedRCNN")  # Detectron2's default
    if detector == "GeneralizedRCNN":
        heads = model.get("ROI_HEADS", {}).get("NAME")
        detector = f"{detector} ({heads})" if heads else detector
    train = values.get("DATASETS", {}).get("TRAIN", ())
    if isinstance(train, str):  # YAML leaves "('coco_2017_train',)" a string, which yacs evaluates
        train = [word.strip("() '\"") for word in train.split(",")]
    name = Path(file).relative_to(config_root()).as_posix()
    folder = name.rpartition("/")[0]
    return {
        "config": name,
        "method": "-" if folder in _PLAIN_FOLDERS else folder,
        "detector": detector,
        "training data": " ".join(filter(None, train)) or "-",
    }


def _nearest(name: str, known: List[str], count: int = 3) -> List[str]:
    """Known names like ``name``: as a whole, or in their last part, when the folder is wrong."""
    whole = {k.lower(): k for k in known}
    stem = PurePosixPath(name.lower()).stem
    same_stem = [k for k in known if PurePosixPath(k.lower()).stem == stem]
    close = [whole[m] for m in difflib.get_close_matches(name.lower(), list(whole), n=count)]
    stems = {PurePosixPath(k.lower()).stem: k for k in known}
    close_stem = [stems[m] for m in difflib.get_close_matches(stem, list(stems), n=count)]
    return list(dict.fromkeys([*same_stem, *close, *close_stem]))[:count]
