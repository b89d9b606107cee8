"""R: from the outcome of sampling, what is warm, an infrared that follows the frame, and classes.

The paper has no such part: there heat is in MagImg because D(z0_f) is, in the place of what stood
there. R keeps the two apart. From the frame and the latents it finds how surely a person or vehicle
is warm, and how the infrared follows from the frame locally, as gain·luminance + offset, at the
model's resolution. Enlarged, these change slowly, and edges are where the frame has them: it is the
fast guided filter (He and Sun, 2015) with coefficients that a network gives.

S's classes lie on the latent's grid, in which a pole or a person far away is narrower than a cell.
R adds to S's logits what it sees of them in the frame, at half of the frame's size.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model.autoencoder import Decoder
from magicfuse_ros.model.config import RefinerConfig
from magicfuse_ros.model.labels import LabelSet

_LUMA = (0.299, 0.587, 0.114)


class Maps(NamedTuple):
    """What R finds at the model's resolution; each is (B, 1, H, W).

    Attributes
    ----------
    infrared_gain, infrared_offset
        The infrared is infrared_gain·luminance(frame) + infrared_offset.
    heat
        How surely a person or a vehicle is warm here, 0 to 1.
    """

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


class ClassHead(nn.Module):
    """From what R knows on the latent's grid to logits at half of the image's size.

    Parameters
    ----------
    known
        Channels on the latent's grid.
    width
        Channels at half of the image's size.
    classes
        How many it tells apart.
    stride
        Image pixels per latent position, along each axis; an even number.
    """

    def __init__(self, known: int, width: int, classes: int, stride: int) -> None:
        super().__init__()
        self._half = stride // 2
        self.spread = nn.Conv2d(known, width * self._half**2, 1)
        self.look = nn.Conv2d(width + 3 * 2**2, width, 3, padding=1)
        self.classes = nn.Conv2d(width, classes, 1)
        nn.init.zeros_(self.classes.weight)
        nn.init.zeros_(self.classes.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Return (B, classes, H/2, W/2) for (B, known, h, w) and the image (B, 3, H, W)."""
        own = functional.relu(functional.pixel_shuffle(self.spread(x), self._half))
        seen = torch.cat([own, functional.pixel_unshuffle(image, 2)], dim=1)
        logits: Tensor = self.classes(functional.relu(self.look(seen)))
        return logits


class Refiner(nn.Module):
    """R, a U-Net on the latent's grid with thin heads at the size of the image and at half of it.

    Parameters
    ----------
    stride
        Image pixels per latent position, along each axis; an even number.
    """

    def __init__(
        self, config: RefinerConfig, latent_channels: int, classes: int, stride: int
    ) -> None:
        super().__init__()
        self.config, self._stride = config, stride
        widths, known = config.widths, 3 * latent_channels + classes
        self.inputs = nn.Conv2d(3 * stride**2 + known, widths[0], 1)
        pairs = list(itertools.pairwise(widths))
        self.downs = nn.ModuleList(nn.Conv2d(fine, low, 3, 2, padding=1) for fine, low in pairs)
        self.levels = nn.ModuleList(
            nn.Sequential(*(_Block(width) for _ in range(count)))
            for width, count in zip(widths, config.blocks, strict=True)
        )
        # What the whole picture is like: night and day are told by it.
        self.scene = nn.Conv2d(widths[-1], widths[-1], 1)
        self.merges = nn.ModuleList(nn.Conv2d(fine + low, fine, 1) for fine, low in pairs)
        self.ups = nn.ModuleList(_Block(fine) for fine, _ in pairs)
        self.fine = nn.Conv2d(widths[0] + known, config.fine_width * stride**2, 1)
        self.mix = nn.Conv2d(config.fine_width + 3, config.fine_width, 3, padding=1)
        self.maps = nn.Conv2d(config.fine_width, len(Maps._fields), 3, padding=1)
        self.decode = nn.Conv2d(latent_channels, 3 * stride**2, 1)
        about = (widths[0] + known, config.class_width)
        self.classes = ClassHead(*about, classes, stride)
        self.more_classes = nn.ModuleDict(
            {
                name: ClassHead(*about, len(LabelSet.load(name)), stride)
                for name in config.more_labels
            }
        )
        # It begins with what Φ's latent shows, with S's classes, and without heat.
        nn.init.zeros_(self.maps.weight)
        nn.init.zeros_(self.maps.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.maps.bias[-1] = -3.0  # type: ignore[index]

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
        """Find what a sample shows.

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
        maps
            (B, 3, H, W), which `split_maps` names.
        logits
            (B, classes, H/2, W/2): those of S, enlarged, with what R adds to them; or R's own, of
            the label set that the config names.
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
        x = torch.cat([functional.relu(x), known], dim=1)
        fine = functional.relu(functional.pixel_shuffle(self.fine(x), self._stride))
        fine = functional.relu(self.mix(torch.cat([fine, image], dim=1)))
        gain, infrared, heat = self.maps(fine).split(1, dim=1)
        offset = infrared + self._smooth(z0_phi) - gain * luminance(image)
        if self.config.labels:
            logits: Tensor = self.more_classes[self.config.labels](x, image)
        else:
            more = self.classes(x, image)
            logits = enlarged(state, (more.shape[-2], more.shape[-1])) + more
        return torch.cat([gain, offset, heat], dim=1), logits

    def _smooth(self, latent: Tensor) -> Tensor:
        """Return the luminance of what latents show, without the grid of their patches."""
        patches = self.decode(latent).mean(dim=1, keepdim=True)
        around = functional.avg_pool2d(patches, 3, 1, 1, count_include_pad=False)
        return functional.interpolate(around, scale_factor=float(self._stride), mode="bilinear")


def split_maps(maps: Tensor) -> Maps:
    """Name the maps of R, (B, 3, H, W), the last of which is a logit."""
    gain, offset, heat = torch.split(maps, 1, dim=1)
    return Maps(gain, offset, heat.sigmoid())


def luminance(image: Tensor) -> Tensor:
    """Return Y of BT.601 of RGB (B, 3, H, W) as (B, 1, H, W)."""
    # Not with a tensor of weights: it would come from the CPU, which a CUDA graph cannot hold.
    red, green, blue = torch.split(image, 1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge maps (B, C, h, w) bilinearly to `size` (height, width)."""
    return functional.interpolate(maps, size=size, mode="bilinear")


def infrared_at(frame: Tensor, maps: Maps) -> Tensor:
    """Return the infrared (B, 1, H, W), not clipped, of an RGB frame of the maps' size."""
    return maps.infrared_gain * luminance(frame) + maps.infrared_offset
