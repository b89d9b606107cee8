"""R: from the outcome of sampling to pictures and masks at the camera's size.

Diffusion works on a small latent, whose pictures are soft. The frame itself is sharp, so R does not
paint: from the frame and the latents it finds how the restored picture and the infrared follow from
the frame locally, as a·frame + b, at the model's resolution. Enlarged, a and b change slowly, and
what is sharp in the frame stays sharp at any camera's size. This is the fast guided filter (He and
Sun, 2015) with coefficients that a network gives. The paper has no such part: there MagImg is
D(z0_f).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model.autoencoder import Decoder
from magicfuse_ros.model.config import RefinerConfig

_MAPS = [1, 3, 1, 1, 1]
# What its last layer finds before: gain, restored, infrared gain, infrared, heat, how much to keep.
_FOUND = [*_MAPS, 1]
_MOST_GAIN = 8.0
# How far heat lifts a pixel towards white: not at all up to the first level of heat, all the way
# from the second on.
_LIFT, _UNSURE, _SURE = 0.6, 0.3, 0.7
# Median luminances up to which a picture is dark, and from which it is not; how much is added then.
_DARK, _LIGHT, _EXPOSURE = 40.0 / 255.0, 60.0 / 255.0, 2.4
_LUMA = (0.299, 0.587, 0.114)


class Maps(NamedTuple):
    """What R finds at the model's resolution; each is (B, C, H, W).

    Attributes
    ----------
    gain, offset
        The restored picture is gain·frame + offset; one channel and three.
    infrared_gain, infrared_offset
        The infrared is infrared_gain·luminance(frame) + infrared_offset; one channel each.
    heat
        How surely a person or a vehicle is warm here, 0 to 1.
    """

    gain: Tensor
    offset: Tensor
    infrared_gain: Tensor
    infrared_offset: Tensor
    heat: Tensor


class _Block(nn.Module):
    """x + two 3×3 convolutions of x; without a norm, because R has to be fast."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        result: Tensor = x + self.second(functional.relu(self.first(functional.relu(x))))
        return result


