"""Matching, confusion matrix and thresholds against plain loops over images and detections."""

import numpy as np
import pytest

from d2ext._files import RunError
from d2ext.evaluation.boxes import pairwise_iou
from d2ext.evaluation.confusion import confusion_matrix
from d2ext.evaluation.matching import image_pairs
from d2ext.evaluation.results import judge
from d2ext.evaluation.thresholds import (
    Thresholds,
    best_thresholds,
    find_thresholds,
    score_curves,
)


def crowded_case(seed, images=6, classes=3, coarse=False):
    """Objects and detections in heaps, so that many detections want the same object."""
    rng = np.random.default_rng(seed)

    def box():
        values = [*rng.uniform(0, 60, 2), *rng.uniform(15, 40, 2)]
        return [float(round(v, -1)) + 10 for v in values] if coarse else [float(v) for v in values]

    data = {
        "images": [{"id": 3 * k, "width": 120, "height": 120} for k in reversed(range(images))],
        "categories": [{"id": 2 * c, "name": f"c{c}"} for c in range(classes)],
        "annotations": [],
    }
    results = []
    for image in data["images"]:
        for _ in range(rng.integers(0, 8)):
            data["annotations"].append(
                {"id": len(data["annotations"]) + 1, "image_id": image["id"], "bbox": box(),
                 "category_id": 2 * int(rng.integers(classes)), "iscrowd": int(rng.random() < 0.1)}
            )  # fmt: skip
        for _ in range(rng.integers(0, 25)):
            score = round(float(rng.random()), 1 if coarse else 9)
            results.append({"image_id": image["id"], "category_id": 2 * int(rng.integers(classes)),
                            "bbox": box(), "score": score})  # fmt: skip
    return data, results


def kinds_by_loops(data, results, threshold=0.5, background=0.1):
    """(image, score, category) -> kind, and the objects that are found, as COCO and TIDE say."""
    kinds, found = [], set()
    for image in sorted(i["id"] for i in data["images"]):
        mine = [a for a in data["annotations"] if a["image_id"] == image]
        objects = [a for a in mine if not a["iscrowd"]]
        crowds = [a for a in mine if a["iscrowd"]]
        items = sorted((r for r in results if r["image_id"] == image), key=lambda r: -r["score"])
        for r in items:
            box = np.array([r["bbox"]])
            iou = {k: pairwise_iou(box, np.array([o["bbox"]]))[0, 0] for k, o in enumerate(objects)}
            same = {k: v for k, v in iou.items() if objects[k]["category_id"] == r["category_id"]}
            own = max(same.values(), default=0)
            other = max((v for k, v in iou.items() if k not in same), default=0)
            free = [
                (v, k) for k, v in same.items() if v >= threshold and objects[k]["id"] not in found
            ]
            if free:
                found.add(objects[max(free)[1]]["id"])
                kind = "right"
            elif any(
                c["category_id"] == r["category_id"]
                and pairwise_iou(box, np.array([c["bbox"]]), crowd=True)[0, 0] >= threshold
                for c in crowds
            ):
                kind = "ignored"
            elif background <= own < threshold:
                kind = "location"
            elif other >= threshold:
                kind = "class"
            elif own >= threshold:
                kind = "duplicate"
            else:
                kind = "background" if max(own, other) < background else "both"
            kinds.append(kind)
    return kinds, found


@pytest.mark.parametrize("seed", range(12))
def test_matching_is_that_of_plain_loops(seed):
    data, results = crowded_case(seed, coarse=seed % 2 == 1)  # with equal scores and IoUs
    verdict = judge(results, data)
    kinds, found = kinds_by_loops(data, results)
    assert verdict.kind.tolist() == kinds
    objects = [a["id"] for a in data["annotations"] if not a["iscrowd"]]
    assert {i for i, hit in zip(objects, verdict.gt_found) if hit} == found


def test_blocks_of_pairs_hold_whole_images_and_all_pairs():
    image = np.array([0, 0, 1, 3, 3, 3, 4])
    gt_image = np.array([3, 0, 4, 3, 0, 2])
    want = [(d, g) for d in range(7) for g in range(6) if image[d] == gt_image[g]]
    for at_once in (1, 3, 100):
        blocks = list(image_pairs(image, gt_image, at_once))
        assert [pair for d, g in blocks for pair in zip(d.tolist(), g.tolist())] == want
        for d, _ in blocks:
            assert not set(image[d]) & set(np.delete(image, d))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("least", [0.0, 0.4])
