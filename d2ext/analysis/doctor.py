"""What is likely to go wrong with a training, before it starts."""

import logging
import os
from typing import Any, Dict, List, NamedTuple

from torch import nn

from d2ext.data.checks import BadDataError
from d2ext.engine.class_checks import num_classes_of
from d2ext.modeling.backbones.pretrained import is_weights_name, starting_weights

from .annotation_check import (
    KINDS,
    MILD,
    RULES,
    Problem,
    check_coco,
    check_dicts,
    check_image_files,
    summarize_problems,
)
from .key_reads import changed_keys, flatten, recording

__all__ = [
    "Finding",
    "build_recorded",
    "check_classes",
    "check_data",
    "check_keys",
    "check_schedule",
    "check_values",
    "check_weights",
    "data_problems",
    "num_classes_of",
]

logger = logging.getLogger(__name__)

# Learning rates for 16 images with SGD that Detectron2's own configs use.
_SGD_RATES = {"GeneralizedRCNN": 0.02}
_SGD_RATE = 0.01
# Keys of MODEL that the trainer and the data loader read, and not the model.
_READ_ELSEWHERE = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.LOAD_PROPOSALS", "MODEL.MASK_ON",
                   "MODEL.KEYPOINT_ON")  # fmt: skip


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        level: "error" (the run fails or is worthless), "warning" or "ok".
        topic: what was looked at.
        what: what was found.
        why: why it matters, or "".
        fix: what to change, or "".
    """

    level: str
    topic: str
    what: str
    why: str = ""
    fix: str = ""

    def __str__(self) -> str:
        rest = "".join(f" {text}" for text in (self.why, self.fix) if text)
        return f"{self.level.upper():<8}{self.topic:<9}{self.what}{rest}"


def check_classes(model: nn.Module, names: List[str], key: str = "NUM_CLASSES") -> List[Finding]:
    """Compare the model's number of classes with the metadata of the data sets.

    Args:
        model: the detector.
        names: registered data sets.
        key: the config key that sets the number, for the advice.
    """
    from d2ext.data.class_names import classes_of, require_same_classes

    count = num_classes_of(model)
    if count is None:
        return [Finding("ok", "classes", "The model does not say how many classes it has.")]
    found = []
    for name in names:
        classes = classes_of(name)
        if classes is None:
            found.append(
                Finding("warning", "classes", f"'{name}' names no classes.",
                        "They cannot be compared with the model's.",
                        "Set thing_classes in its metadata.")
            )  # fmt: skip
        elif len(classes) != count:
            why = (
                "Labels beyond the model's last class count as background or end the training."
                if count < len(classes)
                else "The outputs of the others only learn to stay silent."
            )
            what = f"The model has {count} classes and '{name}' has {len(classes)}."
            level = "error" if count < len(classes) else "warning"
            found.append(Finding(level, "classes", what, why, f"Set {key} to {len(classes)}."))
        else:
            found.append(Finding("ok", "classes", f"{count} in the model and in '{name}'."))
    for name in names[1:]:
        try:
            require_same_classes(
                f"'{names[0]}'", classes_of(names[0]), f"'{name}'", classes_of(name)
            )
        except BadDataError as error:
            found.append(Finding("error", "classes", str(error)))
    return found


def check_keys(cfg: Any, seen: List[str], explicit: List[str]) -> List[Finding]:
    """Model keys that were changed and that nothing in this model reads.

    Args:
        cfg: the config.
        seen: dotted names of the keys that were read while the model was built.
        explicit: the keys that the user's own file or command line sets; those of the files it
            builds upon are counted only.
    """
    from d2ext.config import get_cfg
    from d2ext.config.node import nearest_keys

    unread = [
        key
        for key in changed_keys(cfg)
        if key.startswith("MODEL.") and key not in seen and key not in _READ_ELSEWHERE
    ]
    default = flatten(get_cfg())
    # A key that still has its default is the one that was probably meant.
    candidates = sorted(k for k in seen if k.startswith("MODEL."))
    untouched = [k for k in candidates if flatten(cfg).get(k) == default.get(k)]
    found = []
    for key in (k for k in unread if k in explicit):
        leaf = key.rsplit(".", 1)[-1]
        same = [k for k in (*untouched, *candidates) if k.rsplit(".", 1)[-1] == leaf]
        near = same[:1] or nearest_keys(key, candidates, 1)
        fix = f"{near[0]} was probably meant." if near else "Remove it."
        found.append(
            Finding("warning", "keys", f"{key} is changed and nothing in this model reads it.",
                    "It has no effect.", fix)
        )  # fmt: skip
    rest = [k for k in unread if k not in explicit]
    if rest:
        text = f"{len(rest)} keys of base configs are for other detectors, e.g. {rest[0]}."
        found.append(Finding("ok", "keys", text))
    return found or [Finding("ok", "keys", "Every changed key of MODEL is read by this model.")]


def check_values(cfg: Any) -> List[Finding]:
    """Every value that no training can have."""
    from d2ext.config import violations

    why = "The training refuses it."
    return [Finding("error", "config", sentence, why) for sentence in violations(cfg)]


def check_weights(cfg: Any, model: nn.Module, allow_pickle: bool = False) -> List[Finding]:
    """Load ``MODEL.WEIGHTS`` into the model and count what fits."""
    path = starting_weights(cfg)
    if not path:
        if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
            why = "Random layers that are not trained cost much accuracy."
            what = f"No weights are loaded and FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}."
            fix = "Set MODEL.WEIGHTS, or MODEL.BACKBONE.FREEZE_AT to 0."
            return [Finding("error", "weights", what, why, fix)]
        return [Finding("ok", "weights", "None: the model is trained from scratch.")]
    if "://" in path and not path.startswith("d2ext://"):
        return [Finding("ok", "weights", f"{path} is fetched when the training starts.")]
    if not is_weights_name(path) and not os.path.isfile(path):
        fix = 'Correct MODEL.WEIGHTS, or set it to "".'
        return [Finding("error", "weights", f"{path} does not exist.", "", fix)]
    from d2ext.engine import Checkpointer

    try:
        checkpointer = Checkpointer(model, allow_pickle=allow_pickle)
        checkpointer.load(path)
        loaded: Any = checkpointer.last_incompatible  # never None after a load
    except Exception as error:  # whatever a file that is not a checkpoint makes of a reader
        reason = str(error).split("\n")[0]
        fix = "Give another file."
        return [Finding("error", "weights", f"{path} cannot be read: {reason}.", "", fix)]
    # A counter that few files have and nothing depends on.
    names = [n for n in model.state_dict() if not n.endswith("num_batches_tracked")]
    missing = set(loaded.missing_keys) | {entry[0] for entry in loaded.incorrect_shapes}
    fits = sum(name not in missing for name in names)
    text = f"{fits} of {len(names)} tensors come from {path}"
    if loaded.incorrect_shapes:
        text += f"; {len(loaded.incorrect_shapes)} have another shape there, e.g. "
        text += f"{loaded.incorrect_shapes[0][0]}"
    level = "ok" if fits >= len(names) / 2 else "warning" if fits else "error"
    why = "" if level == "ok" else "What is not loaded starts at random."
    fix = "" if level == "ok" else "Check that the file is of this architecture."
    return [Finding(level, "weights", f"{text}.", why, fix)]


def data_problems(name: str) -> List[Problem]:
    """All that is wrong with a registered data set, from its own files where they are known."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from d2ext.data.checks import load_checked
    from d2ext.data.checks.json_text import read_json
    from d2ext.data.checks.voc_files import check_voc, split_file

    metadata = MetadataCatalog.get(name)
    is_voc = bool(metadata.get("dirname") and metadata.get("split"))
    file = metadata.get("json_file") or ""
    source = split_file(metadata.dirname, metadata.split) if is_voc else file
    classes = metadata.get("thing_classes")
    if not os.path.isfile(source):  # the built-in sets are drawn when they are read
        dicts = load_checked(name, training=False)
    if is_voc:
        found = check_voc(metadata.dirname, metadata.split, classes)
        # Detectron2 cannot load what is refused.
        refused = any(RULES[problem.kind].level == "refuse" for problem in found)
        return found if refused else found + check_image_files(DatasetCatalog.get(name))
    if not os.path.isfile(file):
        return check_dicts(dicts, len(classes) if classes else None)
    form = "lvis" if metadata.get("evaluator_type") == "lvis" else None
    return check_coco(read_json(file), metadata.get("image_root"), path=file, form=form)


