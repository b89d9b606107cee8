"""Other light and other cameras: a visible image's tone, colour cast and saturation drawn anew."""

from __future__ import annotations

import cv2
import numpy as np

from magicfuse_ros.training.datasets.frames import U8, Rgb

_GAMMA = (0.65, 1.5)
_GAIN = 0.12  # standard deviation of a channel's logarithm
_SATURATION = (0.3, 1.4)


def recolour(image: Rgb, rng: np.random.Generator) -> Rgb:
    """Return (H, W, 3) uint8 as other light or another camera might have shown it.

    A few hundred streets under a few suns are learnt by their colours. What is dark stays darker
    than what is bright, but not its grey level, its cast or its saturation. Everything random comes
    from `rng`.
    """
    gamma = float(np.exp(rng.uniform(*np.log(_GAMMA))))
    gains = np.exp(rng.normal(0.0, _GAIN, 3))
    saturation = float(rng.uniform(*_SATURATION))
    level = (np.arange(256) / 255.0) ** gamma
    table = np.rint(np.clip(level[:, None] * gains, 0.0, 1.0) * 255.0).astype(np.uint8)
    toned = np.asarray(cv2.LUT(image, table[None]), np.uint8)
    grey: U8 = np.asarray(cv2.cvtColor(toned, cv2.COLOR_RGB2GRAY), np.uint8)
    grey = np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(cv2.addWeighted(toned, saturation, grey, 1.0 - saturation, 0.0), np.uint8)
