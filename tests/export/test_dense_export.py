"""Exported dense detectors against the detectors themselves, on batches of several sizes."""

import gc
import json
import os
import signal

import numpy as np
import pytest
import torch
from export_kit import DENSE, SIZES, spread_detector, unknown_to_tensorrt

from d2ext import export
from d2ext.cli import main
from d2ext.export.check import match
from d2ext.export.graphs import DenseGraph
from d2ext.export.selection import NOTHING, round_down
from d2ext.modeling.meta_arch.decoding import best_of_level

pytestmark = pytest.mark.export


@pytest.fixture(scope="module", params=sorted(DENSE))
def detector(request):
    return spread_detector(request.param)


def written(detector, path, **kwargs):
    graph = export.export(detector, path, **kwargs)
    run, about = export.load_exported(path)
    return graph, run, about


@pytest.mark.parametrize("suffix", [".onnx", ".ts"])
def test_equals_eager_at_every_size_and_batch(detector, tmp_path, suffix):
    path = tmp_path / f"detector{suffix}"
    graph, run, about = written(detector, path)
    assert suffix == ".ts" or not unknown_to_tensorrt(path)
    for batch, sizes in ((1, SIZES), (2, SIZES[1:2]), (4, SIZES[2:])):
        found = export.compare(detector, graph, run, sizes=sizes, batch=batch)
        assert found["detections"] > 20
        assert found.acceptable(box=1e-3, score=1e-5), (batch, found)
    assert about["outputs"] == ["boxes", "scores", "classes", "count"]


@pytest.mark.slow
def test_twenty_sizes(tmp_path):
    detector = spread_detector("ExtRetinaNet")
    graph, run, _ = written(detector, tmp_path / "detector.onnx")
    rng = np.random.RandomState(0)
    sizes = [tuple(int(n) for n in rng.randint(129, 260, 2)) for _ in range(20)]
    found = export.compare(detector, graph, run, sizes=sizes)
    assert found["detections"] > 1000 and found.acceptable(), found


def test_all_boxes_and_scores(detector, tmp_path):
    graph, run, about = written(detector, tmp_path / "detector.onnx", with_nms=False)
    found = export.compare(detector, graph, run, sizes=SIZES, batch=2)
    assert found["detections"] > 1000
    assert found.acceptable(box=1e-3, score=1e-5), found
    assert about["outputs"] == ["boxes", "scores"]


def test_pixels_are_resized_inside(tmp_path):
    detector = spread_detector("ATSS")
    options = {"inputs": "pixels", "sizes": (144, 200), "channel_order": "RGB"}
    graph, run, about = written(detector, tmp_path / "detector.onnx", **options)
    for size in ((288, 333), (151, 402), (150, 140)):
        found = export.compare(detector, graph, run, sizes=[size], batch=2)
        assert found["detections"] > 20 and found.acceptable(), found
    assert (about["inputs"], about["sizes"]) == ("pixels", [144, 200])


@pytest.mark.parametrize("size", [(144, 200), (300, 400)])
def test_the_resize_is_detectron2s_within_a_grey_level(size):
    from detectron2.data import transforms as T

    image = np.random.RandomState(0).randint(0, 256, (240, 320, 3), dtype=np.uint8)
    image = np.kron(image[::8, ::8], np.ones((8, 8, 1), np.uint8))  # structure, not only noise
    resize = T.ResizeShortestEdge([size[0]] * 2, size[1]).get_transform(image)
    expected = resize.apply_image(image).astype(np.float32)
    prepare = export.graph_of(
        spread_detector("ExtRetinaNet"), inputs="pixels", sizes=size, channel_order="RGB"
    ).prepare
    seen = prepare(torch.from_numpy(image)[None])
    height, width = int(seen.height), int(seen.width)
    assert (height, width) == expected.shape[:2]
    pixels = seen.tensor[0, :, :height, :width] * prepare.pixel_std + prepare.pixel_mean
    assert np.abs(pixels.permute(1, 2, 0).numpy() - expected).max() <= 1.01


