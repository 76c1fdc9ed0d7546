"""The evaluator that fits a data set."""

import os
from typing import List

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as UpstreamCOCOEvaluator
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.evaluation import LVISEvaluator as UpstreamLVISEvaluator

from .coco_evaluation import COCOEvaluator
from .lvis_evaluation import LVISEvaluator
from .pascal_voc_evaluation import PascalVOCDetectionEvaluator

__all__ = ["build_evaluator", "evaluator_types"]


def build_evaluator(cfg, dataset_name: str, output_folder=None) -> DatasetEvaluator:
    """Build the evaluator that the data set's metadata names as ``evaluator_type``.

    A data set registered without one, in detectron2's standard format, is evaluated as COCO. A list
    of types makes one evaluator of several; their results must not share a task.

    Args:
        cfg: the config.
        dataset_name: a registered data set.
        output_folder: where results are written; ``OUTPUT_DIR/inference`` by default.
    """
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    evaluators = []
    for kind in evaluator_types(dataset_name):
        evaluators.extend(_BUILDERS[kind](cfg, dataset_name, output_folder))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def evaluator_types(dataset_name: str) -> List[str]:
    """The data set's ``evaluator_type``, or several, each of which has an evaluator here."""
    kinds = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    for kind in kinds:
        if kind not in _BUILDERS:
            raise ValueError(
                f"The data set '{dataset_name}' asks for the evaluator '{kind}', which is not one "
                f"of {sorted(_BUILDERS)}; set 'evaluator_type' in its metadata to one of them."
            )
    return kinds


def _has_other_outputs(cfg) -> bool:
    """Whether the model gives proposals or keypoints, which detectron2's own classes evaluate."""
    return cfg.MODEL.KEYPOINT_ON or cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork"


def _coco(cfg, name, folder):
    if _has_other_outputs(cfg):
        sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
        return [UpstreamCOCOEvaluator(name, output_dir=folder, kpt_oks_sigmas=sigmas)]
    return [COCOEvaluator(name, output_dir=folder)]


def _lvis(cfg, name, folder):
    if _has_other_outputs(cfg):
        return [UpstreamLVISEvaluator(name, output_dir=folder)]
    return [LVISEvaluator(name, output_dir=folder)]


def _pascal_voc(cfg, name, folder):
    return [PascalVOCDetectionEvaluator(name, output_dir=folder)]


_BUILDERS = {"coco": _coco, "lvis": _lvis, "pascal_voc": _pascal_voc}
