"""Harsh conditions for a whole clip: the same light and weather, but new noise in every frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.training.degradation_mixes import Degradation, Recipe
from magicfuse_ros.training.degradation_mixes import degrade as degrade_image

DEFAULT_STRENGTH = 0.7


class ClipNoise(np.random.Generator):
    """Draws the same scene for every frame of a clip, but other noise for each.

    `training.degradation` draws parameters (exposure, colour cast, thickness ...) as real numbers,
    and its noise as normal fields, or as a window at an integer offset into a pool of them.
    Parameters that changed from frame to frame would make the clip flicker, and noise that did not
    change would look like a fixed pattern.
    """

    def __init__(self, seed: int, index: int) -> None:
        super().__init__(np.random.PCG64(seed))
        own = np.random.default_rng((seed, index))
        self.integers = own.integers  # type: ignore[method-assign]
        self.standard_normal = own.standard_normal  # type: ignore[method-assign]


def degradation(
    description: str, seed: int = 0
) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]:
    """Return a function of (frame, index) that makes (H, W, 3) RGB frames worse, deterministically.

    `description` names some of `training.degradation.EFFECTS`, with ``-`` or ``_``, with or without
    a strength in [0, 1], joined by commas: ``low-light``, ``low-light:0.6,noise:0.3``. Another seed
    is another scene: other exposure, colour cast, noise.

    Raises ValueError if a name or strength is not known; the message says which are accepted.
    """
    steps = [_step(part) for part in description.split(",")]

    def degrade(frame: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        generator = ClipNoise(seed, index)
        for step in steps:
            frame = degrade_image(frame, generator, Recipe(step.effect, (step,)))
        return frame

    return degrade


def _step(text: str) -> Degradation:
    name, colon, strength = text.strip().partition(":")
    try:
        value = float(strength) if colon else DEFAULT_STRENGTH
    except ValueError:
        raise ValueError(f"degradation {text!r}: the strength is a number from 0 to 1") from None
    return Degradation(name.replace("-", "_"), value)
