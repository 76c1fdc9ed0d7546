"""Generated annotations and predictions, and the reference figures for them.

Shapes: N images, C categories, M detections.
"""

import contextlib
import copy
import io
import json

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

SIDE = 220


def random_boxes(rng, count):
    """(count, 4) XYXY of 4 to 150 pixels, so that all three area ranges occur."""
    size = np.exp(rng.uniform(np.log(4), np.log(150), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (SIDE - size)
    return np.concatenate([corner, corner + size], axis=1)


def make_dataset(rng, num_images=12, category_ids=(2, 3, 7, 11), crowds=True, lvis=False):
    """Content of a COCO or LVIS file. Some images and the last category have no objects."""
    images, annotations = [], []
    image_ids = rng.permutation(np.arange(100, 100 + num_images)).tolist()
    used = list(category_ids[:-1])
    for image_id in image_ids:
        image = {"id": image_id, "height": SIDE, "width": SIDE, "file_name": f"{image_id}.png"}
        present = set()
        for box in random_boxes(rng, int(rng.integers(0, 9))):
            category_id = int(rng.choice(used))
            present.add(category_id)
            number = len(annotations) + 1
            annotation = make_annotation(rng, number, image_id, category_id, box)
            if not lvis:
                annotation["iscrowd"] = int(crowds and rng.random() < 0.2)
                if annotation["iscrowd"]:
                    annotation["segmentation"] = uncompressed_rle(box)
            annotations.append(annotation)
        if lvis:
            others = [c for c in category_ids if c not in present]
            image["neg_category_ids"] = others[::2]
            image["not_exhaustive_category_ids"] = sorted(present)[::2]
        images.append(image)
    categories = [
        {"id": c, "name": f"class {c}", "frequency": "rcf"[i % 3], "image_count": 1}
        for i, c in enumerate(category_ids)
    ]
    rng.shuffle(categories)
    return {"images": images, "annotations": annotations, "categories": categories}


def make_annotation(rng, number, image_id, category_id, box):
    """One annotation with an octagonal mask."""
    x0, y0, x1, y1 = box.tolist()
    angle = np.arange(8) * np.pi / 4
    xs = (x0 + x1) / 2 + (x1 - x0) / 2 * np.cos(angle)
    ys = (y0 + y1) / 2 + (y1 - y0) / 2 * np.sin(angle)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
        "area": round((x1 - x0) * (y1 - y0) * float(rng.uniform(0.6, 0.8)), 2),
        "segmentation": [np.stack([xs, ys], axis=1).round(2).reshape(-1).tolist()],
    }


def uncompressed_rle(box):
    """A filled box as COCO writes crowds: plain run lengths."""
    mask = box_mask(box).astype(np.uint8).reshape(-1, order="F")
    ends = np.flatnonzero(np.diff(mask)) + 1
    counts = np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()
    return {"size": [SIDE, SIDE], "counts": ([0] if mask[0] else []) + counts}


def box_mask(box):
    """(SIDE, SIDE) bool, true inside the box."""
    ys, xs = np.mgrid[:SIDE, :SIDE] + 0.5
    x0, y0, x1, y1 = box
    return (xs > x0) & (xs < x1) & (ys > y0) & (ys < y1)


def make_predictions(rng, dataset, per_image=15, masks=False, step=0.1):
    """Instances for each image: objects moved a little, and false ones; scores in coarse steps, so
    that many are equal. The last image gets none."""
    index = {c["id"]: i for i, c in enumerate(sorted(dataset["categories"], key=lambda c: c["id"]))}
    outputs = []
    for image in dataset["images"]:
        objects = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
        boxes, classes = list(random_boxes(rng, per_image)), []
        classes = rng.integers(0, len(index), per_image).tolist()
        for obj in objects + objects[::2]:
            x, y, w, h = obj["bbox"]
            scale = np.asarray([w, h, w, h])
            boxes.append(np.asarray([x, y, x + w, y + h]) + rng.normal(0, 0.05, 4) * scale)
            classes.append(index[obj["category_id"]])
        keep = 0 if image is dataset["images"][-1] else len(boxes)
        boxes = np.asarray(boxes).reshape(-1, 4)[:keep]
        scores = rng.integers(1, int(1 / step), keep) * step
        outputs.append(make_instances(boxes, scores, classes[:keep], masks))
    inputs = [{"image_id": image["id"]} for image in dataset["images"]]
    return inputs, [{"instances": instances} for instances in outputs]


def make_instances(boxes, scores, classes, masks=False):
    """Instances as a model returns them, in float32."""
    instances = Instances((SIDE, SIDE))
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.as_tensor(boxes))
    instances.scores = torch.as_tensor(np.asarray(scores, dtype=np.float32))
    instances.pred_classes = torch.as_tensor(np.asarray(classes, dtype=np.int64))
    if masks:
        stack = [box_mask(box) for box in boxes] or [np.zeros((0, SIDE, SIDE), dtype=bool)]
        instances.pred_masks = torch.as_tensor(np.stack(stack)).reshape(-1, SIDE, SIDE)
    return instances


