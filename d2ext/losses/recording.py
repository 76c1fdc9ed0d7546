"""Numbers that a part keeps for logging."""

from typing import Dict

import torch

__all__ = ["Recording"]


class Recording:
    """Mixin of a module that keeps, when it is asked to, what is worth logging of its last call.

    Nothing is read from the device here: that is a host-device sync, which the caller can do now
    and then.

    Attributes:
        recording: set it to True, and the next calls keep their numbers.
        record: scalars of the last call by name, without graph; empty if there was nothing to keep.
    """

    recording = False
    record: Dict[str, torch.Tensor] = {}
