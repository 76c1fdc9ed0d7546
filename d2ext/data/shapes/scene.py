"""Draw one scene: a cluttered background and objects that hide parts of one another.

Shape letters: H and W height and width of the image, h and w of an object's window,
V vertices of a polygon.
"""

import dataclasses
from typing import List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .background import draw_background
from .classes import ShapeClass, fill_distance, sample_colors
from .contours import clip_polygon, polygon_area, trace_mask
from .outlines import outline

__all__ = ["SceneConfig", "SceneObject", "draw_scene"]


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """How difficult the scenes are.

    Attributes:
        image_size: least and largest side of the images, in pixels.
        num_objects: least and largest number of objects in an image.
        mean_objects: their mean, roughly, where the classes of an image are drawn at random.
        object_size: least and largest size of an object (the longer side before it is turned).
        typical_size: median of the sizes, which are log-normal.
        size_spread: standard deviation of the logarithm of the size.
        max_rotation: largest turn either way, in degrees.
        max_stretch: largest ratio between the two axes, 1 for none.
        max_shear: largest shear.
        overlap: share of the objects that may lie over others.
        min_visible: part of each object that stays visible, whatever lies over it.
        min_inside: part of each object that lies inside the image.
        hue_jitter: largest deviation of an object's hue from that of its class, in degrees.
        clutter: least and largest number of pieces of background clutter.
        noise: least and largest standard deviation of the pixel noise, of 255.
        blur: share of the images that are out of focus.
    """

    image_size: Tuple[int, int] = (192, 256)
    num_objects: Tuple[int, int] = (2, 15)
    mean_objects: float = 5.5
    object_size: Tuple[float, float] = (10.0, 200.0)
    typical_size: float = 62.0
    size_spread: float = 0.5
    max_rotation: float = 40.0
    max_stretch: float = 1.25
    max_shear: float = 0.12
    overlap: float = 0.4
    min_visible: float = 0.4
    min_inside: float = 0.7
    hue_jitter: float = 8.0
    clutter: Tuple[int, int] = (4, 14)
    noise: Tuple[float, float] = (2.0, 9.0)
    blur: float = 0.25

    def for_image_size(self, size: int) -> "SceneConfig":
        """The same scenes on square images of ``size`` pixels, objects scaled with them."""
        scale = size / (0.5 * (self.image_size[0] + self.image_size[1]))
        low, high = self.object_size
        return dataclasses.replace(
            self,
            image_size=(size, size),
            object_size=(low, max(low, high * scale)),
            typical_size=max(low, self.typical_size * scale),
        )


@dataclasses.dataclass
class SceneObject:
    """One object as it is seen.

    Attributes:
        category: index of its class.
        box: x0, y0, x1, y1 of the visible part.
        polygons: list of (V, 2) outlines of the visible parts, the largest first.
        area: number of square pixels inside the polygons.
        visible: visible part of the whole object, 0 to 1.
        truncated: whether the border of the image cuts it.
        occluded: whether other objects hide some of it.
    """

    category: int
    box: Tuple[float, float, float, float]
    polygons: List[np.ndarray]
    area: float
    visible: float
    truncated: bool
    occluded: bool


# Objects are drawn this much larger and averaged down: their edges are smooth.
_OVERSAMPLE = 4
# Room around the object in its window, for the shadow.
_MARGIN = 7


@dataclasses.dataclass
class _Sprite:
    """An object's silhouette in a window of its own, before it has a place in the image."""

    cls: ShapeClass
    matrix: np.ndarray  # (2, 2), from the unit outline to pixels
    center: np.ndarray  # (2,) in the window
    polygon: np.ndarray  # (V, 2) in the window
    coverage: np.ndarray  # (h, w) float32, 0 to 1
    mask: np.ndarray  # (h, w) bool
    area: float


@dataclasses.dataclass
class _Placed:
    category: int
    sprite: _Sprite
    origin: Tuple[int, int]  # x, y of the window in the image
    drawn: int  # pixels when it was drawn
    seen: int  # pixels that are still visible