def test_openvino(tmp_path):
    detector = spread_detector("ExtFCOS")
    graph, run, about = written(detector, tmp_path / "detector.xml")
    for batch in (1, 2):
        found = export.compare(detector, graph, run, sizes=SIZES[:2], batch=batch)
        assert found["detections"] > 20 and found.acceptable(), found
    assert about["format"] == "openvino"


def test_signals_are_handled_when_openvino_detectors_are_gone(tmp_path):
    """With a core each, the process would be killed here without a word."""
    detector = spread_detector("ExtFCOS", ["MODEL.FCOS.IN_FEATURES", ["p3"]])
    export.export(detector, tmp_path / "detector.xml", with_nms=False)
    first, second = (export.load_exported(tmp_path / "detector.xml") for _ in range(2))
    del first
    gc.collect()
    del second
    gc.collect()
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]


@pytest.mark.slow
def test_torch_export_of_one_size(detector, tmp_path):
    graph, run, _ = written(detector, tmp_path / "detector.pt2", with_nms=False, size=(160, 192))
    found = export.compare(detector, graph, run, sizes=[(160, 192)])
    assert found.acceptable(box=1e-3, score=1e-5), found
    assert found["detections"] > 100


def test_one_threshold_a_class_comes_before_the_best_are_taken():
    graph = DenseGraph(spread_detector("ExtRetinaNet"))
    scores = torch.rand(40, graph.num_classes)
    boxes, graph.topk = torch.rand(40, 4), 15
    graph.threshold = torch.linspace(0.99, 0.1, graph.num_classes)
    prior, label, best = best_of_level(scores, graph.threshold, graph.topk)
    assert (scores > scores[prior, label].min()).sum() > 15  # others would have been in the way
    found = [x[0] for x in graph._best(boxes[None], scores[None])]
    there = found[1] > NOTHING / 2
    for own, wanted in zip(found, (boxes[prior], best, label)):
        assert torch.equal(own[there], wanted)


def test_nothing_is_found(tmp_path):
    detector = spread_detector("DualWeightingFCOS")
    detector.test_score_thresh = 0.999
    _, run, _ = written(detector, tmp_path / "detector.onnx")
    boxes, scores, classes, count = run(np.zeros((2, 3, 160, 160), np.float32))
    limit = detector.max_detections_per_image
    assert count.tolist() == [0, 0] and boxes.shape == (2, limit, 4)
    assert (boxes == 0).all() and (scores == 0).all() and (classes == -1).all()


def test_no_training_state_inside():
    """No loss, assigner, running statistic or threshold of training is part of the export."""
    words = ["MODEL.DENSE.CLS_LOSS", "efl"]
    detector = spread_detector("ExtRetinaNet", words)
    state = set(export.graph_of(detector).state_dict())
    assert any("pos_grad" in key for key in detector.state_dict())
    assert not any("criterion" in key or "normalizer" in key for key in state)
    own = {"prepare.pixel_mean", "prepare.pixel_std", "threshold"}
    assert state - own <= set(detector.state_dict())


def test_threshold_a_class():
    detector = spread_detector("ExtFCOS")
    detector.score_thresholds = lambda fixed: torch.tensor([0.05, 0.9, 0.05])
    graph = export.graph_of(detector)
    with torch.no_grad():
        image = torch.rand(3, 160, 160, generator=torch.Generator().manual_seed(0)) * 255
        boxes, scores, classes, count = (x.numpy() for x in graph(image[None]))
        own = detector([{"image": image}])[0]["instances"]
        found = match(
            [x.numpy() for x in (own.pred_boxes.tensor, own.scores, own.pred_classes)],
            [x[0][: count[0]] for x in (boxes, scores, classes)],
        )
    assert found["missing"] == 0 and found["detections"] > 0, found


def test_threshold_of_nms_is_not_rounded_up():
    assert float(np.float32(0.6)) > 0.6 and round_down(0.6) <= 0.6
    assert round_down(0.5) == 0.5


