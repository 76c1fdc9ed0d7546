"""Tiles: they cover the image, objects move with them, and what two tiles find is one object."""

import json

import numpy as np
import own_data_kit as kit
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torch import nn

from d2ext import get_cfg, model_zoo
from d2ext.cli import main
from d2ext.config import validate
from d2ext.data.own import register_own_data, use_own_data
from d2ext.data.tiles import TiledModel, tile_places, tiles_of
from d2ext.engine import Trainer
from d2ext.engine.build_data import build_train_loader


@pytest.mark.parametrize("size", [(640, 480), (1000, 700), (2000, 300), (100, 100), (641, 640)])
def test_tiles_cover_the_image(size):
    width, height = size
    seen = np.zeros((height, width), dtype=int)
    for x, y, w, h in tile_places(width, height, 640, 0.25):
        assert (w, h) == (min(640, width), min(640, height))
        assert 0 <= x <= width - w and 0 <= y <= height - h
        seen[y : y + h, x : x + w] += 1
    assert seen.min() >= 1
    starts = sorted({x for x, *_ in tile_places(width, height, 640, 0.25)})
    assert all(b - a <= 480 for a, b in zip(starts, starts[1:]))


def test_objects_move_with_their_tile():
    thing = {"bbox": [90, 10, 30, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    thing["segmentation"] = [[90, 10, 120, 10, 120, 30]]
    far = {**thing, "bbox": [5, 5, 20, 20]}
    item = {"file_name": "a.png", "width": 200, "height": 100, "image_id": 7}
    tiles = tiles_of([{**item, "annotations": [thing, far]}], 100, 0.0)
    assert [t["tile"] for t in tiles] == [[0, 0, 100, 100], [100, 0, 100, 100]]
    # A third of the first object is in the left tile, two thirds in the right one.
    assert [[a["bbox"] for a in t["annotations"]] for t in tiles] == [
        [[90.0, 10.0, 100, 30.0], [5.0, 5.0, 25.0, 25.0]],
        [[0, 10.0, 20.0, 30.0]],
    ]
    assert tiles[1]["annotations"][0]["segmentation"] == [[-10.0, 10.0, 20.0, 10.0, 20.0, 30.0]]
    assert len({t["image_id"] for t in tiles}) == 2
    assert len(tiles_of([{**item, "annotations": [far]}], 100, 0.0)) == 1
    assert len(tiles_of([{**item, "annotations": [far]}], 100, 0.0, keep_empty=True)) == 2
    assert tiles_of([{**item, "annotations": [far]}], 300, 0.0)[0]["annotations"] == [far]


class FindsBright(nn.Module):
    """A detector of the extent of what is white, in pixels of the image before the resize."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, inputs):
        found = []
        for sample in inputs:
            image = sample["image"]
            self.sizes.append(tuple(image.shape[1:]))
            rows, columns = np.nonzero(image.numpy().min(0) > 250)
            scale = sample["width"] / image.shape[2]
            box = (
                [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else []
            )
            result = Instances((sample["height"], sample["width"]))
            boxes = torch.tensor([box] if box else [], dtype=torch.float32).reshape(-1, 4) * scale
            result.pred_boxes = Boxes(boxes)
            result.scores = torch.full((len(boxes),), 0.9)
            result.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
            found.append({"instances": result})
        return found


def test_what_several_tiles_find_is_one_object():
    image = torch.zeros(3, 200, 300, dtype=torch.uint8)
    image[:, 60:90, 110:140] = 255  # in the overlap of tiles
    detector = FindsBright()
    resize = T.ResizeShortestEdge(200, 400)
    model = TiledModel(detector, side=160, overlap=0.5, resize=resize)
    instances = model([{"image": image}])[0]["instances"]
    assert instances.image_size == (200, 300)
    whole = instances.pred_boxes.tensor
    assert len(whole) == 1 and (whole - torch.tensor([[110.0, 60, 140, 90]])).abs().max() < 2
    assert len(detector.sizes) == len(tile_places(300, 200, 160, 0.5)) + 1
    assert detector.sizes[0] == (200, 200)
    empty = model([{"image": torch.zeros(3, 200, 300, dtype=torch.uint8)}])[0]["instances"]
    assert len(empty) == 0


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("D2EXT_DATA", str(tmp_path / "cache"))
    folder = tmp_path / f"aerial_{tmp_path.name}"
    kit.write_coco(folder)
    register_own_data(str(folder))
    return folder


def config(folder, *words):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("Demo/fcos_shapes"))
    cfg.merge_from_list(
        ["DATASETS.DATA", str(folder), "DATASETS.TILES", [64, 0.25], "SOLVER.IMS_PER_BATCH", 2,
         "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "INPUT.RANDOM_FLIP", "none",
         *words]
    )  # fmt: skip
    use_own_data(cfg)
    return cfg


@pytest.mark.parametrize("augmentation", ["", "light"])
def test_the_loader_gives_tiles_of_the_images(data, augmentation):
    cfg = config(data, "INPUT.AUGMENTATION", augmentation)
    loader = build_train_loader(cfg)
    element = loader.dataset[1]
    x, y, w, h = element["tile"]
    assert len(loader.dataset) > 6 and (w, h) == (64, 64)
    batch = next(iter(loader))
    for sample in batch:
        assert sample["image"].shape[1:] == (64, 64)
    if not augmentation:
        shown = batch[0]
        tile = next(d["tile"] for d in loader.dataset if d["image_id"] == shown["image_id"])
        pixels = np.asarray(Image.open(shown["file_name"]).convert("RGB"))[:, :, ::-1]
        x, y, w, h = tile
        assert (shown["image"].permute(1, 2, 0).numpy() == pixels[y : y + h, x : x + w]).all()


def test_evaluation_of_tiles_finds_what_is_there(data):
    """A detector of white boxes, which are drawn over every object, has AP 100 in tiles."""
    for path in sorted((data / "images").rglob("*.png")):
        pixels = np.array(Image.open(path))
        (_, *box) = kit.OBJECTS[path.stem][0]
        x1, y1, x2, y2 = map(int, box)
        pixels[:] = 0
        pixels[y1:y2, x1:x2] = 255
        Image.fromarray(pixels).save(path)
    for path in (data / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        first = {}
        for row in content["annotations"]:
            first.setdefault(row["image_id"], {**row, "category_id": 1})
        path.write_text(json.dumps({**content, "annotations": list(first.values())}))
    cfg = config(data, "OUTPUT_DIR", str(data.parent / "out"), "DATASETS.TILES", [96, 0.5])
    results = Trainer.test(cfg, FindsBright())
    assert results["bbox"]["AP50"] == pytest.approx(100.0)


def test_what_tiles_cannot_do(data):
    for words, said in (
        (["DATASETS.TILES", [64]], "a side of 32 pixels or more"),
        (["DATASETS.TILES", [64, 1.0]], "an overlap below 1"),
        (["MODEL.MASK_ON", True], "tiles are for boxes alone"),
        (["DATALOADER.MAPPER", "detectron2"], "Detectron2's mapper cuts no tiles"),
    ):
        with pytest.raises(ValueError, match=said):
            validate(config(data, *words))


def test_the_command_counts_tiles(data, capsys):
    assert main(["data", "tile", str(data), "--side", "64", "--overlap", "0.25"]) == 0
    assert "6 training images of 9 objects give 36 tiles" in capsys.readouterr().out
