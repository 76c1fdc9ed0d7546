"""Outlines, contours and scenes: what is drawn, and whether the annotations sit on it."""

import dataclasses

import numpy as np
import pycocotools.mask as mask_util
import pytest

from d2ext.data.shapes import SceneConfig, ShapeClass, common_classes, draw_scene, long_tail_classes
from d2ext.data.shapes import scene as scene_module
from d2ext.data.shapes.classes import COLORS, FILLS, fill_distance
from d2ext.data.shapes.contours import clip_polygon, polygon_area, trace_mask
from d2ext.data.shapes.outlines import outline, outline_names


def _rasterize(polygons, height, width):
    rles = mask_util.frPyObjects([p.ravel().tolist() for p in polygons], height, width)
    return mask_util.decode(mask_util.merge(rles)).astype(bool)


def _iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("name", outline_names())
def test_outlines_are_simple_and_fill_the_unit_square(name):
    vertices = outline(name)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    np.testing.assert_allclose(low + high, 0, atol=1e-9)
    assert (high - low).max() == pytest.approx(2)
    assert not _crosses_itself(vertices)
    # Thin outlines would vanish in small objects.
    assert abs(polygon_area(vertices)) > 0.7


def _crosses_itself(vertices):
    a, b = vertices, np.roll(vertices, -1, axis=0)

    def side(p, q, r):
        return np.sign(np.round((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]), 12))

    for i in range(len(a)):
        for j in range(i + 2, len(a)):
            if i == 0 and j == len(a) - 1:
                continue
            first = side(a[i], b[i], a[j]) * side(a[i], b[i], b[j])
            second = side(a[j], b[j], a[i]) * side(a[j], b[j], b[i])
            if first < 0 and second < 0:
                return True
    return False


def test_classes_differ_in_look():
    for classes, count in ((common_classes(), 20), (long_tail_classes(), 60)):
        assert len({c.name for c in classes}) == count
        assert len({(c.outline, c.fill, c.color) for c in classes}) == count
        for cls in classes:
            assert cls.outline in outline_names()
            assert cls.fill in FILLS and cls.color in COLORS


@pytest.mark.parametrize("fill", [fill for fill in FILLS if fill != "solid"])
def test_both_colors_of_a_pattern_show(fill):
    grid = np.linspace(-1, 1, 101)
    second = fill_distance(fill, *np.meshgrid(grid, grid)) > 0
    assert 0.2 < second.mean() < 0.8


def test_unknown_fill_is_named():
    with pytest.raises(ValueError, match="'plaid'.*striped"):
        fill_distance("plaid", np.zeros(1), np.zeros(1))


def test_clip_keeps_the_inside():
    square = np.array([[-5.0, -5.0], [5.0, -5.0], [5.0, 5.0], [-5.0, 5.0]])
    clipped = clip_polygon(square, 20, 3)
    assert polygon_area(clipped) == pytest.approx(15)
    assert clipped.min() >= 0 and clipped[:, 1].max() <= 3
    np.testing.assert_array_equal(clip_polygon(square + 6, 20, 20), square + 6)
    assert len(clip_polygon(square - 50, 20, 20)) == 0


def test_traced_outline_gives_the_mask_back():
    ys, xs = np.mgrid[:60, :70]
    mask = (np.hypot(xs - 40, ys - 28) < 22) & ~((xs > 38) & (xs < 44))
    polygons = trace_mask(mask)
    assert len(polygons) == 2
    assert polygon_area(polygons[0]) >= polygon_area(polygons[1])
    assert _iou(_rasterize(polygons, 60, 70), mask) > 0.95
    corners = np.concatenate(polygons)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert corners.min(axis=0).tolist() == [columns[0], rows[0]]
    assert corners.max(axis=0).tolist() == [columns[-1] + 1, rows[-1] + 1]


def test_tracing_fills_holes_and_parts_diagonal_pixels():
    ring = np.ones((9, 9), dtype=bool)
    ring[3:6, 3:6] = False
    assert len(trace_mask(ring)) == 1
    diagonal = np.zeros((8, 8), dtype=bool)
    diagonal[:4, :4] = diagonal[4:, 4:] = True
    assert len(trace_mask(diagonal)) == 2
    assert trace_mask(np.zeros((4, 4), dtype=bool)) == []