class Refiner(nn.Module):
    """R, a U-Net on the latent's grid with a thin head at the size of the image.

    Parameters
    ----------
    stride
        Image pixels per latent position, along each axis.
    """

    def __init__(
        self, config: RefinerConfig, latent_channels: int, classes: int, stride: int
    ) -> None:
        super().__init__()
        self.config, self._stride = config, stride
        widths, known = config.widths, 3 * latent_channels + classes
        self.inputs = nn.Conv2d(3 * stride**2 + known, widths[0], 1)
        self.downs = nn.ModuleList(
            nn.Conv2d(before, after, 3, 2, padding=1)
            for before, after in itertools.pairwise(widths)
        )
        self.levels = nn.ModuleList(
            nn.Sequential(*(_Block(width) for _ in range(count)))
            for width, count in zip(widths, config.blocks, strict=True)
        )
        # What the whole picture is like: haze and darkness are told by it.
        self.scene = nn.Conv2d(widths[-1], widths[-1], 1)
        pairs = list(itertools.pairwise(widths))
        self.merges = nn.ModuleList(nn.Conv2d(fine + coarse, fine, 1) for fine, coarse in pairs)
        self.ups = nn.ModuleList(_Block(fine) for fine, _ in pairs)
        self.classes = nn.Conv2d(widths[0], 4 * classes, 3, padding=1)
        self.fine = nn.Conv2d(widths[0] + known, config.fine_width * stride**2, 1)
        self.mix = nn.Conv2d(config.fine_width + 3, config.fine_width, 3, padding=1)
        self.maps = nn.Conv2d(config.fine_width, sum(_FOUND), 3, padding=1)
        self.decode = nn.Conv2d(latent_channels, 3 * stride**2, 1)
        # It begins with what the latents show, the frame's detail and the masks as they are.
        for layer in (self.classes, self.maps):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.maps.bias[-2:] = -3.0  # type: ignore[index]

    def begin_with(self, decoder: Decoder) -> None:
        """Take over the linear path of D, so that training begins with pictures and not with noise.

        Raises
        ------
        ValueError
            D has no linear path.
        """
        if decoder.linear is None:
            raise ValueError("this D has no linear path; R needs autoencoder.linear_path")
        with torch.no_grad():  # D sees (z + 1) / 2
            half = decoder.linear.weight / 2.0
            self.decode.weight.copy_(half)
            self.decode.bias.copy_(decoder.linear.bias)  # type: ignore[union-attr,arg-type]
            self.decode.bias.add_(half.sum(dim=(1, 2, 3)))  # type: ignore[union-attr]

    def forward(
        self, image: Tensor, z0_psi: Tensor, z0_phi: Tensor, z0_fused: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refine the outcome of sampling.

        Parameters
        ----------
        image
            The degraded frame at the model's resolution, (B, 3, H, W) in [0, 1].
        z0_psi, z0_phi, z0_fused
            The sampler's last latents, (B, 8, h, w).
        state
            z^s, the logits at latent size, (B, classes, h, w).

        Returns
        -------
        maps, logits
            (B, 7, H, W), which `split_maps` names, and (B, classes, 2h, 2w).
        """
        # Unbounded logits would drown the latents; probabilities say the same.
        known = torch.cat([z0_psi, z0_phi, z0_fused, state.softmax(dim=1)], dim=1)
        x = self.inputs(torch.cat([functional.pixel_unshuffle(image, self._stride), known], dim=1))
        skips: list[Tensor] = []
        for index, level in enumerate(self.levels):
            if index:
                x = self.downs[index - 1](functional.relu(x))
            x = level(x)
            skips.append(x)
        x = x + self.scene(x.mean(dim=(2, 3), keepdim=True))
        for merge, up, skip in reversed(list(zip(self.merges, self.ups, skips, strict=False))):
            x = functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = up(merge(torch.cat([skip, x], dim=1)))
        x = functional.relu(x)
        logits = functional.interpolate(state, scale_factor=2.0, mode="bilinear")
        logits = logits + functional.pixel_shuffle(self.classes(x), 2)
        fine = functional.pixel_shuffle(self.fine(torch.cat([x, known], dim=1)), self._stride)
        fine = functional.relu(self.mix(torch.cat([functional.relu(fine), image], dim=1)))
        gain, restored, warm_gain, warm, heat, keep = torch.split(self.maps(fine), _FOUND, dim=1)
        gain = (gain + 1.0).clamp(0.0, _MOST_GAIN)
        restored = restored + functional.pixel_shuffle(self.decode(z0_psi), self._stride)
        restored = torch.lerp(restored, image, keep.sigmoid())  # a good frame is best left alone
        warm = warm + self._smooth(z0_phi)
        offsets = restored - gain * image, warm - warm_gain * luminance(image)
        return torch.cat([gain, offsets[0], warm_gain, offsets[1], heat], dim=1), logits

    def _smooth(self, latent: Tensor) -> Tensor:
        """Return the luminance of what latents show, without the grid of their patches."""
        patches = self.decode(latent).mean(dim=1, keepdim=True)
        around = functional.avg_pool2d(patches, 3, 1, 1, count_include_pad=False)
        return functional.interpolate(around, scale_factor=float(self._stride), mode="bilinear")


def split_maps(maps: Tensor) -> Maps:
    """Name the maps of R, (B, 7, H, W), the last of which is a logit."""
    found = Maps(*torch.split(maps, _MAPS, dim=1))
    return found._replace(heat=found.heat.sigmoid())


class Coefficients(NamedTuple):
    """A picture that is gain·frame + offset; (B, 1 or C, H, W) and (B, C, H, W)."""

    gain: Tensor
    offset: Tensor

    def applied(self, frame: Tensor) -> Tensor:
        """Return the picture, not clipped, of a frame (B, C, H, W) of the coefficients' size."""
        return self.gain * frame + self.offset


def enhanced(maps: Maps) -> Coefficients:
    """Return the restored picture, of an RGB frame."""
    return Coefficients(maps.gain, maps.offset)


def infrared(maps: Maps) -> Coefficients:
    """Return the imagined infrared, of a frame's luminance."""
    return Coefficients(maps.infrared_gain, maps.infrared_offset)


def lifted(maps: Maps) -> Coefficients:
    """Return MagImg, of an RGB frame: the restored picture, lifted towards white where it is hot.

    Adding light keeps edges, texture and colour, which replacing the picture would not.
    """
    light = _LIFT * ((maps.heat - _UNSURE) / (_SURE - _UNSURE)).clamp(0.0, 1.0)
    return Coefficients((1.0 - light) * maps.gain, (1.0 - light) * maps.offset + light)


def exposed(maps: Maps, image: Tensor) -> Maps:
    """Show a restored picture that is still dark as a longer exposure would.

    Where the median of its luminance is at most 40 of 255, dark parts become two to three times as
    bright and bright ones, such as lamps, stay as they are; from 60 on nothing changes.

    Parameters
    ----------
    image
        The frame that the maps were found in, (1, 3, H, W) in [0, 1].
    """
    restored = luminance(enhanced(maps).applied(image)).clamp(0.0, 1.0)
    median = restored[..., ::4, ::4].median()  # as near as can be told, in a fraction of the time
    longer = ((_LIGHT - median) / (_LIGHT - _DARK)).clamp(0.0, 1.0)
    if not bool(longer > 0.0):
        return maps
    around = functional.avg_pool2d(restored, 5, 1, 2, count_include_pad=False)
    brighter = 1.0 + _EXPOSURE * longer * (1.0 - around) ** 4
    return maps._replace(gain=brighter * maps.gain, offset=brighter * maps.offset)


def luminance(image: Tensor) -> Tensor:
    """Return Y of BT.601 of RGB (B, 3, H, W) as (B, 1, H, W)."""
    weights = image.new_tensor(_LUMA)[:, None, None]
    return (image * weights).sum(dim=1, keepdim=True)


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge maps (B, C, H, W) bilinearly to the camera's `size` (height, width)."""
    return functional.interpolate(maps, size=size, mode="bilinear")