def run(evaluator, inputs, outputs, **kwargs):
    """One round of evaluation, in batches of different sizes."""
    evaluator.reset()
    evaluator.process(inputs[:3], outputs[:3])
    evaluator.process(inputs[3:], outputs[3:])
    return evaluator.evaluate(**kwargs)


def as_results(dataset, inputs, outputs, task):
    """COCO's result records by detectron2's own function."""
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json

    ids = sorted(c["id"] for c in dataset["categories"])
    results = []
    for image, output in zip(inputs, outputs):
        results += instances_to_coco_json(output["instances"], image["image_id"])
    for record in results:
        record["category_id"] = ids[record["category_id"]]
        if task == "segm":
            del record["bbox"]
    return results


def pycocotools_figures(dataset, results, task, max_dets=100, img_ids=None):
    """AP, AP50, AP75, APs, APm, APl, then AR, ARs, ARm, ARl, then AP of each category."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), task)
        evaluation.params.maxDets = [1, 10, max_dets]
        if img_ids is not None:
            evaluation.params.imgIds = list(img_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        if max_dets == 100:
            evaluation.summarize()
            summary = evaluation.stats[[0, 1, 2, 3, 4, 5, 8, 9, 10, 11]].tolist()
        else:
            summary = []
    return summary + _of_classes(evaluation.eval["precision"][:, :, :, 0, -1])


def lvis_figures(dataset, results, task, tmp_path, max_dets=300):
    """AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR, ARs, ARm, ARl, then AP of each category."""
    import json

    import lvis

    file = tmp_path / "lvis_reference.json"
    file.write_text(json.dumps(dataset))
    truth = lvis.LVIS(str(file))
    results = lvis.LVISResults(truth, copy.deepcopy(results), max_dets=max_dets)
    evaluation = lvis.LVISEval(truth, results, task)
    evaluation.params.max_dets = max_dets
    evaluation.evaluate()
    had = "float" in vars(np)
    if not had:
        np.float = float
    try:
        evaluation.accumulate()
    finally:
        if not had:
            del np.float
    evaluation.summarize()
    return list(evaluation.get_results().values()) + _of_classes(
        evaluation.eval["precision"][..., 0]
    )


def _of_classes(precision):
    values = [precision[:, :, c] for c in range(precision.shape[2])]
    return [float(v[v > -1].mean()) if (v > -1).any() else -1.0 for v in values]


def percent(figures):
    """The reference's figures as detectron2 reports them."""
    return [float("nan") if value < 0 else value * 100 for value in figures]


def registering(tmp_path, request, evaluator_type, with_ids):
    """For a fixture: yields what registers a file's content, and removes all sets in the end.

    Args:
        tmp_path, request: pytest's.
        evaluator_type: "coco" or "lvis".
        with_ids: whether the metadata have the mapping of category ids.
    """
    names = []

    def add(dataset, **metadata):
        name = f"d2ext_test_{request.node.nodeid}_{len(names)}"
        file = tmp_path / f"annotations_{len(names)}.json"
        file.write_text(json.dumps(dataset))
        categories = sorted(dataset["categories"], key=lambda c: c["id"])
        if with_ids:
            ids = {c["id"]: i for i, c in enumerate(categories)}
            metadata = {"thing_dataset_id_to_contiguous_id": ids, **metadata}
        MetadataCatalog.get(name).set(
            json_file=str(file),
            evaluator_type=evaluator_type,
            thing_classes=[c["name"] for c in categories],
            **metadata,
        )
        names.append(name)
        return name

    yield add
    for name in names:
        MetadataCatalog.remove(name)
