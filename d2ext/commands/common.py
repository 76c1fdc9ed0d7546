"""What sub-commands share: their parsers and arguments, what they return, files in and out."""

import argparse
import contextlib
import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Union

from .._arguments import add_import_argument, add_pickle_argument
from .._files import RunError, mistakes_in_sentences
from .._text import as_json

__all__ = [
    "Done",
    "add_config_arguments",
    "add_data_arguments",
    "add_dataset_argument",
    "add_model_arguments",
    "add_output_argument",
    "add_results_arguments",
    "data_set",
    "default_output",
    "evaluate",
    "import_named",
    "is_validation",
    "load_config",
    "new_group",
    "new_parser",
    "progress",
    "quiet",
    "require_data",
    "training_set",
    "write_json",
]

_SPLITS = ("test", "val", "train")


class Done(NamedTuple):
    """What a command returns when it has done its work.

    Attributes:
        values: what it found, for ``--json``.
        files: what it has written.
        code: its exit status.
    """

    values: Dict[str, Any]
    files: Sequence[Union[str, Path]] = ()
    code: int = 0


def new_parser(
    commands: Any, name: str, help: str, *examples: str, **options: Any
) -> argparse.ArgumentParser:
    """The parser of a command, whose ``--help`` ends with examples; ``--json`` and ``--quiet``."""
    parser = _described_parser(commands, name, help, *examples, **options)
    parser.add_argument(
        "--json", action="store_true", help="print what was found as JSON, and nothing else"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def new_group(commands: Any, name: str, help: str, *examples: str) -> Any:
    """A command of several commands; returns what takes their parsers."""
    parser = _described_parser(commands, name, help, *examples)
    return parser.add_subparsers(title="what", metavar="WHAT", required=True)


def _described_parser(
    commands: Any, name: str, help: str, *examples: str, **options: Any
) -> argparse.ArgumentParser:
    title = "Example" if len(examples) == 1 else "Examples"
    return commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="\n  ".join([f"{title}:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def add_config_arguments(parser: argparse.ArgumentParser, nargs: Optional[str] = None) -> None:
    """``CONFIG`` (or several), ``--opts``, ``--import`` and ``--allow-pickle``."""
    parser.add_argument(
        "config",
        nargs=nargs,
        metavar="CONFIG",
        help="a YAML file, or a config that 'd2ext zoo' lists; several with + between them",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of config keys"
    )
    add_import_argument(parser)
    add_pickle_argument(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """A trained model: ``--weights``, ``--config-file``, ``--import`` and ``--allow-pickle``."""
    parser.add_argument("--weights", default="", metavar="W", help="checkpoint or model-zoo file")
    parser.add_argument(
        "--config-file",
        action="append",
        metavar="F",
        help="a YAML file or a name that 'd2ext zoo' lists; by default what the checkpoint holds; "
        "may be repeated, later ones over earlier ones",
    )
    add_import_argument(parser)
    add_pickle_argument(parser)


def add_data_arguments(parser: argparse.ArgumentParser, first: Sequence[str] = _SPLITS) -> None:
    """``--data`` or ``--dataset``, and ``--split``: labelled images, for :func:`data_set`.

    Args:
        first: the order in which splits are looked for.
    """
    add = parser.add_argument
    add("--data", metavar="PATH", help="labelled images: a folder, a data.yaml or a COCO JSON")
    add("--dataset", metavar="NAME", help="a registered data set instead")
    order = ", else ".join(first)
    add("--split", choices=_SPLITS, help=f"of --data (default: {order})")


def data_set(args: argparse.Namespace, cfg: Any, first: Sequence[str] = _SPLITS) -> str:
    """The name of the data set that :func:`add_data_arguments` names, registered."""
    from ..data.own import register_own_data

    if args.data and args.dataset:
        raise RunError("--data and --dataset name two data sets; leave one of them out.")
    path = args.data or ("" if args.dataset else cfg.DATASETS.DATA)
    if not path:
        if not args.dataset and not cfg.DATASETS.TEST:
            raise RunError("The config names no data set; give --data PATH or --dataset NAME.")
        name = args.dataset or cfg.DATASETS.TEST[0]
        require_data([name])
        return name
    data = register_own_data(path, cfg.DATASETS.SPLIT)
    split = args.split or next((split for split in first if split in data.names), first[0])
    if split not in data.names:
        raise RunError(f"{path} has no split '{split}'; its splits are {', '.join(data.names)}.")
    return data.names[split]


def is_validation(name: str) -> bool:
    """Whether a data set is a validation split: of own data by the split, else by its name."""
    from detectron2.data import MetadataCatalog

    about = MetadataCatalog.get(name).as_dict() if name in MetadataCatalog else {}
    if "own_data" in about:
        return Path(about["json_file"]).stem == "val"
    words = re.split("[^a-z]+", name.lower())
    return any(word.startswith("val") or word == "minival" for word in words)


def training_set(args: argparse.Namespace, cfg: Any) -> str:
    """The name of the training images that belong to :func:`data_set`, registered."""
    from ..data.own import register_own_data

    path = args.data or ("" if args.dataset else cfg.DATASETS.DATA)
    if path:
        return register_own_data(path, cfg.DATASETS.SPLIT).names["train"]
    if not cfg.DATASETS.TRAIN:
        raise RunError("The config names no training images; give --data PATH.")
    require_data(cfg.DATASETS.TRAIN[:1])
    return cfg.DATASETS.TRAIN[0]


def evaluate(cfg: Any, model: Any, name: str, output: Union[str, Path]) -> Dict[str, Any]:
    """The figures of a model on a data set; its detections go into a folder."""
    from ..engine import Trainer

    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (name,), str(output)
    return Trainer.test(cfg, model)


def add_dataset_argument(parser: argparse.ArgumentParser, flag: str = "dataset") -> None:
    """``DATA`` or ``--dataset DATA``, a data set by its registered name or file."""
    options: Dict[str, Any] = {"required": True} if flag.startswith("-") else {}
    parser.add_argument(
        flag,
        metavar="DATA",
        help="the data set's registered name, or its COCO or LVIS JSON file",
        **options,
    )
    add_import_argument(parser)


def add_results_arguments(parser: argparse.ArgumentParser) -> None:
    """``RESULTS`` and the data set that they are of."""
    parser.add_argument("results", metavar="RESULTS", help="detections in COCO's results format")
    add_dataset_argument(parser, "--dataset")


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


def import_named(args: argparse.Namespace) -> None:
    """Import the modules that ``--import`` names.

    Raises:
        RunError: if one cannot be imported.
    """
    if getattr(args, "modules", []):
        from ..engine import import_modules

        import_modules(args.modules)


def load_config(name: str, opts: List[str], check: bool = True) -> Any:
    """The config of a command line, on a device that this machine has.

    Args:
        name: a YAML file, or a name in the zoo; several with "+" between them.
        opts: overrides, KEY VALUE in turn.
        check: refuse impossible values; if not, the device is left as it is, too.
    """
    from ..config import get_cfg, validate
    from ..data.own import use_own_data
    from ..engine import choose_device
    from ..model_zoo import config_files

    cfg = get_cfg()
    with mistakes_in_sentences(name):
        cfg.merge_from_file(config_files(name))
        cfg.merge_from_list(opts)
        use_own_data(cfg, opts)
        if check:
            validate(cfg)
    if check:
        choose_device(cfg)
    return cfg


def require_data(names: Sequence[str]) -> None:
    """Refuse data sets that are not registered, or whose files are missing, in one sentence."""
    from ..data import require_dataset

    with mistakes_in_sentences():
        require_dataset(*names)


def write_json(path: Path, values: Any) -> Path:
    """Write a JSON file; NaN and infinity, which JSON lacks, become null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(values), indent=1) + "\n")
    return path


def progress(args: argparse.Namespace) -> Callable[[str], None]:
    """A printer of a command's progress, to stderr; it prints nothing with --quiet."""
    return (lambda line: None) if args.quiet else (lambda line: print(line, file=sys.stderr))


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
