"""Other light and other cameras: a visible image's tone, colour cast and saturation drawn anew."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from magicfuse_ros.training.degradation import beside, grey_levels, levels

_GAMMA = (0.65, 1.5)
_GAIN = 0.12  # standard deviation of a channel's logarithm
_SATURATION = (0.3, 1.4)


def recolour(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return (B, H, W, 3) float32 in whole levels as other light or another camera had shown them.

    A few hundred streets under a few suns are learnt by their colours. What is dark stays darker
    than what is bright, but not its grey level, its cast or its saturation. Everything random comes
    from `rng`.
    """
    count = len(images)
    gamma = np.exp(rng.uniform(math.log(_GAMMA[0]), math.log(_GAMMA[1]), count))
    gains = np.exp(rng.normal(0.0, _GAIN, (count, 3)))
    saturation = rng.uniform(*_SATURATION, count)
    power, gain, keep = beside(images, gamma, 255.0 * gains, saturation)
    toned = levels((images / 255.0).pow_(power).mul_(gain))
    grey = grey_levels(toned)
    return levels((toned - grey).mul_(keep).add_(grey))
