"""Between a camera's frame and the model's input: resize, pad, crop back, uint8 and float.

Pure functions of arrays. The frame is scaled to fit the model's resolution with its aspect kept,
then padded at its right and bottom edges by reflection up to a multiple the networks accept;
outputs are cropped and scaled back to the camera's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from magicfuse_ros.runtime.contract import UInt8


@dataclass(frozen=True)
class Letterbox:
    """How a camera's frame lies in the model's input; every size is (height, width) in pixels."""

    camera: tuple[int, int]  # size of the frame as it came
    # Size of the frame when it is scaled; it is the top-left part of the input.
    content: tuple[int, int]
    padded: tuple[int, int]  # size of the model's input

    @classmethod
    def fitting(
        cls, camera: tuple[int, int], resolution: tuple[int, int], multiple: int
    ) -> Letterbox:
        """Fit a frame of `camera` (height, width) pixels into a `resolution` (width, height).

        A portrait frame uses the resolution turned on its side, so it keeps as many pixels as a
        landscape one. Small frames are scaled up. A side that scaling makes shorter than one pixel
        becomes one pixel. The input's sides are multiples of `multiple`.

        Raises
        ------
        ValueError
            A side is smaller than 1.
        """
        height, width = camera
        if height < 1 or width < 1:
            raise ValueError(f"frame size is {width}x{height}; accepted: at least 1x1")
        if (height > width) != (resolution[1] > resolution[0]) and height != width:
            resolution = (resolution[1], resolution[0])
        scale = min(resolution[0] / width, resolution[1] / height)
        content = (
            min(resolution[1], max(1, round(height * scale))),
            min(resolution[0], max(1, round(width * scale))),
        )
        return cls(camera, content, (_ceil(content[0], multiple), _ceil(content[1], multiple)))

    def inside(self, padded: tuple[int, int]) -> Letterbox:
        """Return how the same frame lies in an input of another size, scaled down if it has to be.

        `padded` is the (height, width) of that input; what the frame does not fill is padding.
        """
        scale = min(1.0, padded[0] / self.content[0], padded[1] / self.content[1])
        height, width = (max(1, round(side * scale)) for side in self.content)
        return Letterbox(self.camera, (height, width), padded)


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def resize(image: NDArray[Any], size: tuple[int, int], *, smooth: bool = False) -> NDArray[Any]:
    """Resize (H, W) or (H, W, C) to `size` (height, width).

    Shrinking averages areas, so nothing aliases. Enlarging is bicubic, or bilinear with `smooth`,
    which never overshoots (for probabilities). The same size gives the array itself, not a copy.
    """
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    shrinks = size[0] < height or size[1] < width
    enlarge = cv2.INTER_LINEAR if smooth else cv2.INTER_CUBIC
    kind = cv2.INTER_AREA if shrinks else enlarge
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=kind))


def to_input(frame: UInt8, letterbox: Letterbox) -> UInt8:
    """Scale and pad a (H, W, 3) uint8 frame to `letterbox.padded` size, contiguous and writable."""
    content = resize(frame, letterbox.content)
    bottom = letterbox.padded[0] - letterbox.content[0]
    right = letterbox.padded[1] - letterbox.content[1]
    if bottom or right:
        content = cv2.copyMakeBorder(content, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    return np.require(content, requirements=("C", "W"))


def to_camera(image: UInt8, letterbox: Letterbox) -> UInt8:
    """Crop a picture of `letterbox.padded` size and scale it to the camera's size."""
    height, width = letterbox.content
    return np.ascontiguousarray(resize(image[:height, :width], letterbox.camera))


def quantise(values: torch.Tensor) -> torch.Tensor:
    """Turn floats in [0, 1] into uint8 of the same shape, rounded; values outside are clamped."""
    return values.float().mul(255.0).add_(0.5).clamp_(0.0, 255.0).to(torch.uint8)


def to_picture(image: torch.Tensor) -> UInt8:
    """Turn (1, C, H, W) float in [0, 1] into (H, W, C) uint8, or (H, W) where C is 1."""
    array: UInt8 = quantise(image)[0].permute(1, 2, 0).contiguous().cpu().numpy()
    return array[:, :, 0] if array.shape[2] == 1 else array


def classify(probabilities: UInt8, letterbox: Letterbox) -> tuple[UInt8, UInt8]:
    """Turn class probabilities into a mask and its confidence at the camera's size.

    Interpolating probabilities, and taking the largest afterwards, gives smooth class borders,
    where enlarging the mask itself gives steps. Only the classes that win somewhere before are
    enlarged: that keeps the cost at a few planes, and keeps a third class from appearing between
    two others.

    Parameters
    ----------
    probabilities
        (N, h, w) uint8 for the whole of `letterbox.padded`, 255 = certain; N is at most 255.

    Returns
    -------
    mask, confidence
        (H, W) uint8 each: the winning class's id, and its probability times 255.
    """
    largest = probabilities.max(axis=0)
    winners = [label for label, plane in enumerate(probabilities) if (plane == largest).any()]
    confidence = _enlarge(probabilities[winners[0]], letterbox).copy()
    mask = np.full(letterbox.camera, winners[0], np.uint8)
    ahead = np.empty(letterbox.camera, np.uint8)
    for winner in winners[1:]:
        plane = _enlarge(probabilities[winner], letterbox)
        cv2.compare(plane, confidence, cv2.CMP_GT, dst=ahead)  # 255 where this class is ahead
        np.maximum(confidence, plane, out=confidence)
        # Whole-array bit operations put `winner` there many times faster than indexing does.
        np.bitwise_and(mask ^ np.uint8(winner), ahead, out=ahead)
        mask ^= ahead
    return mask, confidence


def _enlarge(plane: UInt8, letterbox: Letterbox) -> UInt8:
    height, width = letterbox.content
    content = resize(plane, letterbox.padded, smooth=True)[:height, :width]
    return resize(np.ascontiguousarray(content), letterbox.camera, smooth=True)
