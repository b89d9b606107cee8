"""Temporal consistency: where nothing moved, keep part of what was shown of the last frame.

Starting the sampler from that latent, with noise added again, was measured too and is worse
(docs/video.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Where two latents differ by this (root mean square over the channels), the weight falls to 1/e.
_NOISE = 0.05
# Mean square difference over the variances' sum: neighbouring frames of M3SVD at 6 Hz stay below
# 0.06, different scenes lie above 0.5.
_CUT = 0.25


class Memory:
    """Remembers the fused latent of the last frame of one stream, and what was shown with it.

    It keeps them in tensors that stay in their places, and branches on no value, so that a CUDA
    graph can hold `carry`.
    """

    def __init__(self) -> None:
        self._before: list[Tensor] = []
        self._valid = torch.zeros((), dtype=torch.bool)
        """Whether `_before` is of a last frame of this stream, a boolean on the same device."""

    def forget(self) -> None:
        """Forget the last frame, so that the next one begins a new stream."""
        with torch.inference_mode():  # in which it may have been made
            self._valid.zero_()

    def carry(
        self, fused: Tensor, weight: float, maps: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the latent and the maps to show: those of the last frame mixed into this one's.

        A frame of another size or another scene, and one with values that are not finite, is shown
        as it is. Frames shown at weight 0 are not remembered.

        Parameters
        ----------
        fused
            z0_f of this frame, (1, 8, h, w) in [-1, 1].
        weight
            Of the last frame where nothing moved, 0 to 1.
        maps
            What else is shown of this frame, (1, C, H, W); None if nothing is.
        """
        if not weight:
            self.forget()
            return fused, maps
        now = [fused] if maps is None else [fused, maps]
        if [each.shape for each in self._before] != [each.shape for each in now]:
            self._before = [torch.zeros_like(each) for each in now]
            self._valid = torch.zeros((), dtype=torch.bool, device=fused.device)
        # Chosen and not multiplied: what is not finite in the last frame must not come back.
        is_new = ~self._valid | is_cut(self._before[0], fused)
        share = unmoved(self._before[0], fused, weight)
        shown = []
        for kept, own in zip(self._before, now, strict=True):
            size = (own.shape[-2], own.shape[-1])
            old = functional.interpolate(share, size=size, mode="bilinear")
            shown.append(torch.where(is_new, own, torch.lerp(own, kept, old)))
            kept.copy_(shown[-1])
        self._valid.fill_(1)
        return shown[0], None if maps is None else shown[1]

    def saved(self) -> list[Tensor]:
        """Return copies of what it holds, for `restore`."""
        return [each.clone() for each in (self._valid, *self._before)]

    def restore(self, saved: list[Tensor]) -> None:
        """Hold again what was saved; what has come since is forgotten."""
        self.forget()
        for kept, each in zip((self._valid, *self._before), saved, strict=False):
            kept.copy_(each)


def unmoved(before: Tensor, fused: Tensor, weight: float) -> Tensor:
    """Return how much of the last frame to show, (1, 1, h, w): `weight` where nothing moved.

    Where the two latents differ by more than noise explains, it falls towards 0 as a Gaussian of
    the difference. The difference is first averaged over 3 x 3 latents, which removes noise but not
    motion.
    """
    change = functional.avg_pool2d(before - fused, 3, 1, 1, count_include_pad=False)
    size = change.square().mean(dim=1, keepdim=True) / _NOISE**2
    return weight * torch.exp(-size)


def is_cut(before: Tensor, fused: Tensor) -> Tensor:
    """Whether two latents (1, 8, h, w) show different scenes, a boolean without dimensions.

    They do if they differ too much for how much each varies; see `_CUT`. Both are compared as 6 x 8
    averages, which noise hardly changes. The answer is True for values that are not finite.
    """
    a, b = (functional.adaptive_avg_pool2d(latent, (6, 8)) for latent in (before, fused))
    spread = (a.var(dim=(2, 3)) + b.var(dim=(2, 3))).mean()
    return ~((a - b).square().mean() < _CUT * spread)
