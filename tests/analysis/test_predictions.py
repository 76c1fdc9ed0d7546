"""Pictures of predictions: the matching behind the colours, and that a sheet is drawn."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from d2ext.analysis.predictions import draw_sheet, match_detections, predict_examples

GT = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32)


def test_each_object_is_found_once_by_the_best_score():
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 40, 35], [50, 50, 60, 60]])
    right, found = match_detections(
        boxes.astype(np.float32), np.array([0, 0, 2, 0]), GT, np.array([0, 1])
    )
    assert right.tolist() == [True, False, False, False]  # duplicate, wrong class, nothing there
    assert found.tolist() == [True, False]


def test_nothing_to_match():
    none = np.zeros((0, 4), np.float32)
    right, found = match_detections(none, np.zeros(0, int), GT, np.array([0, 1]))
    assert right.shape == (0,) and found.tolist() == [False, False]
    right, found = match_detections(GT, np.array([0, 1]), none, np.zeros(0, int))
    assert right.tolist() == [False, False] and found.shape == (0,)


class Always(torch.nn.Module):
    """Sees the first object of the test and something else."""

    def forward(self, inputs):
        outputs = []
        for _ in inputs:
            found = Instances((50, 60))
            found.pred_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [1, 1, 5, 5], [9, 9, 30, 30]]))
            found.scores = torch.tensor([0.9, 0.5, 0.1])
            found.pred_classes = torch.tensor([0, 1, 1])
            outputs.append({"instances": found})
        return outputs


def test_sheet(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in paths:
        Image.fromarray(np.full((50, 60, 3), 200, np.uint8)).save(path)
    loader = [[{"file_name": p}] for p in paths]
    examples = predict_examples(Always(), loader, 2, score_thresh=0.3)
    assert [len(e["boxes"]) for e in examples] == [2, 2]
    truth = {p: {"boxes": GT, "classes": np.array([0, 1])} for p in paths}
    picture = tmp_path / "sub" / "sheet.png"
    totals = draw_sheet(examples, truth, ["ball", "cup"], picture)
    assert totals == {"objects": 4, "found": 2, "detections": 4, "right": 2}
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    for color in ((0, 158, 115), (0, 114, 178), (213, 94, 0)):  # found, right, missed or wrong
        assert (pixels == color).all(axis=1).any()
