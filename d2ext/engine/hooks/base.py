"""The hook class with one more event than Detectron2's, and the registry of hooks by name."""

from typing import Any, Dict, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase as _UpstreamHookBase
from fvcore.common.registry import Registry

__all__ = ["HOOK_REGISTRY", "HookBase", "MeasuringHook", "build_registered_hooks"]

HOOK_REGISTRY = Registry("ENGINE_HOOK")
HOOK_REGISTRY.__doc__ = """
Hooks that a config may name in ``ENGINE.HOOKS``. A registered object is called with the config and
returns a hook, a list of hooks or None; every rank calls it.
"""


class HookBase(_UpstreamHookBase):
    """Detectron2's hook with :meth:`on_losses`.

    Any Detectron2 hook works with :class:`d2ext.engine.Trainer`; only a hook that looks at the
    losses before backward needs this class (or simply has a method of that name).
    """

    runs_last: bool = False
    """Run :meth:`after_step` after the hooks that are not marked so, whenever it was registered.
    A checkpoint written before another hook's ``after_step`` would miss what that hook changed."""

    per_rank_state: bool = False
    """Save the state of every rank, not of rank 0 alone. For state that differs among ranks.
    If only a part does, ``rank_state_dict`` returns that part; it is loaded behind rank 0's."""

    def on_losses(self, loss_dict: Dict[str, torch.Tensor]) -> Optional[Dict[str, torch.Tensor]]:
        """Called between forward and backward, outside of autocast.

        Args:
            loss_dict: the model's losses by name, raw tensors with their graph.

        Returns:
            The losses to backpropagate and log, or None to leave them as they are.
        """
        return None

    def load_state_dict(self, state_dict: Dict) -> None:
        """The counterpart of ``state_dict``; called only if that returned something."""


class MeasuringHook(HookBase):
    """A hook that measures the model now and then.

    Attributes:
        last_figures: what it measured last, by name; part of the state, so that a run that was
            killed after it still has them in the step that it finishes.
        measured_at: the iteration of that.
    """

    def __init__(self) -> None:
        self.last_figures: Dict[str, float] = {}
        self.measured_at = -1

    def state_dict(self) -> Dict[str, Any]:
        if self.measured_at < 0:
            return {}
        return {"figures": dict(self.last_figures), "measured_at": self.measured_at}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.last_figures = dict(state_dict["figures"])
        self.measured_at = state_dict["measured_at"]


def build_registered_hooks(cfg: CfgNode, names: List[str]) -> List[_UpstreamHookBase]:
    """Build the hooks named in ``ENGINE.HOOKS``, in order."""
    hooks: List[_UpstreamHookBase] = []
    for name in names:
        if name not in HOOK_REGISTRY:
            known = ", ".join(sorted(key for key, _ in HOOK_REGISTRY)) or "none"
            raise KeyError(
                f"ENGINE.HOOKS names '{name}', which is not registered (registered: {known}); "
                "import the module that registers it, for example with train_net.py --import."
            )
        built = HOOK_REGISTRY.get(name)(cfg)
        if built is not None:
            hooks.extend(built if isinstance(built, (list, tuple)) else [built])
    return hooks
