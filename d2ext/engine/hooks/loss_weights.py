"""The hook that weighs the losses: static weights by name, and weights that follow the losses.

It sees a dictionary of named losses between forward and backward and does not see the model, so any
model that Detectron2 can train is good for it.

Shapes: S observed losses (a classification and a box entry for each group), W recorded steps.
"""

import logging
from fnmatch import fnmatch
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from d2ext.config import construct, validate
from d2ext.ops.loss_weights import (
    AdaptiveLossWeight,
    DynamicWeightAverage,
    FAMOWeight,
    GradNormWeight,
    LossWeighting,
    UncertaintyWeight,
)
from d2ext.ops.reduce import reduce_later

from .base import HookBase
from .loss_groups import LossGroup, check_static_weights, find_groups, static_weights

__all__ = ["LossWeights", "build_loss_weights", "build_weighting"]

logger = logging.getLogger(__name__)

#: The state machine of each SOLVER.ALWA.METHOD.
_METHODS = {
    "alwa": AdaptiveLossWeight,
    "uncertainty": UncertaintyWeight,
    "dwa": DynamicWeightAverage,
    "famo": FAMOWeight,
    "gradnorm": GradNormWeight,
}


class LossWeights(HookBase):
    """Multiplies named losses by static and by adaptive weights before they are summed.

    Adaptive weights are measured on the losses after the static ones. They are numbers, not
    tensors: no gradient goes through them, and the gradient of a loss is scaled exactly.

    The numbers of a step are summed over the ranks with the trainer's own message at the end of
    the step (an earlier one of several micro-steps takes one of its own), and stay on the device;
    the host reads them when a window closes, i.e. when a weight may change. As the trainer calls
    :meth:`on_losses` in training steps only, no evaluation, validation loss or PreciseBN pass is
    ever counted. With gradient accumulation each micro-step counts as one.

    Args:
        static: weights by pattern of loss names.
        make_weighting: makes the state machine of a group; None: static weights only.
        groups: which losses are weighed against each other; see
            :func:`~d2ext.engine.hooks.loss_groups.find_groups`.
        sync: measure the mean over ranks, so that all ranks have the same weights; otherwise each
            has its own.
        layer: for weights that follow sizes of gradients, a name pattern of the parameters whose
            gradients are measured, in the last step of each window.
    """

    def __init__(
        self,
        *,
        static: Optional[Mapping[str, float]] = None,
        make_weighting: Optional[Callable[[], LossWeighting]] = None,
        groups: Sequence[str] = ("auto",),
        sync: bool = True,
        layer: str = "",
    ):
        self.static = dict(static or {})
        check_static_weights(self.static)
        self.make_weighting = make_weighting
        self.wanted = tuple(groups)
        self.sync = sync
        self.layer = layer
        # Weights that differ among ranks are saved by each rank.
        self.per_rank_state = not sync
        self.groups: Dict[LossGroup, LossWeighting] = {}
        self._factors: Dict[str, float] = {}
        self._static_names: Optional[tuple] = None
        self._pending: List[torch.Tensor] = []
        self._until_close = 1
        self._saved: Optional[Dict[str, Any]] = None
        self._warned: set = set()

    @property
    def weights(self) -> Dict[str, float]:
        """The adaptive weight of each loss that has one."""
        return {
            name: weight
            for group, machine in self.groups.items()
            for names, weight in zip((group.cls, group.box), machine.weights)
            for name in names
        }

    def on_losses(self, loss_dict: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        """Weigh the losses of a forward pass, and record them."""
        losses = dict(loss_dict)
        for name, weight in self._static(tuple(losses)).items():
            losses[name] = losses[name] * weight
        if self.make_weighting is None:
            return losses
        if not self.groups:
            self._find_groups(list(losses), self.make_weighting)
        raw = self._observe(losses)
        if self.layer:
            raw = torch.cat([raw, self._norms(losses, raw)])
        for name, weight in self.weights.items():
            if weight != 1.0:
                losses[name] = losses[name] * weight
        # After weighing: what closes a window changes the weights from the next step on.
        if self.sync and comm.get_world_size() > 1:
            reduce_later(raw, self._record_sum)
        else:
            self._record(raw)
        return losses

    def _record_sum(self, raw: torch.Tensor) -> None:
        self._record(raw / comm.get_world_size())

    def _record(self, raw: torch.Tensor) -> None:
        self._pending.append(raw)
        if len(self._pending) >= self._until_close:
            self._flush()

    def _static(self, names: tuple) -> Dict[str, float]:
        if names != self._static_names:
            # A model may leave out a loss in later steps; only at first is that a wrong pattern.
            first = self._static_names is None
            self._factors = static_weights(self.static, names, strict=first)
            self._static_names = names
        return self._factors

    def _find_groups(self, names: List[str], make: Callable[[], LossWeighting]) -> None:
        found = find_groups(self.wanted, names)
        self.groups = {group: make() for group in found}
        logger.info(
            "Adaptive loss weights: "
            + "; ".join(f"{g.name}: {' + '.join(g.cls)} / {' + '.join(g.box)}" for g in found)
        )
        self._restore()
        self._until_close = min(m.remaining for m in self.groups.values())

    @torch.no_grad()
    def _observe(self, losses: Dict[str, torch.Tensor]) -> torch.Tensor:
        """The groups' losses on this rank as one vector on the device: (S,), float32."""
        sums = []
        for group in self.groups:
            for side in (group.cls, group.box):
                missing = [name for name in side if name not in losses]
                if missing:
                    raise KeyError(
                        f"The loss {missing[0]}, which group '{group.name}' of SOLVER.ALWA.GROUPS "
                        f"needs, is missing in this step; its losses are {', '.join(losses)}."
                    )
                parts = [losses[name].detach().float().reshape(()) for name in side]
                sums.append(parts[0] if len(parts) == 1 else torch.stack(parts).sum())
        return torch.stack(sums)

    def _norms(self, losses: Dict[str, torch.Tensor], raw: torch.Tensor) -> torch.Tensor:
        """Sizes of the groups' gradients in the shared layer, (S,); zeros but before a close."""
        if len(self._pending) + 1 < self._until_close:
            return torch.zeros_like(raw)
        shared = shared_parameters(self.trainer.raw_model, self.layer)
        norms = []
        for group in self.groups:
            for side in (group.cls, group.box):
                total = torch.stack([losses[name].reshape(()) for name in side]).sum()
                grads = torch.autograd.grad(total, shared, retain_graph=True, allow_unused=True)
                found = [g.detach().float().flatten() for g in grads if g is not None]
                norms.append(torch.cat(found).norm() if found else raw.new_zeros(()))
        return torch.stack(norms)

    def _flush(self) -> None:
        """Hand the recorded steps to the state machines; the only host-device sync."""
        if self._pending:
            rows = torch.stack(self._pending).tolist()  # (W, S), or (W, 2 S) with norms
            size = 2 * len(self.groups)
            self._pending = []
            machine: Any
            for index, (group, machine) in enumerate(self.groups.items()):
                updates, windows = machine.num_updates, machine.num_windows
                watcher: Any = machine  # with a layer it is a rule that looks at norms
                for row in rows:
                    if self.layer:
                        watcher.observe_norms(*row[size + 2 * index : size + 2 * index + 2])
                    machine.observe(row[2 * index], row[2 * index + 1])
                if machine.num_windows != windows:
                    self._log(group, machine, fired=machine.num_updates != updates)
        self._until_close = min(m.remaining for m in self.groups.values())

    def _log(self, group: LossGroup, machine: LossWeighting, fired: bool) -> None:
        values = {"w_cls": machine.weights[0], "w_box": machine.weights[1]}
        values.update({"fired": float(fired), "updates": float(machine.num_updates)})
        values.update({k: v for k, v in machine.last_update.items() if k != "fired"})
        if has_event_storage():
            storage = get_event_storage()
            for name, value in values.items():
                storage.put_scalar(f"alwa/{group.name}/{name}", value, smoothing_hint=False)
        if machine.stuck and group.name not in self._warned:
            self._warned.add(group.name)
            logger.warning(
                f"The weight of {' + '.join(group.cls)} is {machine.weights[0]:.3g} and unlikely "
                "to rise again: since an early transient its statistics have stayed far below "
                "those of the box loss. SOLVER.ALWA.STATS_ON raw with MIN_WEIGHT 0.1 helps, and a "
                "START_ITER after the transient."
            )

    def state_dict(self) -> Dict[str, Any]:
        """Plain numbers, lists and strings. No communication: rank 0 alone may be asked."""
        if self.make_weighting is None:
            return {}
        if not self.groups:
            return self._saved or {}
        self._flush()
        return {
            "version": 1,
            "groups": {
                group.name: {**m.state_dict(), "losses": [list(group.cls), list(group.box)]}
                for group, m in self.groups.items()
            },
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Restore the weights, also inside of a window."""
        self._saved = state_dict or None
        if self.groups and self.make_weighting is not None:
            self._pending = []
            self.groups = {group: self.make_weighting() for group in self.groups}
            self._restore()
            self._until_close = min(m.remaining for m in self.groups.values())

    def _restore(self) -> None:
        if self._saved is None or self.make_weighting is None:
            return
        saved = self._saved.get("groups", {})
        for group, machine in self.groups.items():
            if group.name not in saved:
                logger.warning(
                    f"The checkpoint has no loss weights for group '{group.name}' (it has "
                    f"{', '.join(saved) or 'none'}); they start over."
                )
                continue
            state = saved[group.name]
            losses = [list(group.cls), list(group.box)]
            if state.get("losses", losses) != losses:
                before = " / ".join(" + ".join(side) for side in state["losses"])
                logger.warning(
                    f"The group '{group.name}' of the checkpoint weighs other losses ({before}). "
                    "The weight is kept and the window starts over."
                )
                state = {**state, "window_cls": [], "window_box": []}
            try:
                machine.load_state_dict(state)
            except ValueError as error:
                logger.warning(f"{error} The window starts over.")
                if state.get("kind") == type(machine).__name__:
                    machine.load_state_dict(state, strict=False)
        self._saved = None


def shared_parameters(model: torch.nn.Module, pattern: str) -> List[torch.nn.Parameter]:
    """The trained parameters whose names fit a pattern, for GradNorm."""
    found = [
        p for name, p in model.named_parameters() if p.requires_grad and fnmatch(name, pattern)
    ]
    if not found:
        raise ValueError(
            f"SOLVER.ALWA.GRADNORM_LAYER '{pattern}' fits no trained parameter of "
            f"{type(model).__name__}; give a name pattern of a layer that both losses share, e.g. "
            "backbone.*.weight."
        )
    return found


def build_weighting(cfg: CfgNode) -> LossWeighting:
    """The state machine that ``SOLVER.ALWA`` describes."""
    node = cfg.SOLVER.ALWA
    if node.METHOD == "alwa" and node.STATS_ON == "raw" and node.COMPOSE == "multiply":
        raise ValueError(
            "SOLVER.ALWA.STATS_ON raw with COMPOSE multiply shrinks the weight by Y/X again in "
            "every window, down to 0; use COMPOSE replace."
        )
    return construct(_METHODS[node.METHOD], cfg, "SOLVER.ALWA", part=node.METHOD)


def build_loss_weights(cfg: CfgNode) -> Optional[LossWeights]:
    """The hook for ``SOLVER.LOSS_WEIGHTS`` and ``SOLVER.ALWA``; None if both are off."""
    node = cfg.SOLVER.ALWA
    static = dict(cfg.SOLVER.LOSS_WEIGHTS)
    if not node.ENABLED and not static:
        return None
    validate(cfg, "SOLVER.ALWA")
    if node.ENABLED:
        build_weighting(cfg)  # refuses bad settings now, not in the first step
    return LossWeights(
        static=static,
        make_weighting=(lambda: build_weighting(cfg)) if node.ENABLED else None,
        groups=list(node.GROUPS),
        sync=node.SYNC == "mean",
        layer=node.GRADNORM_LAYER if node.ENABLED and node.METHOD == "gradnorm" else "",
    )
