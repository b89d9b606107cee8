"""A target for restoration of frames that are dark by nature."""

from __future__ import annotations

import cv2
import numpy as np

from magicfuse_ros.training.datasets.frames import Rgb


def brighten_night_target(image: Rgb) -> Rgb:
    """Mild, deterministic enhancement of a night frame, as a target that shows what is there.

    CLAHE on luminance, then a gamma that brings the mean luminance half way to 90 of 255 and
    never darkens.
    """
    ycc = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    luma = cv2.createCLAHE(clipLimit=1.5, tileGridSize=(4, 4)).apply(ycc[..., 0])
    mean = max(float(luma.mean()), 8.0)
    wanted = max(mean, (mean + 90.0) / 2.0)
    gamma = np.log(wanted / 255.0) / np.log(mean / 255.0)
    table = np.rint(255.0 * (np.arange(256) / 255.0) ** gamma).astype(np.uint8)
    ycc[..., 0] = cv2.LUT(luma, table)
    return np.asarray(cv2.cvtColor(ycc, cv2.COLOR_YCrCb2RGB), np.uint8)
