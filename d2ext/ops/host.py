"""When the host may look at the values of a tensor."""

import torch

__all__ = ["asking_is_free"]


def asking_is_free(tensor: torch.Tensor) -> bool:
    """Whether reading a value is free, as on the CPU; elsewhere it is a host-device sync.

    All code that looks only where it is free goes through this function, so that a test on a CPU
    can count what a GPU would wait for.
    """
    return tensor.device.type == "cpu"
