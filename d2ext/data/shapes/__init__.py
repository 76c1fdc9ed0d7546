"""A generator of detection data sets: scenes of simple shapes, drawn on demand."""

from .classes import ShapeClass, common_classes, long_tail_classes
from .generate import ShapesSpec, write_dataset
from .scene import SceneConfig, SceneObject, draw_scene

__all__ = [
    "SceneConfig",
    "SceneObject",
    "ShapeClass",
    "ShapesSpec",
    "common_classes",
    "draw_scene",
    "long_tail_classes",
    "write_dataset",
]
