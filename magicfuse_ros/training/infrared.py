"""One common scale for infrared images of cameras that show heat on different scales.

Thermal sets differ in how they map heat to grey: MSRS leaves everything but people nearly black,
LLVIP is dark with mid-grey people, RoadScene (FLIR with automatic gain) fills the whole range with
a bright middle. A network that imagines infrared cannot know which camera was meant, so each
image, or each video as a whole, is brought to one scale:

1. linear: the 0.5 % and 99.8 % percentiles go to black and to `WHITE`, the gain capped at
   `MAX_GAIN` so that a scene without anything hot stays flat instead of showing its sensor noise;
2. a gamma, within `GAMMA_RANGE`, that brings the median of the result towards `MEDIAN`.

The map is monotone: what was hotter stays hotter. It depends on the image alone, not on which set
it came from, so a user's own thermal recordings land on the same scale without configuration.
The percentile 99.8 rather than 99 because people are about 1 % of the pixels and would saturate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MEDIAN = 0.20
WHITE = 0.96
MAX_GAIN = 3.0
GAMMA_RANGE = (0.85, 2.2)
_PERCENTILES = (0.5, 50.0, 99.8)


@dataclass(frozen=True)
class InfraredScale:
    """Monotone map from a camera's grey levels to the common scale."""

    # Grey levels, 0 to 255, that go to 0 and to `WHITE`; high > low.
    low: float
    high: float
    gamma: float  # exponent applied between them

    def __post_init__(self) -> None:
        if not self.low < self.high or not self.gamma > 0.0:
            raise ValueError(f"{self} is no scale; use low < high and gamma > 0")

    def apply(self, infrared: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map (H, W) uint8 grey levels to (H, W) uint8 on the common scale."""
        level = np.clip((np.arange(256) - self.low) / (self.high - self.low), 0.0, 1.0 / WHITE)
        table = np.clip(level**self.gamma * WHITE, 0.0, 1.0) * 255.0
        return np.asarray(cv2.LUT(infrared, np.rint(table).astype(np.uint8)), np.uint8)


def common_infrared_scale(images: Sequence[NDArray[np.uint8]]) -> InfraredScale:
    """Fit the scale to an image, or to the frames of one video together, each (H, W) uint8.

    Frames of one video belong together, because a scale for each would flicker. There must be at
    least one image.
    """
    if not images:
        raise ValueError("no infrared image to fit a scale to; pass at least one")
    counts = np.zeros(256)
    for image in images:
        counts += np.bincount(image.ravel(), minlength=256)
    share = np.cumsum(counts) / counts.sum() * 100.0
    low, median, high = (float(np.searchsorted(share, p)) for p in _PERCENTILES)
    high = max(high, low + 255.0 / MAX_GAIN)
    middle = min(max((median - low) / (high - low), 1e-3), 1.0 - 1e-3)
    gamma = math.log(MEDIAN / WHITE) / math.log(middle)
    return InfraredScale(low, high, min(max(gamma, GAMMA_RANGE[0]), GAMMA_RANGE[1]))
