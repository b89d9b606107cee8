"""Pictures at the camera's size, as sharp as the frame, from what the networks made of it."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from magicfuse_ros.model.refiner import split_maps
from magicfuse_ros.runtime.contract import UInt8
from magicfuse_ros.runtime.guided_picture import Coefficients, Floats, exposed, lit, sharpened
from magicfuse_ros.runtime.letterbox import Letterbox, resize

# Immerkær, "Fast noise variance estimation" (1996): edges cancel out in it, noise does not.
_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
NOISE_SCALE = 6.0 * 0.6745  # of the kernel, and of a normal deviate's median

PATCH = 4
"""Pixels of the patches that D decodes, in which Φ's pictures have a grid."""


class CameraPictures:
    """The pictures of one frame, (H, W, 3) uint8 RGB as it came.

    They follow from the frame as the model's input, (1, 3, h, w) in [0, 1], and from `restored`,
    D(z0_ψ) of the same shape.
    """

    def __init__(self, frame: UInt8, image: Tensor, restored: Tensor, letterbox: Letterbox) -> None:
        self._frame, self._letterbox = frame, letterbox
        self._grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
        self._image = self._content(image)
        variance = detail_variance(self._grey, letterbox.content)
        noise = noise_level(self._grey)
        self._picture = sharpened(self._image, self._content(restored), variance, noise)

    def enhanced(self) -> UInt8:
        """Return the restored picture, (H, W, 3) uint8 RGB."""
        return self._of(self._frame, self._picture)

    def magimg(self, maps: Tensor) -> UInt8:
        """Return the picture for people, (H, W, 3) uint8 RGB.

        It is the restored one, exposed for longer where it is dark, with light where R's maps are
        warm.
        """
        heat = self._content(split_maps(maps.float()).heat)[..., 0]
        picture = exposed(self._picture, self._image)
        return self._of(self._frame, lit(picture, heat, self._image))

    def infrared(self, maps: Tensor, decoded: Tensor) -> UInt8:
        """Return the imagined infrared, (H, W) uint8.

        It is the mean of what R and D, (1, 3, h, w), make of z0_φ. R's is nearer to the real one
        in its levels, D's in its shapes; D's grid of patches is averaged away.
        """
        found = split_maps(maps.float())
        own = cv2.blur(self._content(decoded).mean(axis=2), (PATCH, PATCH))
        offset = (self._content(found.infrared_offset)[..., 0] + own) / np.float32(2.0)
        gain = self._content(found.infrared_gain)[..., 0] / np.float32(2.0)
        return self._of(self._grey, Coefficients(gain, offset))

    def _of(self, picture: UInt8, coefficients: Coefficients) -> UInt8:
        gain, offset = (resize(each, self._letterbox.camera, smooth=True) for each in coefficients)
        if picture.ndim == 3:
            gain = cv2.merge([gain, gain, gain])
        scaled = cv2.multiply(picture, gain, dtype=cv2.CV_32F)
        # Rounded and limited to 0 to 255 as it is added.
        return np.asarray(cv2.add(scaled, offset * np.float32(255.0), dtype=cv2.CV_8U), np.uint8)

    def _content(self, planes: Tensor) -> Floats:
        """Return what the frame fills of (1, C, h, w), as (h, w, C).

        It has the size that the frame fills of the model's input, whatever size the planes have.
        """
        height, width = self._letterbox.content
        whole = planes[0].float().permute(1, 2, 0).contiguous().cpu().numpy()
        content = resize(whole, self._letterbox.padded, smooth=True)
        return np.ascontiguousarray(content.reshape(*content.shape[:2], -1)[:height, :width])


def noise_level(grey: UInt8) -> float:
    """Estimate the standard deviation of a (H, W) picture's noise, as a share of white.

    It is read off flat areas: half of a picture may be full of edges. Pictures of less than three
    pixels a side have no noise.
    """
    if min(grey.shape) < 3:
        return 0.0
    edges = np.abs(cv2.filter2D(grey, cv2.CV_32F, _NOISE_KERNEL)[1:-1:3, 1:-1:3])
    return float(np.median(edges)) / NOISE_SCALE / 255.0


def detail_variance(grey: UInt8, size: tuple[int, int]) -> Floats:
    """Return the variance of a (H, W) picture inside each pixel of a smaller one, in white².

    `size` is the (height, width) of that one; where it is the larger one, nothing varies.
    """
    plane = grey.astype(np.float32) / np.float32(255.0)
    mean, square = resize(plane, size, smooth=True), resize(plane * plane, size, smooth=True)
    return np.asarray(np.maximum(square - mean * mean, 0.0), np.float32)
