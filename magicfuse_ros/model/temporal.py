"""Temporal consistency: where nothing moved, keep part of what was shown of the last frame.

Starting the sampler from that latent, with noise added again, was measured too and is worse
(docs/video.md).
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

# Where two latents differ by this (root mean square over the channels), the weight falls to 1/e.
_NOISE = 0.05
# Mean square difference over the variances' sum: neighbouring frames of M3SVD at 6 Hz stay below
# 0.06, different scenes lie above 0.5.
_CUT = 0.25


class Memory:
    """Remembers the fused latent of the last frame of one stream, and what was shown with it."""

    def __init__(self) -> None:
        self._before: tuple[Tensor, Tensor | None] | None = None

    def forget(self) -> None:
        """Forget the last frame, so that the next one begins a new stream."""
        self._before = None

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
        before, now = self._before if weight else None, (fused, maps)
        if before is not None and before[0].shape == fused.shape:
            now = carried(before, now, weight)
        self._before = now if weight else None
        return now


Shown: TypeAlias = tuple[Tensor, Tensor | None]
"""A frame's fused latent (1, 8, h, w), and what else is shown of it, (1, C, H, W)."""


def carried(before: Shown, now: Shown, weight: float) -> Shown:
    """Mix the last frame into this one; see `Memory.carry`. It branches on no value."""
    cut, share = is_cut(before[0], now[0]), unmoved(before[0], now[0], weight)
    # Chosen and not multiplied: what is not finite in the last frame must not come back.
    fused = torch.where(cut, now[0], torch.lerp(now[0], before[0], share))
    if now[1] is None or before[1] is None:
        return fused, now[1]
    size = (now[1].shape[-2], now[1].shape[-1])
    share = functional.interpolate(share, size=size, mode="bilinear")
    return fused, torch.where(cut, now[1], torch.lerp(now[1], before[1], share))


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
