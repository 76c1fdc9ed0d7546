"""Number formats of a training step, and clipping of all gradients together."""

import contextlib
import functools
import logging
import time
from typing import Any, ContextManager, Dict, Iterable, List, Optional

import torch
from detectron2.config import CfgNode, configurable

__all__ = ["GlobalNormClipper", "Precision", "fastest_dtype", "sum_of_gradients"]

logger = logging.getLogger(__name__)

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# How many times as fast bf16 has to be: less is not worth the lost digits, and may be chance.
_LEAST_GAIN = 1.2


def fastest_dtype(device: str) -> str:
    """What ``SOLVER.AMP.DTYPE: auto`` means on a device of this machine.

    bf16 on GPUs that compute in it and fp16 on others. On a CPU bf16 if that has AVX512-BF16 or AMX
    and is measured to be faster, else fp32: there are CPUs whose bf16 takes twice float32's time.
    """
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if torch.device(device).type == "cpu" and _cpu_has_bf16() and _bf16_gain() > _LEAST_GAIN:
        return "bf16"
    return "fp32"


def _cpu_has_bf16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = [getattr(torch.cpu, name) for name in names if hasattr(torch.cpu, name)]
    if checks:
        return any(check() for check in checks)
    try:  # an older torch; on Linux
        with open("/proc/cpuinfo") as stream:
            flags = next(line for line in stream if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@functools.lru_cache(maxsize=1)
def _bf16_gain() -> float:
    """How many times as fast as in float32 a convolution of a detector's head is in bf16 here."""

    def seconds(dtype: torch.dtype) -> float:
        weight = torch.ones(64, 64, 3, 3, dtype=dtype, requires_grad=True)
        image = torch.ones(4, 64, 32, 32, dtype=dtype, requires_grad=True)
        start = time.perf_counter()
        torch.nn.functional.conv2d(image, weight, padding=1).float().sum().backward()
        return time.perf_counter() - start

    # By turns, and the best of each, so that other work on the machine meets both.
    pairs = [(seconds(torch.float32), seconds(torch.bfloat16)) for _ in range(6)][1:]
    full, half = map(min, zip(*pairs))
    return full / half


class Precision:
    """Autocast's type and, for float16, the gradient scaler.

    * ``fp32``: neither; the step pays nothing.
    * ``bf16``: autocast, on CUDA and on CPU. It has float32's range and needs no scaler.
    * ``fp16``: autocast and a gradient scaler, on CUDA only.
    * ``auto``: see :func:`fastest_dtype`. What it has become is part of the state: a run that is
      resumed on another machine goes on in the numbers it began with.
    """

    @configurable
    def __init__(self, *, dtype: str = "fp32", device: str = "cpu"):
        if dtype not in ("fp32", "auto", *_DTYPES):
            raise ValueError(f"The type of numbers is '{dtype}'; choose fp16 or bf16, or auto.")
        self.device = torch.device(device).type
        if dtype == "fp16" and self.device != "cuda":
            raise ValueError(
                f"fp16 autocast needs a CUDA device, not '{self.device}'; set the type to auto or "
                "bf16 (SOLVER.AMP.DTYPE), which run on CPU too."
            )
        self._is_auto = dtype == "auto"
        self._set(fastest_dtype(device) if self._is_auto else dtype)
        if self._is_auto:
            logger.info(f"Numbers of the forward pass (SOLVER.AMP.DTYPE auto): {self.dtype}.")

    def _set(self, dtype: str) -> None:
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(self.device) if dtype == "fp16" else None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        return {
            "dtype": cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "fp32",
            "device": cfg.MODEL.DEVICE,
        }

    def autocast(self) -> ContextManager:
        """The context of the forward pass."""
        if self.dtype == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=_DTYPES[self.dtype])

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients in their own size, so that hooks and clipping see the true ones."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def state_dict(self) -> Dict[str, Any]:
        scaler = {} if self.scaler is None else self.scaler.state_dict()
        return {"dtype": self.dtype, **scaler}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        saved = dict(state)
        dtype = saved.pop("dtype", self.dtype)
        if self._is_auto and dtype != self.dtype:
            if dtype == "fp16" and self.device != "cuda":
                logger.warning(
                    f"The run was begun in fp16, which needs a GPU: now in {self.dtype}."
                )
            else:
                logger.info(f"The run began in {dtype} and continues in it.")
                self._set(dtype)
        if self.scaler is not None and saved:
            self.scaler.load_state_dict(saved)


class GlobalNormClipper:
    """Scale all gradients by one factor so that their joint norm is at most ``max_norm``.

    Detectron2's clipping looks at one parameter at a time, which changes the gradient's direction.
    """

    TYPES = ("global_norm", "full_model")

    def __init__(self, max_norm: float, norm_type: float = 2.0):
        if not max_norm > 0:
            raise ValueError(f"CLIP_GRADIENTS.CLIP_VALUE is {max_norm}; it must be above 0.")
        self.max_norm, self.norm_type = max_norm, norm_type

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Optional["GlobalNormClipper"]:
        """The clipper if the config asks for this kind, else None (then the optimiser clips)."""
        clip = cfg.SOLVER.CLIP_GRADIENTS
        if not clip.ENABLED or clip.CLIP_TYPE not in cls.TYPES:
            return None
        return cls(clip.CLIP_VALUE, clip.NORM_TYPE)

    def __call__(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Clip in place; returns the norm before clipping, still on its device."""
        parameters: List[torch.Tensor] = _parameters(optimizer.param_groups)
        return torch.nn.utils.clip_grad_norm_(parameters, self.max_norm, self.norm_type)


def sum_of_gradients(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """The sum of all gradients, still on its device: not finite if one of them is not.

    A tenth of the time that the largest absolute value takes on a CPU, and it overflows later than
    a sum of squares.
    """
    parameters = _parameters(optimizer.param_groups)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    return torch.stack([g.sum(dtype=torch.float32) for g in gradients]).sum()


def _parameters(groups: Iterable[Dict[str, Any]]) -> List[torch.Tensor]:
    return [parameter for group in groups for parameter in group["params"]]