def test_comparison_notices_differences():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 9, 9]], np.float32)
    scores, classes = np.array([0.9, 0.5], np.float32), np.array([1, 0])
    same = match((boxes, scores, classes), (boxes[::-1], scores[::-1], classes[::-1]))
    assert same == {"box": 0.0, "score": 0.0, "missing": 0.0, "detections": 2.0}
    assert match((boxes, scores, classes), (boxes + 1, scores, classes))["box"] == 1.0
    assert match((boxes, scores, classes), (boxes, scores, 1 - classes))["missing"] == 2
    assert match((boxes, scores, classes), (boxes[:1], scores[:1], classes[:1]))["missing"] > 0


def test_what_float32_cannot_keep_is_measured_against_float64():
    sides = {"pytorch_box": 1e-3, "file_box": 1.9e-3, "pytorch_score": 0.0, "file_score": 1e-7}
    found = export.Difference(box=2e-3, score=1e-7, missing=0, **sides)
    assert found.acceptable()
    for key, value in (("file_box", 2.1e-3), ("box", 1.1e-2), ("score", 1.1e-5), ("missing", 1)):
        assert not export.Difference(found, **{key: value}).acceptable(), key
    assert not export.Difference(box=2e-3, score=0, missing=0).acceptable()  # it was not measured


def test_the_detector_in_float64():
    detector = spread_detector("ExtFCOS")
    item = {"image": torch.rand(3, 160, 224) * 255, "height": 320, "width": 448}
    with torch.no_grad():
        found = detector([item])[0]["instances"]
        (exact,) = export.ExactDetector(detector)([item])
    own = [x.numpy() for x in (found.pred_boxes.tensor, found.scores, found.pred_classes)]
    pairs = match(exact, own)
    assert exact[0].dtype == np.float64 and pairs["missing"] == 0 and pairs["detections"] > 5
    assert 0 < pairs["box"] < 1e-3 and 0 < pairs["score"] < 1e-5
    assert next(detector.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "path, options, message",
    [
        ("detector.bin", {}, "must end in .onnx or .pt2 or .ts or .xml"),
        ("detector.onnx", {"format": "openvino"}, "must end in .xml"),
        ("detector.onnx", {"inputs": "bytes"}, "inputs must be one of images, pixels"),
        ("detector.pt2", {}, "add --no-nms"),
        ("detector.pt2", {"with_nms": False, "inputs": "pixels"}, "takes images, not pixels"),
    ],
)
def test_refusals(tmp_path, path, options, message):
    detector = spread_detector("ExtRetinaNet")
    with pytest.raises(ValueError, match=message):
        export.export(detector, tmp_path / path, **options)
    assert list(tmp_path.iterdir()) == []


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="Linear cannot be exported"):
        export.graph_of(torch.nn.Linear(1, 1))


def test_command_exports_and_checks(tmp_path, capsys):
    output = tmp_path / "fcos.onnx"
    words = ["export", "--config-file", "Demo/fcos_shapes", "--output", str(output)]
    assert main(words) == 0
    assert (
        "compared with PyTorch on 4 image sizes and batches of 1 and 3" in capsys.readouterr().out
    )
    _, about = export.load_exported(output)
    assert about["channel_order"] == "BGR" and len(about["class_names"]) == 20
    assert "MODEL:" in about["config"] and about["sizes"] == [160, 256]
    assert main([*words[:-1], str(tmp_path / "fcos.pt2")]) == 1
    assert "add --no-nms" in capsys.readouterr().err
    json.dumps(about)


@pytest.mark.parametrize("network", ["tf_efficientnet_lite0", "convnext_atto"])
def test_networks_of_timm_export(network, tmp_path):
    words = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0]
    detector = spread_detector("ExtRetinaNet", [*words, "MODEL.TIMM.NAME", network])
    graph, run, _ = written(detector, tmp_path / "detector.onnx")
    found = export.compare(detector, graph, run, sizes=SIZES)
    assert found["detections"] > 30
    assert found.acceptable(box=1e-3, score=1e-5), found
