"""What sub-commands share: the config argument, the output folder, JSON files."""

import argparse
import contextlib
import json
import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

__all__ = [
    "add_config_arguments",
    "add_output_argument",
    "add_pickle_argument",
    "annotation_source",
    "config_file",
    "default_output",
    "load_config",
    "new_parser",
    "quiet",
    "write_json",
]


def new_parser(commands: Any, name: str, help: str, example: str) -> argparse.ArgumentParser:
    """A sub-command's parser, whose ``--help`` ends with an example."""
    return commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"Example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_arguments(parser: argparse.ArgumentParser, nargs: Optional[str] = None) -> None:
    """``CONFIG`` (or several), ``--opts`` and ``--import``."""
    parser.add_argument(
        "config",
        nargs=nargs,
        metavar="CONFIG",
        help="a YAML file, or the name of a config that 'd2ext zoo' lists",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of config keys"
    )
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="modules",
        metavar="MODULE",
        help="import a Python module first, for what it registers; may be repeated",
    )
    add_pickle_argument(parser)


def add_pickle_argument(parser: argparse.ArgumentParser) -> None:
    """``--allow-pickle``."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read weights even if they are a pickle, which may run any code; it is warned of",
    )


def add_output_argument(parser: argparse.ArgumentParser, command: str) -> None:
    """``--output``, the folder that takes all files of the command."""
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"folder for the files written (default: output/{command}/ and a name)",
    )


def default_output(given: Optional[Path], command: str, source: str) -> Path:
    """The output folder, made: the one given, or ``output/<command>/<stem of the source>``."""
    folder = given or Path("output") / command / (Path(source).stem or "run")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def config_file(name: str) -> str:
    """The file of a config that is given as a file or by its name in the zoo."""
    if os.path.isfile(name):
        return name
    from .. import model_zoo

    return model_zoo.get_config_file(name)


def load_config(
    name: str, opts: List[str], modules: Tuple[str, ...] = (), check: bool = True
) -> Any:
    """The config of a command line, on a device that this machine has.

    Args:
        name: a YAML file, or a name in the zoo.
        opts: overrides, KEY VALUE in turn.
        modules: Python modules to import first.
        check: refuse impossible values; if not, the device is left as it is, too.
    """
    from ..config import get_cfg, validate
    from ..engine.setup import choose_device, import_modules

    import_modules(list(modules))
    cfg = get_cfg()
    cfg.merge_from_file(config_file(name))
    cfg.merge_from_list(opts)
    if check:
        validate(cfg)
        choose_device(cfg)
    return cfg


def annotation_source(name: str) -> Dict[str, Any]:
    """A data set in COCO's form, by its JSON file or by the name of a registered one."""
    if not os.path.isfile(name):
        from detectron2.data import DatasetCatalog, MetadataCatalog

        from ..data import require_dataset

        try:
            require_dataset(name)
        except KeyError as error:
            raise FileNotFoundError(f"'{name}' is no file. {error.args[0]}") from None
        metadata = MetadataCatalog.get(name)
        if "json_file" not in metadata.as_dict():
            return _coco_of(DatasetCatalog.get(name), list(metadata.get("thing_classes", ())))
        if not os.path.isfile(metadata.json_file):
            DatasetCatalog.get(name)  # the built-in sets are drawn when they are read
        name = metadata.json_file
    from ..data.checks.json_file import check_shape, read_json

    data = read_json(name)
    check_shape(data, name, "coco")
    return data


def _coco_of(dicts: List[Dict[str, Any]], names: List[str]) -> Dict[str, Any]:
    """Dataset dicts in COCO's form, with Detectron2's labels as ids of the categories."""
    from detectron2.structures import BoxMode

    keys = ("file_name", "width", "height")
    annotations: List[Dict[str, Any]] = []
    for item in dicts:
        for thing in item.get("annotations", ()):
            box = BoxMode.convert(list(thing["bbox"]), thing["bbox_mode"], BoxMode.XYWH_ABS)
            row = {"id": len(annotations) + 1, "image_id": item["image_id"], "bbox": box}
            row.update(category_id=thing["category_id"], iscrowd=thing.get("iscrowd", 0))
            annotations.append({**row, "area": box[2] * box[3]})
    return {
        "images": [{"id": d["image_id"], **{k: d[k] for k in keys if k in d}} for d in dicts],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
    }


def write_json(path: Path, values: Any) -> Path:
    """Write a JSON file; NaN and infinity, which JSON has not, become null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(values), indent=1) + "\n")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Keep Detectron2's messages below ``level`` out of a command's output."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "d2ext")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            # Detectron2's anchors; there is nothing that a user could do about it.
            warnings.filterwarnings("ignore", message="torch.meshgrid")
            yield
    finally:
        for logger, old in zip(loggers, before):
            logger.setLevel(old)
