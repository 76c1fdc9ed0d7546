"""LVIS' average precision, with its federated annotations and rare, common, frequent classes."""

from typing import Dict, Optional

from .coco_evaluation import COCOEvaluator

__all__ = ["LVISEvaluator"]


class LVISEvaluator(COCOEvaluator):
    """Drop-in for detectron2's ``LVISEvaluator``, also on NumPy 2.

    Adds APr, APc, APf, the figure of each class as "AP-*" and average recall as "AR@300". A metric
    that no object decides is NaN, as for COCO, where detectron2's class would give -100.
    """

    results_file = "lvis_instances_results.json"
    _style = "lvis"
    _default_max_dets = 300

    def _id_of_class(self) -> Optional[Dict[int, int]]:
        mapping = getattr(self._metadata, "thing_dataset_id_to_contiguous_id", None)
        if mapping is not None:
            return super()._id_of_class()
        things = self._metadata.get("thing_classes")
        truth = self._load_truth()
        if things is not None:
            num_classes = len(things)
        elif truth is not None:
            num_classes = truth.category_ids[-1]
        else:
            return None
        # detectron2 numbers the classes of LVIS by category id, which starts at 1.
        return {index: index + 1 for index in range(num_classes)}
