"""``d2ext doctor``: find mistakes before a training starts."""

import argparse
import logging
from typing import Any, List

from .._arguments import at_least
from .._files import RunError
from .common import (
    Done,
    add_config_arguments,
    add_output_argument,
    default_output,
    import_named,
    load_config,
    new_parser,
    progress,
    quiet,
    write_json,
)

__all__ = ["add_doctor", "run_doctor"]


def add_doctor(commands: Any) -> None:
    """``d2ext doctor CONFIG``."""
    parser = new_parser(
        commands,
        "doctor",
        "check a config, its data and its weights before training",
        "d2ext doctor Demo/fcos_shapes --opts MODEL.FCOS.NUM_CLASSES 20",
    )
    add_config_arguments(parser)
    add_output_argument(parser, "doctor")
    parser.add_argument(
        "--steps", type=at_least(0), default=3, help="training steps to time; 0: none"
    )
    # A module that cannot be imported is a finding.
    parser.set_defaults(func=run_doctor, imports_itself=True)


def run_doctor(args: argparse.Namespace) -> Done:
    from .._environment import versions

    output = default_output(args.output, "doctor", args.config)
    with quiet(logging.ERROR):  # what they warn of is among the findings
        findings = _examine(args)
    print()
    for finding in findings:
        print(finding)
    counts = {
        level: sum(f.level == level for f in findings) for level in ("error", "warning", "ok")
    }
    found = {"findings": [f._asdict() for f in findings], "counts": counts, "versions": versions()}
    path = write_json(output / "doctor.json", found)
    print(f"\n{counts['error']} errors, {counts['warning']} warnings.")
    return Done(found, [path], code=1 if counts["error"] else 0)


def _examine(args: argparse.Namespace) -> List[Any]:
    from .._environment import versions
    from ..analysis import doctor
    from ..analysis.key_reads import keys_of_file
    from ..analysis.trial_steps import check_steps
    from ..config.node import override_pairs
    from ..engine.setup import choose_device
    from ..model_zoo import config_files

    Finding = doctor.Finding
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    found = [Finding("ok", "versions", f"{listed}.")]
    try:
        import_named(args)
        cfg = load_config(args.config, args.opts, check=False)
        explicit = [key for file in config_files(args.config) for key in keys_of_file(file)]
        explicit += [key for key, _ in override_pairs(args.opts)]
    except RunError as error:
        fix = "Correct the config file or the command line."
        why = "Nothing can be built from it."
        return [*found, Finding("error", "config", str(error), why, fix)]
    impossible = doctor.check_values(cfg)
    if impossible:
        return found + impossible
    choose_device(cfg)
    found += doctor.check_schedule(cfg)
    names = list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    report = progress(args)
    report(f"Reading {', '.join(names)} ...")
    data = doctor.check_data(names)
    found += data
    report("Building the model ...")
    try:
        built = doctor.build_recorded(cfg)
    except Exception as error:  # any part of a model may refuse the config in its own way
        reason = f"The model cannot be built: {error}".split("\n")[0]
        return [*found, Finding("error", "model", reason, "", "Correct the key it names.")]
    counting = [k for k in built["seen"] if k.endswith(".NUM_CLASSES") and "SEM_SEG" not in k]
    found += built["findings"] + doctor.check_keys(cfg, built["seen"], explicit)
    described = [name for name in names if _has_classes(name)]
    classes = doctor.check_classes(
        built["model"], described, " and ".join(counting) or "NUM_CLASSES"
    )
    found += classes
    found += doctor.check_weights(cfg, built["model"], args.allow_pickle)
    if args.steps > 0:
        if any(f.level == "error" for f in (*data, *classes)):
            return [*found, Finding("ok", "steps", "Not tried: correct the errors above first.")]
        try:
            found += check_steps(cfg, built["model"], args.steps, report)
        except Exception as error:  # a training step can fail anywhere in the user's code
            reason = f"A training step fails: {type(error).__name__}: {error}".split("\n")[0]
            found.append(Finding("error", "steps", reason))
    return found


def _has_classes(name: str) -> bool:
    """Whether a data set's classes can be known, even if its files are missing."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from ..data import require_dataset

    if name in DatasetCatalog.list() and MetadataCatalog.get(name).get("thing_classes"):
        return True
    try:
        require_dataset(name)
    except (KeyError, FileNotFoundError):
        return False
    return True
