"""What sub-commands share: the config argument, the output folder, JSON files."""

import argparse
import contextlib
import json
import logging
import math
import numbers
import os
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from .._files import RunError, reason_of, sentence_of

__all__ = [
    "add_config_arguments",
    "add_output_argument",
    "add_pickle_argument",
    "annotation_source",
    "default_output",
    "load_config",
    "new_parser",
    "quiet",
    "read_results",
    "require_data",
    "require_same_set",
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
        help="a YAML file, or a config that 'd2ext zoo' lists; several with + between them",
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
    """The output folder, made: the one given, or ``output/<command>/<name of the source>``.

    The name is that of the file, and for a JSON file that of the folders above it as well: each
    evaluation writes ``<run>/inference/<data set>/coco_instances_results.json``.
    """
    name = "_".join(Path(part).stem for part in source.split("+"))
    if source.endswith(".json"):
        folders = Path(os.path.abspath(source)).parent.parts[1:]
        name = "_".join([*folders[-3:], name])
    folder = given or Path("output") / command / (name or "run")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_config(
    name: str, opts: List[str], modules: Tuple[str, ...] = (), check: bool = True
) -> Any:
    """The config of a command line, on a device that this machine has.

    Args:
        name: a YAML file, or a name in the zoo; several with "+" between them.
        opts: overrides, KEY VALUE in turn.
        modules: Python modules to import first.
        check: refuse impossible values; if not, the device is left as it is, too.
    """
    from ..config import get_cfg, validate
    from ..engine.setup import choose_device, import_modules
    from ..model_zoo import config_files

    try:
        import_modules(list(modules))
    except ImportError as error:
        raise RunError(
            f"--import {' '.join(modules)} fails: {error}; correct the name, or start from the "
            "folder that has the module."
        ) from error
    cfg = get_cfg()
    try:
        cfg.merge_from_file(config_files(name))
        cfg.merge_from_list(opts)
        if check:
            validate(cfg)
    except (TypeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{name} cannot be read as a config ({error}); give a YAML file with sections of keys."
        ) from error
    # What d2ext, Detectron2 and yacs refuse keys, values and files with.
    except (KeyError, ValueError, AssertionError, OSError) as error:
        raise RunError(sentence_of(error)) from error
    if check:
        choose_device(cfg)
    return cfg


def require_data(names: Sequence[str]) -> None:
    """Refuse data sets that are not registered, or whose files are missing, in one sentence."""
    from ..data import require_dataset

    try:
        require_dataset(*names)
    except (KeyError, FileNotFoundError) as error:
        raise RunError(sentence_of(error)) from error


def annotation_source(name: str) -> Dict[str, Any]:
    """A data set in COCO's form, by its JSON file or by the name of a registered one.

    Raises:
        RunError: if there are no annotations, or entries that lack what every one has.
    """
    if not os.path.isfile(name):
        from detectron2.data import DatasetCatalog, MetadataCatalog

        try:
            require_data([name])
        except RunError as error:
            raise RunError(f"'{name}' is no file. {error}") from error
        metadata = MetadataCatalog.get(name)
        if "json_file" not in metadata.as_dict():
            return _coco_of(DatasetCatalog.get(name), list(metadata.get("thing_classes", ())))
        if not os.path.isfile(metadata.json_file):
            DatasetCatalog.get(name)  # the built-in sets are drawn when they are read
        name = metadata.json_file
    from ..data.checks.json_file import check_json, read_json
    from ..data.checks.kinds import settle

    data = read_json(name)
    # Whoever counts needs the fields of COCO's form alone, which LVIS' files have, too.
    found = check_json(data, name, "coco", loading=False).problems
    settle([p for p in found if p.kind in ("broken entry", "malformed box")], name)
    if "annotations" not in data:
        raise RunError(f"{name} has no 'annotations', as COCO's test sets; give a file with them.")
    return data


def read_results(path: str) -> List[Dict[str, Any]]:
    """Detections in COCO's results format: a list of dictionaries, one a detection.

    Raises:
        RunError: if the file holds anything else.
    """
    from ..data.checks.json_file import read_json

    wanted = "give what an evaluation writes, such as coco_instances_results.json"
    try:
        results = read_json(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({reason_of(error)}); {wanted}.") from error
    if not isinstance(results, list):
        raise RunError(
            f"{path} holds no list of detections; {wanted} (d2ext predict numbers its images in "
            "its own way, so that its file fits no data set)."
        )
    for index, item in enumerate(results):
        if not _is_detection(item):
            raise RunError(
                f"{path}: entry {index} of the list has no usable image_id, category_id, bbox "
                f"(four numbers) and score; {wanted}."
            )
    return results


def require_same_set(
    results: List[Dict[str, Any]], data: Dict[str, Any], results_name: str, data_name: str
) -> None:
    """Refuse detections that were made for another data set.

    Raises:
        RunError: if one is of an image or of a class that the data set has not
    """
    from ..evaluation.results import strangers

    for what, key in zip(("image", "category"), strangers(results, data)):
        if key is not None:
            raise RunError(
                f"{results_name} has detections of the {what} {key!r}, which {data_name} has not; "
                "give the data set that they were made for."
            )


def _is_detection(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("image_id"), (int, str)):
        return False
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not isinstance(item.get("category_id"), int):
        return False
    return all(isinstance(value, numbers.Real) for value in (*box, item.get("score")))


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
