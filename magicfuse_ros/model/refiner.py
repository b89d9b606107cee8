"""R: from the outcome of sampling, what is warm, an infrared that follows the frame, and classes.

The paper has no such part: there heat is in MagImg because D(z0_f) is, in the place of what stood
there. R keeps the two apart. From the frame and the latents it finds how surely a person or vehicle
is warm, and how the infrared follows from the frame locally, as gain·luminance + offset, at half of
the model's resolution. Enlarged, these change slowly, and edges are where the frame has them: it is
the fast guided filter (He and Sun, 2015) with coefficients that a network gives.

S's classes lie on the latent's grid, in which a pole or a person far away is narrower than a cell,
and S has learned what things look like from hundreds of pictures. R looks at the frame through a
trunk that has seen a million, and finds classes at half of the frame's size. It does not see S's:
where both are wrong, they are wrong for reasons of their own, and their logits together are right
more often than either's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model.autoencoder import Decoder
from magicfuse_ros.model.config import RefinerConfig
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.trunk import TRUNK_CHANNELS, Trunk

STRIDE = 4
"""Image pixels per latent position, along each axis: the size of the trunk's second level."""

_LUMA = (0.299, 0.587, 0.114)
# What S's logits count against R's. S is surer than it is right, of people and vehicles most: by
# half of it every class of MSRS, RoadScene and CamVid is found as well as by all, or better.
_TRUST = 0.5


class Maps(NamedTuple):
    """What R finds at half of the model's resolution; each is (B, 1, H/2, W/2).

    Attributes
    ----------
    infrared_gain, infrared_offset
        The infrared is infrared_gain·luminance(frame) + infrared_offset.
    heat
        How surely a warm person or vehicle is here, 0 to 1.
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


class _Head(nn.Module):
    """From what R knows on the latent's grid to planes of half of the image's size.

    Parameters
    ----------
    known, seen
        Channels on the latent's grid, and of what the trunk sees at half of the image's size.
    width
        Channels inside, at half of the image's size.
    planes
        How many come out.
    """

    def __init__(self, known: int, seen: int, width: int, planes: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(known, width * (STRIDE // 2) ** 2, 1)
        self.look = nn.Conv2d(width + seen, width, 3, padding=1)
        self.outputs = nn.Conv2d(width, planes, 1)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Return (B, planes, H/2, W/2) for (B, known, h, w) and (B, seen, H/2, W/2)."""
        own = functional.pixel_shuffle(functional.relu(self.spread(x)), STRIDE // 2)
        planes: Tensor = self.outputs(functional.relu(self.look(torch.cat([own, seen], dim=1))))
        return planes


class Refiner(nn.Module):
    """R: a trunk that looks at the frame and at what Ψ made of it, and a way back up.

    On the way up, at the latent's size, the sampler's latents join in.
    """

    def __init__(self, config: RefinerConfig, latent_channels: int, labels: LabelSet) -> None:
        super().__init__()
        self.config, self._objects, classes = config, labels.object_ids(), len(labels)
        widths, known = config.widths, 3 * latent_channels
        self.trunk = Trunk(levels=len(widths) + 2, inputs=2)
        seen, *skips, last = TRUNK_CHANNELS[: len(widths) + 2]
        # What the whole picture is like: night and day are told by it.
        self.scene = nn.Conv2d(last, last, 1)
        below = (*widths[1:], last)
        at_latents = (known, *(0 for _ in widths[1:]))
        self.merges = nn.ModuleList(
            nn.Conv2d(skip + low + more, width, 1)
            for skip, low, more, width in zip(skips, below, at_latents, widths, strict=True)
        )
        self.ups = nn.ModuleList(_Block(width) for width in widths)
        self.decode = nn.Conv2d(latent_channels, 3 * STRIDE**2, 1)
        about = (widths[0] + known, seen, config.head_width)
        self.head = _Head(*about, len(Maps._fields) + classes)
        self.more_classes = nn.ModuleDict(
            {name: _Head(*about, len(LabelSet.load(name))) for name in config.more_labels}
        )
        # It begins with what Φ's latent shows, with S's classes, and without heat.
        with torch.no_grad():
            self.head.outputs.bias[Maps._fields.index("heat")] = -3.0  # type: ignore[index]

    @property
    def is_new(self) -> bool:
        """Whether nothing was trained yet."""
        return not self.head.outputs.weight.any()

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
            (B, 3, H/2, W/2), which `split_maps` names.
        logits
            (B, classes, H/2, W/2): R's own with a share of S's; or those of the label set that the
            config names.
        """
        known = torch.cat([z0_psi, z0_phi, z0_fused], dim=1)
        restored = functional.pixel_shuffle(self.decode(z0_psi), STRIDE)
        seen, *skips, x = self.trunk(torch.cat([image, restored], dim=1))
        x = x + self.scene(x.mean(dim=(2, 3), keepdim=True))
        skips[0] = torch.cat([skips[0], known], dim=1)
        for merge, up, skip in reversed(list(zip(self.merges, self.ups, skips, strict=True))):
            x = functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = up(merge(torch.cat([skip, x], dim=1)))
        x = torch.cat([functional.relu(x), known], dim=1)
        found = self.head(x, seen)
        half = (found.shape[-2], found.shape[-1])
        gain, infrared, heat = torch.split(found[:, : len(Maps._fields)], 1, dim=1)
        logits = _TRUST * enlarged(state, half) + found[:, len(Maps._fields) :]
        # Warm, if it is somebody, and somebody: two answers that seldom are wrong together.
        heat = heat.sigmoid()
        if self._objects:
            shares = logits.softmax(dim=1)
            # Plane by plane: a list of indices would come from the CPU, see `luminance`.
            objects = torch.cat([shares[:, i : i + 1] for i in self._objects], dim=1)
            heat = heat * objects.sum(dim=1, keepdim=True)
        light = luminance(functional.avg_pool2d(image, 2))
        offset = infrared + self._smooth(z0_phi) - gain * light
        if self.config.labels:
            shown: Tensor = self.more_classes[self.config.labels](x, seen)
        else:
            shown = logits
        return torch.cat([gain, offset, heat], dim=1), shown

    def _smooth(self, latent: Tensor) -> Tensor:
        """Return the luminance of what latents show, without the grid of their patches."""
        patches = self.decode(latent).mean(dim=1, keepdim=True)
        around = functional.avg_pool2d(patches, 3, 1, 1, count_include_pad=False)
        return functional.interpolate(around, scale_factor=STRIDE / 2.0, mode="bilinear")


def split_maps(maps: Tensor) -> Maps:
    """Name the maps of R, (B, 3, H/2, W/2)."""
    return Maps(*torch.split(maps, 1, dim=1))


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
