"""Harsh-condition degradations of visible images: one function each, seeded, on any device.

Every effect takes images ``(B, H, W, 3) float32`` RGB in whole levels of [0, 255], a ``strength``
in [0, 1] for each, and a ``numpy.random.Generator``, and returns new images of the same shape and
levels. Strength 0 returns an image as it was (JPEG and defocus within rounding), strength 1 is the
hardest case a driver still meets. An effect draws the same random numbers whatever its strength, so
that two strengths under one seed differ in nothing but the strength.

This is the one definition: training applies it to a batch on its device, and
`magicfuse_ros.training.degradation_mixes.degrade` to one numpy image.

Lengths in pixels and noise levels are meant for images of the model's resolution, about 320x240.

Models: low light and noise are shot + read noise on linear light (Foi et al., "Practical
Poissonian-Gaussian noise modeling", 2008); haze is Koschmieder's law I = J t + A (1 - t),
t = exp(-beta d), with a pseudo-depth, since the data have none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from magicfuse_ros.training.jpeg import through_jpeg

Rgb: TypeAlias = NDArray[np.uint8]
Strengths: TypeAlias = NDArray[np.float64]
Effect: TypeAlias = Callable[[Tensor, Strengths, np.random.Generator], Tensor]

# Drawing 200,000 normal deviates takes milliseconds, so noise is a window at a random offset into
# a fixed pool: as random as a network can notice, and a hundred times cheaper.
_POOL_SIZE = 1 << 22
# JPEG quality at strength 0 and 1.
_JPEG_QUALITY = (98.0, 10.0)


def low_light(images: Tensor, strength: Strengths, rng: np.random.Generator) -> Tensor:
    """Underexpose, with a colour cast and the shot and read noise that come with few photons.

    Works on linear light (display value squared): up to 5 stops darker, of which the camera's
    gain wins back up to 1.5 together with the noise; colour cast up to 25 % a channel, biased to
    the warm and green lamps of streets; tone gamma 1 to 1.25.
    """
    count = len(images)
    stops = strength * rng.uniform(3.5, 5.0, count)
    gained = strength * rng.uniform(0.0, 1.5, count)
    cast = rng.uniform((-0.10, -0.05, -0.25), (0.20, 0.20, 0.15), (count, 3))
    cast = 1.0 + strength[:, None] * cast
    gamma = 1.0 + strength * rng.uniform(0.0, 0.25, count)
    shot = strength * rng.uniform(0.0004, 0.0025, count)
    read = strength * rng.uniform(0.0004, 0.0025, count)
    noise = _normal(images, images.shape[1:], rng)

    exposure, power, shot_of, read_of, gain = beside(
        images,
        2.0 ** -stops[:, None] * cast,
        2.0 * gamma,
        shot,
        read**2,
        255.0 * 2.0 ** (gained / 2),
    )
    light = (images / 255.0).pow_(power).mul_(exposure)
    noise = (light * shot_of).add_(read_of).sqrt_().mul_(noise)
    return levels(light.add_(noise).clamp_(min=0.0).sqrt_().mul_(gain))


def haze(images: Tensor, strength: Strengths, rng: np.random.Generator) -> Tensor:
    """Add haze or smoke by Koschmieder's law, I = J t + A (1 - t), with a pseudo-depth.

    The depth is a vertical ramp up to a random horizon (haze) mixed with a smooth random field
    (drifting smoke). Optical thickness beta reaches 3.2. The airlight A is grey with a faint
    tint, never darker than the scene's own bright parts allow: at night smoke is dark too.
    """
    count, height = images.shape[:2]
    beta = strength * rng.uniform(2.0, 3.2, count)
    smoke = rng.uniform(0.0, 1.0, count)
    horizon = rng.uniform(0.2, 0.55, count)
    grey = rng.uniform(0.62, 0.95, count)
    tint = rng.uniform(-0.05, 0.05, (count, 3))
    field = _smooth_field(images, rng)

    far = (1.0 - np.linspace(0.0, 1.0, height)) / (1.0 - horizon[:, None])
    ramp = torch.tensor(0.12 + 0.88 * np.clip(far, 0.0, 1.0) ** 1.5).to(field)[..., None, None]
    thickness, smoky, air = beside(images, -beta, smoke, grey[:, None] + tint)
    depth = ramp * (1.0 - smoky) * (0.7 + 0.6 * field) + smoky * field
    transmission = depth.mul_(thickness).exp_()
    air = (air * (0.35 + 0.8 / 255.0 * _brightest(images)).clamp_(max=1.0)).clamp_(0.0, 1.0)
    air = levels(air.mul_(255.0))
    return levels((images - air).mul_(transmission).add_(air))


def noise(images: Tensor, strength: Strengths, rng: np.random.Generator) -> Tensor:
    """Add a sensor's noise, as on a well-exposed image.

    Its standard deviation is up to 42 of 255 levels, shared out at random between noise that does
    not depend on the signal, noise that grows with its square root, and low-frequency chroma noise.
    """
    count, height, width = images.shape[:3]
    sigma = strength * rng.uniform(22.0, 42.0, count)
    poisson = rng.uniform(0.0, 1.0, count)
    colour = rng.uniform(0.0, 0.6, count)
    # A mono sensor, or one whose ISP removed the chroma.
    monochrome = rng.uniform(0.0, 0.5, count) > 0.25
    grain = _normal(images, images.shape[1:], rng)
    blotch = _resized(_normal(images, (height // 3 + 1, width // 3 + 1, 3), rng), (height, width))

    grows, steady, blotchy, mono = beside(
        images, sigma * poisson, sigma * (1.0 - poisson), colour * sigma, monochrome
    )
    grain = torch.where(mono > 0.0, grain[..., :1], grain)
    level = (images / 128.0).sqrt_().mul_(grows).add_(steady)
    return levels(level.mul_(grain).add_(blotch.mul_(blotchy)).add_(images))


def motion_blur(images: Tensor, strength: Strengths, rng: np.random.Generator) -> Tensor:
    """Blur along a straight line of up to 15 pixels, mostly horizontal as when a vehicle turns."""
    length = 1.0 + strength * rng.uniform(7.0, 14.0, len(images))
    angle = rng.normal(0.0, 0.5, len(images))
    reach = math.ceil(length.max() / 2.0)
    kernels = np.zeros((len(images), 2 * reach + 1, 2 * reach + 1))
    for kernel, own, turn in zip(kernels, length, angle, strict=True):
        t = np.linspace(-(own - 1.0) / 2.0, (own - 1.0) / 2.0, 4 * math.ceil(own / 2.0) + 1)
        x, y = reach + t * math.cos(turn), reach + t * math.sin(turn)
        x0, y0 = x.astype(int), y.astype(int)
        for ny, wy in ((y0, 1.0 - y + y0), (np.minimum(y0 + 1, 2 * reach), y - y0)):
            for nx, wx in ((x0, 1.0 - x + x0), (np.minimum(x0 + 1, 2 * reach), x - x0)):
                np.add.at(kernel, (ny, nx), wx * wy)
    return _convolve(images, kernels)


def defocus_blur(images: Tensor, strength: Strengths, rng: np.random.Generator) -> Tensor:
    """Blur by a disc of radius up to 3.5 pixels with a soft edge."""
    radius = (strength * rng.uniform(1.8, 3.5, len(images)))[:, None, None]
    reach = math.ceil(radius.max() + 0.5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return _convolve(images, np.clip(radius + 0.5 - np.hypot(x, y), 0.0, 1.0))


def low_contrast(images: Tensor, strength: Strengths, rng: np.random.Generator) -> Tensor:
    """Reduce contrast to as little as 20 % about a random grey, and saturation with it."""
    keep = 1.0 - strength * rng.uniform(0.55, 0.80, len(images))
    pivot = rng.uniform(70.0, 170.0, len(images))
    fade = strength * rng.uniform(0.0, 0.5, len(images))
    gain, offset, faded = beside(images, keep, pivot * (1.0 - keep), fade)
    flat = levels(images * gain + offset)
    return levels((grey_levels(flat) - flat).mul_(faded).add_(flat))


def rain(images: Tensor, strength: Strengths, rng: np.random.Generator) -> Tensor:
    """Draw streaks of rain at two depths, which brighten what is behind them, in light drizzle.

    The streaks are drawn by OpenCV, on the CPU: few samples have any.
    """
    count, height, width = images.shape[:3]
    slant = rng.normal(0.0, 0.18, count)
    opacity = rng.uniform(0.55, 0.85, count)
    streaks = np.zeros((count, height, width), np.uint8)
    # (streaks per 1000 pixels at strength 1, length in pixels, brightness)
    for density, length, brightness in ((7.0, 11.0, 130), (1.6, 26.0, 220)):
        most = max(1, int(density * height * width / 1000.0))
        for plane, tilt, share in zip(streaks, slant, strength, strict=True):
            start = rng.uniform((-0.1, -0.1), (1.1, 1.1), (most, 2)) * (width, height)
            reach = length * rng.uniform(0.5, 1.5, most)
            step = np.stack((tilt * reach, reach), axis=1)
            lines = np.rint(np.stack((start, start + step), axis=1) * 16.0).astype(np.int32)
            seen = list(lines[: int(most * share)])
            cv2.polylines(plane, seen, False, brightness, 1, cv2.LINE_AA, 4)
    blurred = torch.tensor(np.stack([cv2.blur(plane, (2, 2)) for plane in streaks]))
    opaque, veil = beside(images, opacity / 255.0, strength * 0.18)
    alpha = veil + (1.0 - veil) * opaque * blurred[..., None].to(images)
    bright = (90.0 + 0.65 * _brightest(images)).clamp_(max=255.0).floor_()
    return levels((bright - images).mul_(alpha).add_(images))


def jpeg(images: Tensor, strength: Strengths, rng: np.random.Generator) -> Tensor:
    """Add the artefacts of JPEG, from quality 98 down to about 10."""
    first, last = _JPEG_QUALITY
    quality = first + (last - first) * np.sqrt(strength) * rng.uniform(0.9, 1.0, len(images))
    return through_jpeg(images, np.rint(quality))


# In the order in which light meets them: scene, optics, sensor, transmission.
EFFECTS: dict[str, Effect] = {
    "haze": haze,
    "rain": rain,
    "low_contrast": low_contrast,
    "motion_blur": motion_blur,
    "defocus_blur": defocus_blur,
    "low_light": low_light,
    "noise": noise,
    "jpeg": jpeg,
}


def grey_levels(images: Tensor) -> Tensor:
    """Return Y of BT.601 of (B, H, W, 3) as (B, H, W, 1), in whole levels."""
    luma = images[..., :1] * 0.299 + images[..., 1:2] * 0.587 + images[..., 2:] * 0.114
    return luma.round_()


@functools.cache
def _pool(device: torch.device) -> Tensor:
    rng = np.random.default_rng(20260222)
    return torch.from_numpy(rng.standard_normal(_POOL_SIZE, dtype=np.float32)).to(device)


def _normal(images: Tensor, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Draw standard normal deviates, (B, *shape) on the images' device."""
    count, size = len(images), math.prod(shape)
    if size > _POOL_SIZE // 2:
        return torch.from_numpy(rng.standard_normal((count, *shape), np.float32)).to(images.device)
    offsets = rng.integers(_POOL_SIZE - size, size=count).tolist()
    pool = _pool(images.device)
    return torch.stack([pool[offset : offset + size] for offset in offsets]).view(count, *shape)


