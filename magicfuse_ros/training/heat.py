"""Boxes around what is hot and compact, for thermal images that nobody annotated."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.training.datasets.frames import Box

HEAT = "heat"
# Grey levels by which a spot must stand out from its neighbourhood, a quarter of the image wide.
_STANDS_OUT = 70
_BRIGHT = 120
# Share of the image, and height over width, of a person standing, walking or cycling.
_AREA = (0.0008, 0.08)
_ASPECT = (1.1, 5.0)


def hot_boxes(infrared: NDArray[np.uint8]) -> tuple[Box, ...]:
    """Find compact upright hot spots, most of them people, in (H, W) uint8 on the common scale.

    They steer crops and loss weights to people; they are too unsure to be labels or to measure by.
    Their kind is `HEAT`.
    """
    height, width = infrared.shape
    around = cv2.blur(infrared, (width // 4 | 1, height // 2 | 1))
    hot = (infrared.astype(np.int16) - around > _STANDS_OUT) & (infrared > _BRIGHT)
    # Head and legs are apart where a coat is cool.
    joined = cv2.morphologyEx(hot.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 3), np.uint8))
    count, _, stats, _ = cv2.connectedComponentsWithStats(joined)
    boxes = []
    for x, y, w, h, area in stats[1:count]:
        if (
            _AREA[0] <= w * h / (width * height) <= _AREA[1]
            and _ASPECT[0] <= h / w <= _ASPECT[1]
            and area >= 0.3 * w * h
        ):
            boxes.append(Box(HEAT, x / width, y / height, (x + w) / width, (y + h) / height))
    return tuple(boxes)
