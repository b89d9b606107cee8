"""Harsh-condition degradations of a visible image: one function each, seeded.

Every effect takes an image ``(H, W, 3) uint8`` RGB in [0, 255], a ``strength`` in [0, 1] and a
``numpy.random.Generator``, and returns a new image of the same shape and type. Strength 0 returns
the image as it was (JPEG and defocus within rounding), strength 1 is the hardest case a driver
still meets. An effect draws the same random numbers whatever its strength, so that two strengths
under one seed differ in nothing but the strength.

Lengths in pixels and noise levels are meant for images of the model's resolution, about 320x240.
The effects are composed into recipes in `magicfuse_ros.training.degradation_mixes`.

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
from numpy.typing import NDArray

Rgb: TypeAlias = NDArray[np.uint8]
Plane: TypeAlias = NDArray[np.float32]
Effect: TypeAlias = Callable[[Rgb, float, np.random.Generator], Rgb]

# Drawing 200,000 normal deviates takes milliseconds, so noise is a window at a random offset into
# a fixed pool: as random as a network can notice, and a hundred times cheaper.
_POOL_SIZE = 1 << 22
# JPEG quality at strength 0 and 1.
_JPEG_QUALITY = (98.0, 10.0)


def low_light(image: Rgb, strength: float, rng: np.random.Generator) -> Rgb:
    """Underexposure with colour cast and the shot and read noise that come with few photons.

    Works on linear light (display value squared): up to 5 stops darker, of which the camera's
    gain wins back up to 1.5 together with the noise; colour cast up to 25 % a channel, biased to
    the warm and green lamps of streets; tone gamma 1 to 1.25.
    """
    stops = strength * rng.uniform(3.5, 5.0)
    gained = strength * rng.uniform(0.0, 1.5)
    cast = 1.0 + strength * rng.uniform((-0.10, -0.05, -0.25), (0.20, 0.20, 0.15))
    gamma = 1.0 + strength * rng.uniform(0.0, 0.25)
    shot = strength * rng.uniform(0.0004, 0.0025)
    read = strength * rng.uniform(0.0004, 0.0025)
    noise = _normal(image.shape, rng)

    exposure = 2.0**-stops
    table = (np.arange(256) / 255.0) ** (2.0 * gamma) * exposure
    light = cv2.LUT(image, (table[:, None] * cast).astype(np.float32)[None])
    cv2.multiply(noise, cv2.sqrt(light * np.float32(shot) + np.float32(read**2)), dst=noise)
    cv2.add(light, noise, dst=light)
    np.maximum(light, 0.0, out=light)
    return _u8(cv2.convertScaleAbs(cv2.sqrt(light), alpha=255.0 * 2.0 ** (gained / 2.0)))


def haze(image: Rgb, strength: float, rng: np.random.Generator) -> Rgb:
    """Haze or smoke by Koschmieder's law, I = J t + A (1 - t), with a pseudo-depth.

    The depth is a vertical ramp up to a random horizon (haze) mixed with a smooth random field
    (drifting smoke). Optical thickness beta reaches 3.2. The airlight A is grey with a faint
    tint, never darker than the scene's own bright parts allow: at night smoke is dark too.
    """
    height, width = image.shape[:2]
    beta = strength * rng.uniform(2.0, 3.2)
    smoke = rng.uniform(0.0, 1.0)
    horizon = rng.uniform(0.2, 0.55)
    grey = rng.uniform(0.62, 0.95)
    tint = rng.uniform(-0.05, 0.05, 3)
    field = _smooth_field(height, width, rng)

    ramp = np.clip((1.0 - np.linspace(0.0, 1.0, height)) / (1.0 - horizon), 0.0, 1.0) ** 1.5
    depth = (0.12 + 0.88 * ramp[:, None]).astype(np.float32) * np.float32(1.0 - smoke)
    depth = depth * (0.7 + 0.6 * field) + np.float32(smoke) * field
    transmission = cv2.exp(depth * np.float32(-beta))
    brightest = float(np.percentile(image[::8, ::8], 95)) / 255.0
    air = np.clip((grey + tint) * min(1.0, 0.35 + 0.8 * brightest), 0.0, 1.0) * 255.0
    veil = np.empty_like(image)
    veil[:] = np.rint(air).astype(np.uint8)
    return _u8(cv2.blendLinear(image, veil, transmission, 1.0 - transmission))


def noise(image: Rgb, strength: float, rng: np.random.Generator) -> Rgb:
    """Sensor noise on a well-exposed image: gaussian, signal-dependent and blotchy colour noise.

    Standard deviation up to 42 of 255 levels, shared out at random between noise that does not
    depend on the signal, noise that grows with its square root, and low-frequency chroma noise.
    """
    sigma = strength * rng.uniform(22.0, 42.0)
    poisson = rng.uniform(0.0, 1.0)
    colour = rng.uniform(0.0, 0.6)
    monochrome = rng.uniform(0.0, 0.5)
    grain = _normal(image.shape, rng)
    height, width = image.shape[:2]
    blotch = cv2.resize(_normal((height // 3 + 1, width // 3 + 1, 3), rng), (width, height))

    if monochrome > 0.25:  # a mono sensor, or one whose ISP removed the chroma
        grain[:] = grain[..., :1]
    level = np.sqrt(np.arange(256) / 128.0) * poisson + (1.0 - poisson)
    sigma_of = (sigma * level).astype(np.float32)
    cv2.multiply(grain, cv2.LUT(image, sigma_of), dst=grain)
    cv2.scaleAdd(blotch, colour * sigma, grain, dst=grain)
    return _u8(cv2.add(image, grain, dtype=cv2.CV_8U))


def motion_blur(image: Rgb, strength: float, rng: np.random.Generator) -> Rgb:
    """Blur along a straight line of up to 15 pixels, mostly horizontal as when a vehicle turns."""
    length = 1.0 + strength * rng.uniform(7.0, 14.0)
    angle = rng.normal(0.0, 0.5)
    reach = math.ceil(length / 2.0)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for t in np.linspace(-(length - 1.0) / 2.0, (length - 1.0) / 2.0, 4 * reach + 1):
        x, y = reach + t * math.cos(angle), reach + t * math.sin(angle)
        x0, y0 = int(x), int(y)
        fx, fy = x - x0, y - y0
        kernel[y0, x0] += (1 - fx) * (1 - fy)
        kernel[y0, min(x0 + 1, 2 * reach)] += fx * (1 - fy)
        kernel[min(y0 + 1, 2 * reach), x0] += (1 - fx) * fy
        kernel[min(y0 + 1, 2 * reach), min(x0 + 1, 2 * reach)] += fx * fy
    return _convolve(image, kernel)


def defocus_blur(image: Rgb, strength: float, rng: np.random.Generator) -> Rgb:
    """Blur by a disc of radius up to 3.5 pixels with a soft edge."""
    radius = strength * rng.uniform(1.8, 3.5)
    reach = math.ceil(radius + 0.5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0.0, 1.0).astype(np.float32)
    return _convolve(image, kernel)


def low_contrast(image: Rgb, strength: float, rng: np.random.Generator) -> Rgb:
    """Contrast reduced to as little as 20 % about a random grey, with saturation lost alongside."""
    keep = 1.0 - strength * rng.uniform(0.55, 0.80)
    pivot = rng.uniform(70.0, 170.0)
    fade = strength * rng.uniform(0.0, 0.5)
    table = np.clip(pivot + (np.arange(256) - pivot) * keep, 0, 255)
    flat = _u8(cv2.LUT(image, np.rint(table).astype(np.uint8)))
    grey = cv2.cvtColor(cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _u8(cv2.addWeighted(flat, 1.0 - fade, grey, fade, 0.0))


def rain(image: Rgb, strength: float, rng: np.random.Generator) -> Rgb:
    """Rain streaks of two depths, brightening what is behind them, in a light veil of drizzle."""
    height, width = image.shape[:2]
    slant = rng.normal(0.0, 0.18)
    opacity = rng.uniform(0.55, 0.85)
    streaks = np.zeros((height, width), np.uint8)
    # (streaks per 1000 pixels at strength 1, length in pixels, brightness)
    for density, length, brightness in ((7.0, 11.0, 130), (1.6, 26.0, 220)):
        most = max(1, int(density * height * width / 1000.0))
        start = rng.uniform((-0.1, -0.1), (1.1, 1.1), (most, 2)) * (width, height)
        reach = length * rng.uniform(0.5, 1.5, most)
        count = int(most * strength)
        step = np.stack((slant * reach, reach), axis=1)
        lines = np.rint(np.stack((start, start + step), axis=1) * 16.0).astype(np.int32)[:count]
        cv2.polylines(streaks, list(lines), False, brightness, 1, cv2.LINE_AA, 4)
    streaks = _u8(cv2.blur(streaks, (2, 2)))
    alpha = cv2.LUT(streaks, (np.arange(256) / 255.0 * opacity).astype(np.float32))
    veil = np.float32(strength * 0.18)
    alpha = veil + (1.0 - veil) * alpha
    bright = min(255.0, 90.0 + float(np.percentile(image[::8, ::8], 95)) * 0.65)
    light = np.full_like(image, int(bright))
    return _u8(cv2.blendLinear(image, light, 1.0 - alpha, alpha))


def jpeg(image: Rgb, strength: float, rng: np.random.Generator) -> Rgb:
    """JPEG artefacts, quality 98 down to about 10."""
    first, last = _JPEG_QUALITY
    quality = first + (last - first) * math.sqrt(strength) * rng.uniform(0.9, 1.0)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, round(quality)))
    return _u8(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))


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


@functools.cache
def _pool() -> Plane:
    return np.random.default_rng(20260222).standard_normal(_POOL_SIZE, dtype=np.float32)


def _normal(shape: tuple[int, ...], rng: np.random.Generator) -> Plane:
    """Draw standard normal deviates of any shape, as a copy the caller may change."""
    size = math.prod(shape)
    if size > _POOL_SIZE // 2:
        return rng.standard_normal(shape, dtype=np.float32)
    offset = int(rng.integers(_POOL_SIZE - size))
    return np.array(_pool()[offset : offset + size]).reshape(shape)


def _smooth_field(height: int, width: int, rng: np.random.Generator) -> Plane:
    """Sum of three octaves of smooth noise, (H, W) float32 scaled to [0, 1]."""
    total = np.zeros((height // 4 + 1, width // 4 + 1), np.float32)
    size = (total.shape[1], total.shape[0])
    for cells, weight in ((3, 1.0), (6, 0.5), (12, 0.25)):
        coarse = rng.random((cells, cells), dtype=np.float32) * np.float32(weight)
        total += cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    total -= total.min()
    total /= total.max()
    return np.asarray(cv2.resize(total, (width, height)), np.float32)


def _convolve(image: Rgb, kernel: Plane) -> Rgb:
    kernel = kernel / kernel.sum()
    return _u8(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101))


def _u8(array: object) -> Rgb:
    return np.asarray(array, np.uint8)
