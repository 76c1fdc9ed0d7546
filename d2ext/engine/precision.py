"""Number formats of a training step, and clipping of all gradients together."""

import contextlib
import math
from typing import Any, ContextManager, Dict, Iterable, List, Optional

import torch
from detectron2.config import CfgNode, configurable

__all__ = ["GlobalNormClipper", "Precision", "largest_gradient"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Precision:
    """Autocast's type and, for float16, the gradient scaler.

    * ``fp32``: neither; the step pays nothing.
    * ``bf16``: autocast, on CUDA and on CPU. It has float32's range and needs no scaler.
    * ``fp16``: autocast and a gradient scaler, on CUDA only.
    """

    @configurable
    def __init__(self, *, dtype: str = "fp32", device: str = "cpu"):
        if dtype not in ("fp32", *_DTYPES):
            raise ValueError(f"SOLVER.AMP.DTYPE is '{dtype}'; choose fp16 or bf16.")
        self.dtype, self.device = dtype, torch.device(device).type
        if dtype == "fp16" and self.device != "cuda":
            raise ValueError(
                f"fp16 autocast needs a CUDA device, not '{self.device}'; "
                "set SOLVER.AMP.DTYPE to bf16, which runs on CPU too."
            )
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
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


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


def largest_gradient(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """The largest absolute value among all gradients, still on its device; NaN if one is NaN."""
    parameters = _parameters(optimizer.param_groups)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    # The norm of squares overflows where no gradient does.
    return torch.stack([n.float() for n in torch._foreach_norm(gradients, math.inf)]).max()


def _parameters(groups: Iterable[Dict[str, Any]]) -> List[torch.Tensor]:
    return [parameter for group in groups for parameter in group["params"]]
