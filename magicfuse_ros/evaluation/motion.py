"""Pictures of a moving scene: where each pixel came from, flicker and ghosting.

Motion is dense optical flow (OpenCV's DIS) on clean pictures of the scene. A pixel is compared only
where the flow there and back agrees within the bound of Sundaram, Brox and Keutzer, "Dense point
trajectories by GPU-accelerated large displacement optical flow" (ECCV 2010): elsewhere it was
hidden, or the flow is wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.evaluation.metrics import U8, grey, mean

MOVED_PX = 1.0
"""From this much motion between two frames on, in pixels, a pixel counts as moved."""


@dataclass(frozen=True)
class Motion:
    """How one frame (H, W) became the next."""

    source: NDArray[np.float32]  # (H, W, 2): x, y in the earlier frame that a later pixel shows
    visible: NDArray[np.bool_]  # (H, W): the pixel was in the earlier frame, as far as one can tell
    moved: NDArray[np.bool_]  # (H, W): it moved by `MOVED_PX` or more


def motion(earlier: U8, later: U8) -> Motion:
    """Find the motion between two clean (H, W, 3) RGB pictures of one size."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    # OpenCV's types do not know that it makes the flow itself.
    back = dis.calc(grey(later), grey(earlier), None)  # type: ignore[call-overload]
    forth = dis.calc(grey(earlier), grey(later), None)  # type: ignore[call-overload]
    height, width = earlier.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    source = np.stack((x, y), axis=-1) + back
    returned = cv2.remap(forth, source[..., 0], source[..., 1], cv2.INTER_LINEAR)
    lengths = (back**2).sum(axis=-1) + (returned**2).sum(axis=-1)
    visible = ((back + returned) ** 2).sum(axis=-1) < 0.01 * lengths + 0.5
    visible &= ((source >= 0.0) & (source <= (width - 1, height - 1))).all(axis=-1)
    return Motion(source, visible, np.hypot(back[..., 0], back[..., 1]) >= MOVED_PX)


def flicker(pictures: Sequence[U8], motions: Sequence[Motion]) -> float:
    """Mean absolute change along the motion, in grey levels of 255.

    Each picture is compared with the one before it, warped by the scene's motion, where the scene
    was visible in both: the warping error of Lai et al., "Learning blind video temporal
    consistency" (ECCV 2018), as an absolute instead of a squared difference. 0 for a picture that
    moves and does not change; NaN where nothing can be compared. The pictures, (H, W, 3) uint8, are
    in order of time, and the motions are the scene's, from each of them to the next.
    """
    changes = []
    for (earlier, later), moving in zip(itertools.pairwise(pictures), motions, strict=True):
        if moving.visible.any():
            x, y = moving.source[..., 0], moving.source[..., 1]
            warped = cv2.remap(earlier, x, y, cv2.INTER_LINEAR)
            changes.append(float(cv2.absdiff(later, warped)[moving.visible].mean()))
    return mean(changes)


def ghosting(
    shown: Sequence[U8], alone: Sequence[U8], scene: Sequence[U8], motions: Sequence[Motion]
) -> float:
    """Share of the picture before that is still there where the scene moved; NaN if nothing moved.

    With S_t what is shown, A_t what the same frame gives by itself, and C_t the clean scene:

        ghosting = Σ (S_t - A_t)·(C_{t-1} - C_t) / Σ (S_{t-1} - A_t)·(C_{t-1} - C_t)

    over the pixels that moved. It is exactly k where S_t = (1 - k)·A_t + k·S_{t-1}: 0 where frames
    are shown by themselves, 1 where the picture before is shown unchanged. Both differences are
    measured by how they follow the scene's own change, so that noise which is averaged away does
    not count as a ghost (the change is the instrument of an instrumental-variable estimate).

    All pictures are (H, W, 3) uint8, in order of time; the motions go from each to the next.
    """
    left, whole = 0.0, 0.0
    for t, moving in enumerate(motions, 1):
        before, single, result = (
            image[moving.moved].astype(np.float64) for image in (shown[t - 1], alone[t], shown[t])
        )
        change = np.subtract(scene[t - 1][moving.moved], scene[t][moving.moved], dtype=np.float64)
        left += float(((result - single) * change).sum())
        whole += float(((before - single) * change).sum())
    return left / whole if whole else math.nan