def check_data(names: List[str], examples: int = 3) -> List[Finding]:
    """Whether data sets are there, and what is wrong with their annotations."""
    from d2ext.data import require_dataset

    found = []
    for name in names:
        try:
            require_dataset(name)
            problems = data_problems(name)
        except Exception as error:  # a loader may fail in any way; the report goes on
            reason = str(error.args[0]) if error.args else type(error).__name__
            found.append(Finding("error", "data", reason.split("\n")[0]))
            continue
        summary = summarize_problems(problems, examples)
        for kind, row in summary.items():
            level = "warning" if kind in MILD else "error"
            files = "; ".join(row["examples"])
            what = f"'{name}': {row['count']} x {kind} in {row['files']} files ({files})."
            why = KINDS[kind][0].upper() + KINDS[kind][1:] + "."
            fix = RULES[kind].advice
            fix = fix[0].upper() + fix[1:] + "."
            found.append(Finding(level, "data", what, why, fix))
        if not summary:
            found.append(Finding("ok", "data", f"'{name}' is there and has no bad annotation."))
    return found


def check_schedule(cfg: Any) -> List[Finding]:
    """Learning rate against batch size, and steps that never come."""
    solver, found = cfg.SOLVER, []
    images = solver.IMS_PER_BATCH
    if solver.REFERENCE_BATCH > 0:
        wanted = solver.BASE_LR * images / solver.REFERENCE_BATCH
        if images != solver.REFERENCE_BATCH and not solver.AUTO_SCALE:
            found.append(
                Finding("warning", "lr", f"BASE_LR {solver.BASE_LR:g} was chosen for "
                        f"{solver.REFERENCE_BATCH} images a step and there are {images}.",
                        "Too high a rate diverges, too low a rate trains too little.",
                        f"Set SOLVER.AUTO_SCALE True, or SOLVER.BASE_LR to {wanted:g}.")
            )  # fmt: skip
    elif solver.OPTIMIZER == "SGD":
        usual = _SGD_RATES.get(cfg.MODEL.META_ARCHITECTURE, _SGD_RATE) * images / 16
        if not usual / 4 <= solver.BASE_LR <= usual * 4:
            found.append(
                Finding("warning", "lr", f"BASE_LR is {solver.BASE_LR:g} for {images} images a "
                        "step.", "Too high a rate diverges, too low a rate trains too little.",
                        f"Detectron2's configs would have about {usual:g}; see d2ext lr-find.")
            )  # fmt: skip
    late = [step for step in solver.STEPS if step >= solver.MAX_ITER]
    cosine = "Cosine" in solver.LR_SCHEDULER_NAME
    if late and not cosine and not solver.EPOCHS:
        found.append(
            Finding("warning", "schedule", f"SOLVER.STEPS {late} come after MAX_ITER "
                    f"{solver.MAX_ITER}.", "The rate is not lowered there.",
                    "Lower SOLVER.STEPS or raise SOLVER.MAX_ITER.")
        )  # fmt: skip
    if solver.WARMUP_ITERS >= solver.MAX_ITER and not solver.EPOCHS:
        found.append(
            Finding("warning", "schedule", f"The warm-up of {solver.WARMUP_ITERS} steps lasts as "
                    f"long as the training ({solver.MAX_ITER}).", "The rate never gets to BASE_LR.",
                    "Lower SOLVER.WARMUP_ITERS.")
        )  # fmt: skip
    text = f"BASE_LR {solver.BASE_LR:g} with {solver.OPTIMIZER} for {images} images a step."
    return found or [Finding("ok", "lr", text)]


def build_recorded(cfg: Any) -> Dict[str, Any]:
    """Build the model of a config: ``model``, the keys it reads, ``seen``, and ``findings``."""
    from detectron2.modeling import build_model

    from d2ext import combinations
    from d2ext.engine import hooks
    from d2ext.modeling.methods_in_use import check_methods_in_use

    node = recording(cfg)
    with combinations.listening() as warnings:
        model = build_model(node)
    check_methods_in_use(cfg, model)
    told = [*warnings, *(note.reason for note in combinations.notes(cfg))]
    hooks.build_loss_weights(node)
    findings = [Finding("warning", "methods", sentence) for sentence in told]
    return {"model": model, "seen": sorted(node.__dict__["seen"]), "findings": findings}