def _smooth_field(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the sum of three octaves of smooth noise, (B, H, W, 1) scaled to [0, 1]."""
    count, height, width = images.shape[:3]
    total = images.new_zeros(())
    for cells, weight in ((3, 1.0), (6, 0.5), (12, 0.25)):
        coarse = torch.from_numpy(rng.random((count, 1, cells, cells), dtype=np.float32) * weight)
        size = (height // 4 + 1, width // 4 + 1)
        total = total + functional.interpolate(coarse.to(images), size=size, mode="bicubic")
    total -= total.amin(dim=(1, 2, 3), keepdim=True)
    total /= total.amax(dim=(1, 2, 3), keepdim=True)
    return _resized(total.permute(0, 2, 3, 1), (height, width))


def _convolve(images: Tensor, kernels: NDArray[np.float64]) -> Tensor:
    """Convolve each image with its kernel of odd sides, made to sum to 1."""
    side = kernels.shape[1]
    top, left = (int(np.argmax(kernels.any(axis=axes))) for axes in ((0, 2), (0, 1)))
    kernels = kernels[:, top : side - top, left : side - left]  # they are symmetric
    kernels /= kernels.sum(axis=(1, 2), keepdims=True)
    count, height, width = images.shape[:3]
    padded = images.permute(0, 3, 1, 2)
    for axis, side in ((2, height), (3, width)):
        reach = kernels.shape[axis - 1] // 2
        folded = np.pad(np.arange(side), reach, "reflect" if side > 1 else "edge")
        padded = padded.index_select(axis, torch.from_numpy(folded).to(images.device))
    weight = torch.tensor(kernels).to(images).repeat_interleave(3, dim=0)[:, None]
    flat = padded.reshape(1, 3 * count, *padded.shape[2:])
    blurred = functional.conv2d(flat, weight, groups=3 * count)
    return levels(blurred.view(count, 3, height, width).permute(0, 2, 3, 1).contiguous())


def _brightest(images: Tensor) -> Tensor:
    """Return the 95th percentile of the levels of each image, (B, 1, 1, 1)."""
    some = images[:, ::8, ::8].flatten(1)
    return torch.quantile(some, 0.95, dim=1)[:, None, None, None]


def _resized(fields: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge (B, h, w, C) bilinearly."""
    planes = functional.interpolate(fields.permute(0, 3, 1, 2), size=size, mode="bilinear")
    return planes.permute(0, 2, 3, 1)


def beside(images: Tensor, *values: NDArray[np.generic]) -> list[Tensor]:
    """Bring parameters (B,) or (B, C) to the images' device at once, as (B, 1, 1, C) each."""
    columns = [value.reshape(len(images), -1) for value in values]
    widths = [column.shape[1] for column in columns]
    together = torch.tensor(np.concatenate(columns, axis=1).astype(np.float32)).to(images.device)
    return [each[:, None, None] for each in torch.split(together, widths, dim=1)]


def levels(images: Tensor) -> Tensor:
    """Round to whole levels of [0, 255], in place."""
    return images.round_().clamp_(0.0, 255.0)