@pytest.mark.parametrize("seed", range(8))
def test_annotations_sit_on_the_pixels(seed, monkeypatch):
    """On a gray background everything red is an object."""
    monkeypatch.setattr(
        scene_module, "draw_background", lambda rng, h, w, clutter: np.full((h, w, 3), 128.0, "f4")
    )
    config = SceneConfig(noise=(0.0, 0.0), blur=0.0)
    classes = [ShapeClass(n, n, "solid", "red") for n in ("star", "heart", "moon", "gear")]
    image, objects = draw_scene(np.random.default_rng(seed), classes, config)
    pixels = image.astype(np.int64)
    red = (pixels[..., 0] - pixels[..., 1]) > 20
    polygons = [p for item in objects for p in item.polygons]
    assert _iou(_rasterize(polygons, *image.shape[:2]), red) > 0.9


@pytest.mark.parametrize("seed", range(15))
def test_scene_keeps_its_promises(seed):
    config = SceneConfig()
    image, objects = draw_scene(np.random.default_rng(seed), common_classes(), config)
    height, width = image.shape[:2]
    assert image.dtype == np.uint8 and 192 <= min(height, width) <= max(height, width) <= 256
    assert config.num_objects[0] <= len(objects) <= config.num_objects[1]
    covered = np.zeros((height, width), dtype=np.int64)
    for item in objects:
        x0, y0, x1, y1 = item.box
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert item.visible > config.min_visible - 0.05
        corners = np.concatenate(item.polygons)
        np.testing.assert_allclose(corners.min(axis=0), (x0, y0))
        np.testing.assert_allclose(corners.max(axis=0), (x1, y1))
        mask = _rasterize(item.polygons, height, width)
        assert mask.sum() == pytest.approx(item.area, rel=0.1, abs=20)
        covered += mask
    # Visible parts do not overlap, but for the pixels along their edges and holes.
    assert (covered > 1).mean() < 0.03


def test_every_requested_object_is_drawn_even_in_a_crowd():
    config = dataclasses.replace(SceneConfig(), image_size=(96, 96), typical_size=90.0)
    categories = [i % 20 for i in range(15)]
    _, objects = draw_scene(np.random.default_rng(0), common_classes(), config, categories)
    assert sorted(item.category for item in objects) == sorted(categories)


@pytest.mark.parametrize("count", [60, 100])
def test_nothing_vanishes_where_there_is_hardly_room(count):
    config = SceneConfig().for_image_size(64)
    wanted = np.arange(count) % 6
    for seed in range(2):
        rng = np.random.default_rng(seed)
        _, objects = draw_scene(rng, long_tail_classes()[:6], config, wanted)
        assert sorted(x.category for x in objects) == sorted(wanted)
        assert min(x.area for x in objects) > 0 and min(x.visible for x in objects) > 0


def test_more_objects_than_pixels_are_refused():
    config = dataclasses.replace(SceneConfig(), image_size=(16, 16))
    with pytest.raises(ValueError, match="objects do not fit in an image of 16 x 16 pixels; lower"):
        draw_scene(np.random.default_rng(0), long_tail_classes()[:6], config, np.zeros(250, int))


def test_occlusion_and_truncation_are_told():
    config = dataclasses.replace(SceneConfig(), overlap=1.0)
    flags = set()
    for seed in range(20):
        image, objects = draw_scene(np.random.default_rng(seed), common_classes(), config)
        for item in objects:
            flags.add((item.truncated, item.occluded))
            x0, y0, x1, y1 = item.box
            inside = min(x0, y0) > 0.5 and x1 < image.shape[1] - 0.5 and y1 < image.shape[0] - 0.5
            if not item.occluded:
                assert item.truncated != inside
                if not item.truncated:
                    assert item.visible > 0.9
    assert flags == {(a, b) for a in (False, True) for b in (False, True)}
