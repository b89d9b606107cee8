"""Temporal consistency: a steady light, and, where nothing moved, part of the last frame.

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
# How much of the light before is kept from one frame to the next: a third of a second at 30 Hz
# makes two thirds of a change, about as long as a camera's own exposure takes.
_STEADY = 0.9


class _Kept:
    """Tensors of the last frame, in their places, and whether it is one of this stream.

    Nothing here branches on a value, so that a CUDA graph can hold it.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.valid = torch.zeros((), dtype=torch.bool)

    def make_room(self, now: list[Tensor]) -> None:
        """Begin anew where this frame's tensors have other shapes."""
        if [each.shape for each in self.tensors] != [each.shape for each in now]:
            self.tensors = [torch.zeros_like(each) for each in now]
            self.valid = torch.zeros((), dtype=torch.bool, device=now[0].device)

    def keep(self, shown: list[Tensor]) -> None:
        for kept, each in zip(self.tensors, shown, strict=True):
            kept.copy_(each)
        self.valid.fill_(1)

    def forget(self) -> None:
        with torch.inference_mode():  # in which it may have been made
            self.valid.zero_()


class Memory:
    """Remembers of the last frame of one stream how light it was, and what was shown of it.

    Of a frame of another size or another scene, and of one with values that are not finite, nothing
    is carried over.
    """

    def __init__(self) -> None:
        self._light, self._shown = _Kept(), _Kept()

    def forget(self) -> None:
        """Forget the last frame, so that the next one begins a new stream."""
        self._light.forget()
        self._shown.forget()

    def steady(self, fused: Tensor, image: Tensor, restored: Tensor) -> Tensor:
        """Return the restored picture in a light that changes slowly.

        In smoke Ψ cannot know how light the scene behind is, and guesses it anew for each frame.
        Only the mean of each colour changes: no detail is lost, and nothing leaves a trail.

        Parameters
        ----------
        fused
            z0_f of this frame, (1, 8, h, w) in [-1, 1].
        image, restored
            The frame and D(z0_ψ), (1, 3, H, W) in [0, 1].
        """
        # Of every fourth pixel of every fourth row, which tells it as well in less time.
        light = (restored[..., ::4, ::4] - image[..., ::4, ::4]).mean(dim=(2, 3), keepdim=True)
        self._light.make_room([fused, light])
        before, kept = self._light.tensors
        is_new = ~self._light.valid | is_cut(before, fused)
        steady = torch.where(is_new, light, torch.lerp(light, kept, _STEADY))
        self._light.keep([fused, steady])
        return (restored + (steady - light)).clamp(0.0, 1.0)

    def carry(
        self, fused: Tensor, weight: float, maps: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the latent and the maps to show: those of the last frame mixed into this one's.

        Frames shown at weight 0 are not remembered.

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
            self._shown.forget()
            return fused, maps
        now = [fused] if maps is None else [fused, maps]
        self._shown.make_room(now)
        before = self._shown.tensors
        # Chosen and not multiplied: what is not finite in the last frame must not come back.
        is_new = ~self._shown.valid | is_cut(before[0], fused)
        share = unmoved(before[0], fused, weight)
        shown = []
        for kept, own in zip(before, now, strict=True):
            size = (own.shape[-2], own.shape[-1])
            old = functional.interpolate(share, size=size, mode="bilinear")
            shown.append(torch.where(is_new, own, torch.lerp(own, kept, old)))
        self._shown.keep(shown)
        return shown[0], None if maps is None else shown[1]

    def saved(self) -> list[list[Tensor]]:
        """Return copies of what it holds, for `restore`."""
        both = (self._light, self._shown)
        return [[each.clone() for each in (kept.valid, *kept.tensors)] for kept in both]

    def restore(self, saved: list[list[Tensor]]) -> None:
        """Hold again what was saved; what has come since is forgotten."""
        self.forget()
        for kept, tensors in zip((self._light, self._shown), saved, strict=True):
            for own, each in zip((kept.valid, *kept.tensors), tensors, strict=False):
                own.copy_(each)


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
