"""Registered data sets that are checked while they are loaded."""

import logging
from typing import Any, Callable, Dict, List

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from .dicts import DictFindings, check_annotations, check_images, check_known, without
from .images import find_missing
from .json_file import check_json, leave_out
from .json_sets import JsonSet
from .json_text import read_json
from .kinds import BAD_ANNOTATIONS, KINDS, BadDataError, Problem, settle
from .voc_files import check_voc, difficult_objects

__all__ = ["is_voc", "load_checked"]

logger = logging.getLogger(__name__)

_LEFT_OUT = "left out (DATALOADER.BAD_ANNOTATIONS: skip)"
_KEPT = "kept, as evaluation counts them"


def load_checked(
    name: str,
    *,
    training: bool = True,
    bad_annotations: str = "skip",
    filter_empty: bool = False,
    masks: bool = False,
    drop_difficult: bool = False,
) -> Any:
    """What ``DatasetCatalog.get(name)`` gives, checked.

    Of a set that Detectron2's functions for COCO's and LVIS' JSON files registered, the file is
    checked before dicts are made of it; other functions are called, and their dicts are checked.

    Args:
        name: a registered data set.
        training: whether its annotations are trained on. They are left as they are otherwise:
            evaluation takes the annotation file as it is, and so do the figures of others.
        bad_annotations: what to do with objects that cannot be learnt: "skip" leaves them out and
            says so once, "refuse" is an error.
        filter_empty: whether images without an object will be left out.
        masks: whether masks are trained on, so that every object needs one.
        drop_difficult: leave out what Pascal VOC's files call difficult.
    """
    if bad_annotations not in BAD_ANNOTATIONS:
        raise ValueError(
            f"DATALOADER.BAD_ANNOTATIONS is {bad_annotations!r}; choose "
            f"{' or '.join(BAD_ANNOTATIONS)}."
        )
    if name not in DatasetCatalog:
        return DatasetCatalog.get(name)  # says what is registered
    loader = _Loader(training, bad_annotations, filter_empty, masks, drop_difficult)
    return loader.load(name, DatasetCatalog[name])


def is_voc(name: str) -> bool:
    """Whether a registered data set is a folder of Pascal VOC's XML files."""
    metadata = MetadataCatalog.get(name)
    return bool(metadata.get("dirname") and metadata.get("split"))


class _Loader:
    """Loads a data set, with every check that fits its form."""

    def __init__(
        self,
        training: bool,
        bad_annotations: str,
        filter_empty: bool,
        masks: bool,
        drop_difficult: bool = False,
    ):
        self.training, self.filter_empty, self.masks = training, filter_empty, masks
        self.drop_difficult = drop_difficult
        self.policy = bad_annotations if training else "skip"
        self.done = _LEFT_OUT if training else _KEPT

    def load(self, name: str, function: Callable[[], Any]) -> Any:
        self._check_voc(name)  # first: Detectron2's reader of XML expands entities
        try:
            source = JsonSet.of(function)
            dicts = function() if source is None else self._load_json(source)
        except (BadDataError, OSError):  # they name their file
            raise
        except Exception as error:
            raise BadDataError(
                f"Loading the data set '{name}' failed with {type(error).__name__}: {error}"
            ) from error
        if not isinstance(dicts, list):  # a data set of the user's own kind
            return dicts
        if not dicts:
            raise BadDataError(f"The data set '{name}' has no image; add some.")
        if self.drop_difficult and is_voc(name):
            dicts = without(dicts, difficult_objects(dicts, MetadataCatalog.get(name).dirname))
        if source is None:
            self._settle(check_images(dicts), name)
            if MetadataCatalog.get(name).get("json_file"):
                logger.info(f"The data set '{name}' is checked as its function returns it.")
        self._settle(find_missing(str(item["file_name"]) for item in dicts), name)
        classes = MetadataCatalog.get(name).get("thing_classes")
        check = check_annotations if source is None else check_known
        findings = check(
            dicts, len(classes) if classes else None, masks=self.masks and self.training
        )
        if self.training:
            return self._clean_dicts(dicts, findings, name)
        # Evaluation reads boxes from the file; of the dicts, Detectron2 counts the labels.
        self._settle([p for p in findings.problems if p.kind == "unknown class"], name)
        return dicts

    def _clean_dicts(self, dicts: List[Dict], findings: DictFindings, name: str) -> List[Dict]:
        self._settle(findings.problems, name)
        count = sum(len(item.get("annotations", ())) for item in dicts)
        if len(findings.drop) > count // 2:
            skipped = [p for p in findings.problems if KINDS[p.kind].level == "skip"]
            settle(skipped, f"{name} (most annotations are bad)", bad_annotations="refuse")
        dicts = without(dicts, findings.drop)
        if self.filter_empty and "annotations" in dicts[0]:
            self._require_objects(dicts, name)
        return dicts

    def _require_objects(self, dicts: List[Dict], name: str) -> None:
        things = [thing for item in dicts for thing in item["annotations"]]
        if all(thing.get("iscrowd", 0) for thing in things):
            what = f"{len(things)} crowd regions" if things else "no annotation"
            detail = f"{len(dicts)} images with {what}, and images without objects are left out"
            detail += " (DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
            file = MetadataCatalog.get(name).get("json_file") or str(dicts[0]["file_name"])
            self._settle([Problem("no annotations", file, detail)], name)

    def _check_voc(self, name: str) -> None:
        if not is_voc(name):
            return
        metadata = MetadataCatalog.get(name)
        problems = check_voc(metadata.dirname, metadata.split, metadata.get("thing_classes"))
        if self.training:  # boxes are those of the dicts, which are checked as such
            problems = [p for p in problems if KINDS[p.kind].level == "refuse"]
        self._settle(problems, name)

    def _load_json(self, source: JsonSet) -> List[Dict]:
        """The dicts of an annotation file, without what cannot be learnt."""
        if source.prepare is not None:
            source.prepare()
        path, form = PathManager.get_local_path(source.json_file), source.form
        data = read_json(path)
        findings = check_json(data, path, form)
        problems = findings.problems
        if "minival" in path:
            # COCO 2014's minival files repeat ids of annotations; Detectron2 lets them pass, too.
            problems = [p for p in problems if p.kind != "duplicate id"]
        self._settle(problems, path)
        # Detectron2 refuses LVIS' short polygons where it only needs the images, too.
        if self.training or form == "lvis":
            leave_out(data, findings, path)
        return source.dicts(data)

    def _settle(self, problems: List[Problem], source: str) -> None:
        settle(problems, source, bad_annotations=self.policy, done=self.done)
