"""The benchmark's parts on data and inference: both sides do the same work."""

from argparse import Namespace

import pytest
import torch

ARGS = Namespace(device="cpu", quick=True)


@pytest.fixture
def components():
    from benchmarks import data, inference

    return {"data": data, "inference": inference}


def test_both_loaders_take_the_same_images(components):
    mapper, loader = components["data"].cases(ARGS)
    assert mapper.name.startswith("mapper") and mapper.note
    for _ in range(3):
        assert mapper.versions["d2ext"]() is mapper.versions["Detectron2"]() is None
    images, objects = loader.versions["d2ext"]()
    assert loader.versions["Detectron2"]() == (images, objects) and images == 8 and objects > 0


def test_mappers_of_a_round_see_the_same_image(components, tmp_path, monkeypatch):
    data = components["data"]
    dicts = data.draw_jpegs(str(tmp_path), 20, 30, count=3)
    seen = []
    rounds = [data._map_some(lambda d, k=k: seen.append((k, d["image_id"])), dicts)
              for k in range(2)]  # fmt: skip
    for run in rounds * 2:
        run()
    assert [n for k, n in seen if k == 0] == [n for k, n in seen if k == 1]
    assert [n for k, n in seen if k == 0] == [n % 3 for n in range(2 * data.IMAGES)]


def test_both_models_find_the_same(components):
    retinanet, fcos, weighting = components["inference"].cases(ARGS)
    for case in (retinanet, fcos):
        for ours, theirs in zip(*(run() for run in case.versions.values())):
            a, b = ours["instances"], theirs["instances"]
            assert len(a) == len(b) > 5, case.name
            # Not their classes: of equal scores either may come first.
            assert torch.allclose(a.scores, b.scores, atol=1e-6)
    for run in weighting.versions.values():
        assert [len(x["instances"]) > 5 for x in run()] == [True, True]


@pytest.mark.slow
@pytest.mark.export
def test_all_forms_of_an_exported_detector_are_timed(monkeypatch):
    from benchmarks import exported

    from d2ext import export

    # Those of fewer bits have tests of their own, and take the longest to make.
    monkeypatch.setattr(export, "PRECISIONS", ("fp32",))
    for case in exported.cases(ARGS):
        assert list(case.versions) == ["PyTorch", "onnxruntime", "OpenVINO fp32"]
        counts = {name: run()[-1] for name, run in case.versions.items() if name != "PyTorch"}
        eager = len(case.versions["PyTorch"]()[0]["instances"])
        assert int(counts["onnxruntime"][0]) == int(counts["OpenVINO fp32"][0]) == eager > 0
        case.close()
