"""Guided loss scale (Chen et al., TIP 2021): the class loss takes the size of the box loss.

Shapes: k losses of a head, the class loss and its guides.
"""

from typing import Any, Dict, Sequence

import torch
from torch import nn

from d2ext.ops.reduce import reduce_mean, world_size
from d2ext.ops.sampling_free import frozen_ratio, guided_ratio, sigma_weighted

from .recording import Recording

__all__ = ["GuidedScale"]


class GuidedScale(Recording, nn.Module):
    """The guide of a :class:`Criterion`: ``L_cls' = w r L_cls`` with ``r = mean(guides) / L_cls``.

    r is a constant for autograd, so that nothing flows into the guides. As the scaled class loss
    equals w times the guides by construction and says nothing about learning, r and the class loss
    before scaling are kept in ``record``, under ``guided/<place>/``, while it is ``recording``.
    """

    ratio: torch.Tensor
    iters: torch.Tensor

    def __init__(
        self,
        *,
        guides: Sequence[str] = ("box",),
        weight: float = 1.0,
        mode: str = "per_step",
        warmup: int = 100,
        learn_sigma: bool = False,
        sync: bool = False,
        place: str = "dense",
    ):
        """
        Args:
            guides: names of the losses that the class loss follows.
            weight: w.
            mode: "per_step", a new r in every step; or "frozen", r of step number ``warmup``,
                averaged over ranks, from then on.
            warmup: steps with a new r, in mode "frozen".
            learn_sigma: weigh the class loss and its guides by learned uncertainties; only in mode
                "frozen". Adds a loss "sigma", which may be negative.
            sync: form r of the losses' means over ranks. By default each rank has its own, as in
                the authors' code.
            place: "dense", "rpn" or "roi", for the names of what is recorded.
        """
        super().__init__()
        if mode not in ("per_step", "frozen"):
            raise ValueError(f"The mode of a guide is per_step or frozen, not '{mode}'.")
        if weight <= 0:
            raise ValueError(f"The weight of a guide must be positive, not {weight}.")
        if mode == "frozen" and warmup < 1:
            raise ValueError(f"The warmup of a guide must be 1 or more, not {warmup}.")
        if learn_sigma and mode != "frozen":
            raise ValueError(
                "learn_sigma needs the mode frozen: a ratio that follows the losses in each step "
                "undoes what the sigmas weigh."
            )
        self.guides = tuple(guides)
        self.weight = float(weight)
        self.mode = mode
        self.warmup = warmup
        self.sync = sync
        self.place = place
        if mode == "frozen":
            self.register_buffer("ratio", torch.zeros(()))
            self.register_buffer("iters", torch.zeros((), dtype=torch.int64))
        self.sigma = nn.Parameter(torch.ones(1 + len(self.guides))) if learn_sigma else None
        # What the buffer says, once it says that the ratio will not change any more. It is derived,
        # so that no step has to wait for the device to know.
        self._is_frozen = False

    def forward(self, losses: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        """
        Args:
            losses: "cls" and the guides among them, scalars in float32 or float64.

        Returns:
            The same names with "cls" scaled; with ``learn_sigma`` the guides too, and "sigma".
        """
        missing = [name for name in self.guides if name not in losses]
        if missing:
            raise KeyError(
                f"The guide '{missing[0]}' is not among the losses {', '.join(losses)} of this "
                "head."
            )
        cls, guides = losses["cls"], [losses[name] for name in self.guides]
        # A validation pass computes losses too, but must not move the ratio.
        ratio = self._ratio(cls, guides, learning=self.training and torch.is_grad_enabled())
        self.record = self._numbers(cls, ratio) if self.recording else {}
        scaled = dict(losses)
        scaled["cls"] = self.weight * ratio * cls
        if self.sigma is not None:
            names = ("cls", *self.guides)
            weighted, penalty = sigma_weighted([scaled[name] for name in names], self.sigma)
            scaled.update(zip(names, weighted))
            scaled["sigma"] = penalty
        return scaled

    @torch.no_grad()
    def _ratio(
        self, cls: torch.Tensor, guides: Sequence[torch.Tensor], learning: bool
    ) -> torch.Tensor:
        losses = [cls.detach(), *(g.detach() for g in guides)]
        if self.sync and world_size() > 1 and not self._is_frozen:
            losses = list(reduce_mean(torch.stack(losses)).unbind())
        if self.mode == "per_step":
            return guided_ratio(losses[0], losses[1:])
        if not self._is_frozen and int(self.iters) >= self.warmup:
            self._is_frozen = True
        if self._is_frozen:
            return self.ratio.to(cls.dtype)
        return self._warm_up(losses, learning).to(cls.dtype)

    def _warm_up(self, losses: Sequence[torch.Tensor], learning: bool) -> torch.Tensor:
        ratio, iters = frozen_ratio(self.ratio, self.iters, losses, self.warmup)
        if not learning:
            return ratio
        self.iters.copy_(iters)
        if int(iters) == self.warmup:
            # The 2021 code does this again in every later step, to no effect.
            ratio = reduce_mean(ratio)
        self.ratio.copy_(ratio)
        return self.ratio

    @torch.no_grad()
    def restart(self) -> None:
        """Begin a new warm-up in mode "frozen": a ratio of loaded weights is of other losses."""
        if self.mode == "frozen":
            self.ratio.zero_()
            self.iters.zero_()
            self._is_frozen = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._is_frozen = False
        super()._load_from_state_dict(*args, **kwargs)

    def _numbers(self, cls: torch.Tensor, ratio: torch.Tensor) -> Dict[str, torch.Tensor]:
        return {
            f"guided/{self.place}/cls_raw": cls.detach(),
            f"guided/{self.place}/ratio": ratio.to(cls.dtype),
        }

    def extra_repr(self) -> str:
        return f"guides={self.guides}, weight={self.weight}, mode={self.mode}, sync={self.sync}"
