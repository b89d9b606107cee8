"""Paints a cloud: each point gets what the picture shows at its pixel. Arrays only, no loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.ros.cloud.camera_model import CameraModel
from magicfuse_ros.ros.cloud.cloud_errors import CloudError

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures to paint with; `CloudError` (`picture_size`) unless all have the same size.

    `mask` is (H, W) uint8 class ids, 255 = unknown; `confidence` is (H, W) uint8, 0 to 255; `color`
    is (H, W, 3) uint8 RGB, or None for black.
    """

    mask: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    color: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        color_fits = self.color is None or self.color.shape == (*self.mask.shape, 3)
        if self.confidence.shape != self.mask.shape or not color_fits:
            color = "none" if self.color is None else self.color.shape
            raise CloudError(
                "picture_size",
                f"mask {self.mask.shape}, confidence {self.confidence.shape} and color {color} "
                "differ; accepted: pictures of one size",
            )


@dataclass(frozen=True)
class Occlusion:
    """When a point counts as hidden behind another one.

    The scanner may see points that an object hides from the camera. Such a point must not get the
    class of the object in front of it.

    Attributes
    ----------
    gap
        Neighbouring points of one surface are at most this many pixels apart; a wider gap is a hole
        that the camera sees through.
    tolerance
        A point is hidden if it is this much further away than the surface before it, as a fraction
        of its own distance.
    """

    gap: int
    tolerance: float


@dataclass(frozen=True, eq=False)
class Painted:
    """One entry for each point; a point that the camera does not see has 255, 0.0 and black.

    `class_id` is (N,) uint8, `confidence` (N,) float32 from 0 to 1, and `rgb` (N,) uint32:
    0x00RRGGBB. `seen` is (N,) bool: whether the point is inside the picture and not hidden. Its
    class may still be unknown.
    """

    class_id: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    rgb: NDArray[np.uint32]
    seen: NDArray[np.bool_]


@np.errstate(over="ignore")
def paint(
    points: Floats, camera: CameraModel, pictures: Pictures, occlusion: Occlusion | None = None
) -> Painted:
    """Paint points with pictures of the camera's size; another size raises `ValueError`.

    Parameters
    ----------
    points
        (3, N) in metres, in the camera's optical frame; not finite where there is no point.
    occlusion
        Which points are hidden; with None, every point inside the picture is painted.
    """
    height, width = pictures.mask.shape
    if (width, height) != camera.size:
        raise ValueError(f"pictures of {width} x {height}; accepted: the camera's {camera.size}")
    count = points.shape[1]
    indices, pixels = camera.project(points)
    if occlusion is not None:
        distances = np.linalg.norm(points[:, indices], axis=0)
        front = in_front(pixels, distances, camera.size, occlusion)
        indices, pixels = indices[front], pixels[front]
    class_id = np.full(count, UNKNOWN, np.uint8)
    class_id[indices] = pictures.mask.ravel()[pixels]
    confidence = np.zeros(count, np.float32)
    confidence[indices] = pictures.confidence.ravel()[pixels] * np.float32(1.0 / 255.0)
    rgb = np.zeros(count, np.uint32)
    if pictures.color is not None:
        red, green, blue = pictures.color.reshape(-1, 3)[pixels].astype(np.uint32).T
        rgb[indices] = red << 16 | green << 8 | blue
    seen = np.zeros(count, np.bool_)
    seen[indices] = True
    return Painted(class_id, confidence, rgb, seen)


@np.errstate(over="ignore", divide="ignore", under="ignore")
def in_front(
    pixels: NDArray[np.intp], distances: Floats, size: tuple[int, int], occlusion: Occlusion
) -> NDArray[np.bool_]:
    """Return which points no surface hides: (M,) bool. The nearest point of all is always in front.

    The points' nearness (1 / distance) makes a sparse picture. A morphological closing of it fills
    the gaps between points of near surfaces and leaves their outlines where they are, so that
    points seen just beside an object are kept. It does not change a road that recedes either.

    Parameters
    ----------
    pixels
        (M,) row x width + column.
    distances
        (M,) from the camera, in metres, above 0.
    size
        (width, height) of the picture.
    """
    width, height = size
    nearness = (1.0 / distances).astype(np.float32)
    picture = np.zeros(width * height, np.float32)
    np.maximum.at(picture, pixels, nearness)
    side = 2 * ((occlusion.gap + 1) // 2) + 1  # odd: an even one would shift the picture
    square = np.ones((side, side), np.uint8)
    surfaces = cv2.morphologyEx(picture.reshape(height, width), cv2.MORPH_CLOSE, square)
    hidden = nearness < surfaces.ravel()[pixels] * np.float32(1.0 - occlusion.tolerance)
    front: NDArray[np.bool_] = ~hidden
    return front
