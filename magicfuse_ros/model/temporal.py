"""Temporal consistency: the fused latent of the frame before, kept where nothing moved.

A start from that latent, re-noised, was measured too and is worse (docs/video.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Root mean square over the channels, of [-1, 1]: what differs by this is kept to 1/e.
_NOISE = 0.05
# Neighbouring frames of M3SVD at 6 Hz stay below 0.06, different scenes lie above 0.5.
_CUT = 0.25


class Memory:
    """The fused latent of the frame before, of one stream of frames."""

    def __init__(self) -> None:
        self._before: Tensor | None = None

    def forget(self) -> None:
        """Begin anew: the next frame has none before it."""
        self._before = None

    def carry(self, fused: Tensor, weight: float) -> Tensor:
        """Return the latent to show: as `carried_over` from the frame before, if it fits.

        A frame of another size or another scene, and one with values that are not finite, are shown
        as they are. Frames shown at weight 0 are not remembered.

        Parameters
        ----------
        fused
            z0_f of this frame, (1, 8, h, w) in [-1, 1].
        weight
            0 to 1.
        """
        before = self._before if weight else None
        if before is not None and before.shape == fused.shape and not is_cut(before, fused):
            fused = carried_over(before, fused, weight)
        self._before = fused if weight else None
        return fused


def carried_over(before: Tensor, fused: Tensor, weight: float) -> Tensor:
    """z0_f + k·(z0_f of before - z0_f), with k = weight where nothing moved.

    Where the two differ by more than noise does, k falls towards 0 as a Gaussian of the difference.
    It is averaged over 3 x 3 latents before its size is taken: noise averages out, motion does not.
    """
    change = functional.avg_pool2d(before - fused, 3, 1, 1, count_include_pad=False)
    size = change.square().mean(dim=1, keepdim=True) / _NOISE**2
    return torch.lerp(fused, before, weight * torch.exp(-size))


def is_cut(before: Tensor, fused: Tensor) -> bool:
    """Whether two latents (1, 8, h, w) show different scenes: they differ as much as each varies.

    Seen on 6 x 8 averages, which noise hardly changes. True also for values that are not finite.
    """
    a, b = (functional.adaptive_avg_pool2d(latent, (6, 8)) for latent in (before, fused))
    spread = (a.var(dim=(2, 3)) + b.var(dim=(2, 3))).mean()
    return not bool((a - b).square().mean() < _CUT * spread)