def draw_scene(
    rng: np.random.Generator,
    classes: Sequence[ShapeClass],
    config: SceneConfig,
    categories: Optional[Sequence[int]] = None,
) -> Tuple[np.ndarray, List[SceneObject]]:
    """Draw a scene.

    Args:
        rng: the source of randomness; the same state gives the same scene.
        classes: all classes.
        config: how difficult it is.
        categories: classes of the objects, as indices; drawn at random if not given. Every one of
            them gets a place: an object that fits nowhere is made smaller.

    Returns:
        image, (H, W, 3) uint8 RGB, and the objects, the hindmost first.
    """
    low, high = config.image_size
    width, height = (int(side) for side in rng.integers(low // 16, high // 16 + 1, 2) * 16)
    if categories is None:
        categories = _sample_categories(rng, len(classes), config).tolist()
    image = draw_background(rng, height, width, clutter=config.clutter)
    owner = np.full((height, width), -1, dtype=np.int16)
    placed: List[_Placed] = []
    crowding = min(1.0, (7.0 / len(categories)) ** 0.5)
    sizes = (
        config.typical_size * crowding * np.exp(rng.normal(0, config.size_spread, len(categories)))
    )
    sizes = np.clip(sizes, *config.object_size)
    order = np.argsort(-sizes * rng.uniform(0.7, 1.3, len(sizes)), kind="stable")
    for i in order:
        item = _place(
            rng, classes[categories[i]], int(categories[i]), sizes[i], owner, placed, config
        )
        placed.append(item)
        _paint(rng, image, item, config)
    objects = [_describe(index, item, owner) for index, item in enumerate(placed)]
    return _photograph(rng, image, config), objects


def _sample_categories(rng, num_classes: int, config: SceneConfig) -> np.ndarray:
    low, high = config.num_objects
    # A Poisson number above the least: most scenes are sparse, some are crowded.
    spread = rng.gamma(2.0, max(config.mean_objects - low, 0.0) / 2.0)
    count = min(low + int(rng.poisson(spread)), high)
    return rng.integers(num_classes, size=count)


def _place(rng, cls, category, size, owner, placed, config) -> _Placed:
    """Find a place where enough of the object, and of those behind it, stays visible."""
    height, width = owner.shape
    may_overlap = rng.random() < config.overlap
    angle, stretch, shear = rng.uniform(-1, 1, 3)
    smallest = config.object_size[0]
    while True:
        sprite = _make_sprite(rng, cls, size, angle, stretch, shear, config)
        last = size <= smallest
        best, best_cost = None, np.inf
        for attempt in range(120 if last else 12):
            x = int(round(rng.uniform(0, width) - sprite.center[0]))
            y = int(round(rng.uniform(0, height) - sprite.center[1]))
            view, part = _windows((x, y), sprite.mask.shape, owner.shape)
            under = owner[view][sprite.mask[part]]
            if len(under) < config.min_inside * sprite.area:
                continue
            hidden = np.bincount(under[under >= 0], minlength=len(placed))
            if any(p.seen == h for p, h in zip(placed, hidden)):
                continue  # nothing may vanish
            left = [(p.seen - h) / p.sprite.area for p, h in zip(placed, hidden) if h]
            cost = max((config.min_visible - v for v in left), default=-1.0)
            # The first tries keep clear of other objects unless this one may overlap.
            if cost <= 0 and (may_overlap or attempt >= 8 or not left):
                best, best_cost = (x, y, view, part, under, hidden), 0.0
                break
            if last and cost < best_cost:
                best, best_cost = (x, y, view, part, under, hidden), cost
        if best is not None:
            break
        if size < 2:
            raise ValueError(
                f"{len(placed) + 1} objects do not fit in an image of {width} x {height} pixels; "
                "lower num_objects or raise image_size of the SceneConfig."
            )
        size = 0.75 * size if last else max(smallest, 0.75 * size)
    x, y, view, part, under, hidden = best
    for item, count in zip(placed, hidden):
        item.seen -= int(count)
    owner[view][sprite.mask[part]] = len(placed)
    return _Placed(category, sprite, (x, y), len(under), len(under))


def _make_sprite(rng, cls, size, angle, stretch, shear, config) -> _Sprite:
    theta = np.radians(angle * config.max_rotation)
    rotation = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    ratio = config.max_stretch ** (0.5 * stretch)
    shape = np.array([[ratio, shear * config.max_shear], [0.0, 1.0 / ratio]])
    matrix = (0.5 * size) * (rotation @ shape)
    polygon = outline(cls.outline) @ matrix.T
    low = polygon.min(axis=0)
    # A fraction of a pixel, so that objects do not all start at whole pixels.
    center = np.floor(-low) + _MARGIN + rng.random(2) + 1.0
    polygon = polygon + center
    w, h = (int(side) for side in np.ceil(polygon.max(axis=0)) + _MARGIN)
    coverage = _rasterize(polygon, h, w)
    return _Sprite(
        cls, matrix, center, polygon, coverage, coverage > 0.5, abs(polygon_area(polygon))
    )


def _rasterize(polygon: np.ndarray, h: int, w: int, line: float = 0.0) -> np.ndarray:
    """Part of each pixel that the polygon covers, or its outline if ``line`` is a width."""
    canvas = Image.new("L", (w * _OVERSAMPLE, h * _OVERSAMPLE))
    # The middle of the first small pixel is at 0.5, which the drawing calls 0.
    points = (polygon * _OVERSAMPLE - 0.5).ravel().tolist()
    draw = ImageDraw.Draw(canvas)
    if line:
        points += points[:4]
        draw.line(points, fill=255, width=max(1, round(line * _OVERSAMPLE)), joint="curve")
    else:
        draw.polygon(points, fill=255)
    return np.asarray(canvas.reduce(_OVERSAMPLE), dtype=np.float32) / 255.0


def _windows(origin: Tuple[int, int], size: Tuple[int, int], shape: Tuple[int, int]):
    """Slices of the image, and of an object's window at ``origin``, where they meet."""
    (x, y), (h, w), (height, width) = origin, size, shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    view = (slice(y0, max(y0, y1)), slice(x0, max(x0, x1)))
    part = (slice(y0 - y, max(y0, y1) - y), slice(x0 - x, max(x0, x1) - x))
    return view, part


def _paint(rng, image: np.ndarray, item: _Placed, config: SceneConfig) -> None:
    """Paint the object and its shadow over the image, in place."""
    sprite = item.sprite
    size = 2.0 * float(np.sqrt(abs(np.linalg.det(sprite.matrix))))
    view, part = _windows(item.origin, sprite.mask.shape, image.shape[:2])
    target = image[view]
    if rng.random() < 0.6:
        shift = rng.integers(1, 4, 2)
        shadow = Image.fromarray((sprite.coverage * 255).astype(np.uint8)).filter(
            ImageFilter.BoxBlur(2)
        )
        shadow = np.roll(np.asarray(shadow, dtype=np.float32), shift, axis=(0, 1))[part]
        target *= (1.0 - rng.uniform(0.15, 0.45) / 255.0 * shadow)[..., None].astype(np.float32)
    color = _color(rng, sprite, part, config)
    if rng.random() < 0.6 and size > 14:
        height, width = sprite.mask.shape
        rim = _rasterize(sprite.polygon, height, width, line=min(3.0, 0.035 * size))
        color *= (1.0 - rng.uniform(0.4, 0.8) * rim[part])[..., None].astype(np.float32)
    alpha = sprite.coverage[part][..., None]
    target += alpha * (color - target)


def _color(rng, sprite: _Sprite, part, config: SceneConfig) -> np.ndarray:
    """(h, w, 3) colour of the object: its pattern, lit from one side."""
    inverse = np.linalg.inv(sprite.matrix).astype(np.float32)
    xs = np.arange(part[1].start, part[1].stop, dtype=np.float32) + 0.5 - sprite.center[0]
    ys = np.arange(part[0].start, part[0].stop, dtype=np.float32)[:, None] + 0.5 - sprite.center[1]
    xs, ys = xs.astype(np.float32), ys.astype(np.float32)
    u = inverse[0, 0] * xs + inverse[0, 1] * ys
    v = inverse[1, 0] * xs + inverse[1, 1] * ys
    first, second = sample_colors(rng, sprite.cls, config.hue_jitter)
    if sprite.cls.fill == "solid":
        color = np.broadcast_to(first, u.shape + (3,))
    else:
        radius = np.float32(np.sqrt(abs(np.linalg.det(sprite.matrix))))
        blend = np.clip(0.5 + radius * fill_distance(sprite.cls.fill, u, v), 0.0, 1.0)
        color = first + blend[..., None] * (second - first)
    lit = rng.uniform(-0.16, 0.16, 2).astype(np.float32)
    return color * (1.0 + lit[0] * u + lit[1] * v)[..., None]


def _describe(index: int, item: _Placed, owner: np.ndarray) -> SceneObject:
    """What can be seen of an object once all are drawn."""
    height, width = owner.shape
    polygon = item.sprite.polygon + item.origin
    cut = bool(polygon.min() < 0 or polygon[:, 0].max() > width or polygon[:, 1].max() > height)
    occluded = item.seen < item.drawn
    if occluded:
        view, _ = _windows(item.origin, item.sprite.mask.shape, owner.shape)
        mask = owner[view] == index
        parts = trace_mask(mask) or trace_mask(mask, min_area=0.0)  # or all that is left of it
        # Slivers beside an occluder are noise, not parts: drop them as an annotator would.
        parts = [p for p in parts if polygon_area(p) >= 0.04 * polygon_area(parts[0])]
        polygons = [p + (view[1].start, view[0].start) for p in parts]
    else:
        polygons = [clip_polygon(polygon, width, height)]
    polygons = [np.round(p, 2) for p in polygons]
    corners = np.concatenate(polygons)
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    area = sum(abs(polygon_area(p)) for p in polygons)
    visible = min(1.0, item.seen / item.sprite.area)
    return SceneObject(item.category, (x0, y0, x1, y1), polygons, area, visible, cut, occluded)


def _photograph(rng, image: np.ndarray, config: SceneConfig) -> np.ndarray:
    """Light, focus and sensor noise of the whole image."""
    image = (image - 128.0) * rng.uniform(0.85, 1.12) + (128.0 + rng.uniform(-14, 14))
    if rng.random() < config.blur:
        photo = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1)))
        image = np.asarray(photo, dtype=np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image + np.float32(rng.uniform(*config.noise)) * noise
    return np.clip(image, 0, 255).astype(np.uint8)
