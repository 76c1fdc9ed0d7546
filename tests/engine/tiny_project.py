"""The toy detector and its data, under the name by which tests import them."""

from d2ext.faults.toy import ToyDetector, draw_tiny, register_json, toy_options

__all__ = ["ToyDetector", "draw_tiny", "register_json", "toy_options"]