def test_confusion_matrix_of_plain_loops(seed, least):
    data, results = crowded_case(seed)
    verdict = judge(results, data)
    ids = [c["id"] for c in data["categories"]]
    want = np.zeros((4, 4), dtype=int)
    for image in {i["id"] for i in data["images"]}:
        objects = np.flatnonzero(verdict.gt_image == image).tolist()
        rows = np.flatnonzero((verdict.image == image) & (verdict.score >= least))
        rows = [k for k in rows if verdict.kind[k] != "ignored"]
        left = []
        for k in rows:
            if verdict.kind[k] == "right":
                want[ids.index(verdict.category[k]), ids.index(verdict.category[k])] += 1
                objects.remove(verdict.target[k])
            else:
                left.append(k)
        for k in left:  # by falling score
            iou = {
                g: pairwise_iou(verdict.box[k : k + 1], verdict.gt_box[g : g + 1])[0, 0]
                for g in objects
                if verdict.gt_category[g] != verdict.category[k]
            }
            iou = {g: v for g, v in iou.items() if v >= 0.5}
            true = 3
            if iou:
                best = max(iou, key=lambda g: (iou[g], g))
                objects.remove(best)
                true = ids.index(verdict.gt_category[best])
            want[true, ids.index(verdict.category[k])] += 1
        for g in objects:
            want[ids.index(verdict.gt_category[g]), 3] += 1
    np.testing.assert_array_equal(confusion_matrix(verdict, ids, least), want)


def figures_by_loops(data, results, category, least):
    """Precision, recall and F1 of what is left when low scores are taken away before matching."""
    kept = [r for r in results if r["score"] >= least]
    verdict = judge(kept, data)
    mine = (verdict.category == category) & (verdict.kind != "ignored")
    right = int((verdict.kind[mine] == "right").sum())
    objects = int((verdict.gt_category == category).sum())
    shown = int(mine.sum())
    precision = right / shown if shown else 1.0
    return precision, right / objects, 2 * right / (shown + objects)


@pytest.mark.parametrize("seed", range(4))
def test_curves_and_best_thresholds(seed):
    data, results = crowded_case(seed)
    verdict = judge(results, data)
    ids, names = [0, 2, 4], ["c0", "c1", "c2"]
    curves = score_curves(verdict, ids, np.array([0.0, 0.35, 0.8, 1.0]))
    for row, category in enumerate(ids):
        for column, least in enumerate(curves.scores):
            got = [getattr(curves, key)[row, column] for key in ("precision", "recall", "f1")]
            assert got == pytest.approx(figures_by_loops(data, results, category, least))
    found = best_thresholds(verdict, ids, names)
    for category, name in zip(ids, names):
        f1 = {r["score"]: figures_by_loops(data, results, category, r["score"])[2]
              for r in results if r["category_id"] == category}  # fmt: skip
        if max(f1.values(), default=0) == 0:
            assert found.classes[name] is None
            continue
        assert found.figures[name]["f1"] == pytest.approx(max(f1.values()))
        assert f1[found.classes[name]] == pytest.approx(max(f1.values()))


def test_thresholds_are_kept_and_found(tmp_path):
    kept = Thresholds(0.4, {"a": 0.25, "b": None, "\ud800": 0.5})
    weights = tmp_path / "model_final.pth"
    with pytest.raises(RunError, match="There are no thresholds"):
        find_thresholds(weights)
    folder = tmp_path / "inference" / "x_val"
    folder.mkdir(parents=True)
    kept.save(folder / "thresholds.json")
    assert find_thresholds(weights) == folder / "thresholds.json"
    with pytest.raises(RunError):  # the last evaluation was not this one's
        find_thresholds(tmp_path / "model_0000099.pth")
    kept.save(tmp_path / "model_final.thresholds.json")
    assert Thresholds.load(find_thresholds(weights)).of(["b", "a", "new"]) == [0.4, 0.25, 0.4]


@pytest.mark.parametrize(
    "text", ["[]", '{"overall": 2, "classes": {}}', '{"overall": 0.1, "classes": {"a": "b"}}']
)
def test_other_files_are_no_thresholds(tmp_path, text):
    (tmp_path / "thresholds.json").write_text(text)
    with pytest.raises(RunError, match="holds no thresholds"):
        Thresholds.load(tmp_path / "thresholds.json")
