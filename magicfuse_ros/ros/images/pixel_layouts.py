"""The encodings of sensor_msgs/Image that the codec takes, and how each lies in memory.

Names and meanings are those of `sensor_msgs/image_encodings.hpp`. OpenCV's conversion codes have
names here that exist in all of OpenCV 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import cv2
import numpy as np

from magicfuse_ros.sources.picture_errors import PictureError, check_size


@dataclass(frozen=True, kw_only=True)
class PixelLayout:
    """How the pixels of one encoding lie in `Image.data`.

    Attributes
    ----------
    scalar
        Type of one number: "u1" (0 to 255), "u2" (0 to 65535) or "f4" (0.0 to 1.0). The message
        says their byte order.
    channels
        How many numbers a row has for each pixel of the width.
    to_rgb
        OpenCV code that turns the pixels, once they have 8 bits, into RGB; None if they are RGB.
    multiple_of
        (width, height) of which the picture's must be multiples, so that chroma covers all of it.
    least
        Smallest width and height in pixels.
    chroma_plane
        Whether height / 2 rows of interleaved chroma, of the same `step`, follow the rows of luma.
    """

    scalar: Literal["u1", "u2", "f4"] = "u1"
    channels: int = 1
    to_rgb: int | None
    multiple_of: tuple[int, int] = (1, 1)
    least: int = 1
    chroma_plane: bool = False

    def row_bytes(self, width: int) -> int:
        """Bytes of one row without padding."""
        return width * self.channels * np.dtype(self.scalar).itemsize

    def rows(self, height: int) -> int:
        """Rows of `step` bytes that a picture of this height takes, chroma included."""
        return height * 3 // 2 if self.chroma_plane else height


# ROS names a mosaic by its first two rows, from the left: bayer_rggb starts with R G over G B.
# OpenCV's older names start one row and one column later, so that the same mosaic is its "BG".
_BAYER = {
    "rggb": cv2.COLOR_BayerBG2RGB,
    "bggr": cv2.COLOR_BayerRG2RGB,
    "gbrg": cv2.COLOR_BayerGR2RGB,
    "grbg": cv2.COLOR_BayerGB2RGB,
}

_BGR = PixelLayout(channels=3, to_rgb=cv2.COLOR_BGR2RGB)
_BGRA = PixelLayout(channels=4, to_rgb=cv2.COLOR_BGRA2RGB)
_MONO = PixelLayout(to_rgb=cv2.COLOR_GRAY2RGB)
_MONO16 = PixelLayout(scalar="u2", to_rgb=cv2.COLOR_GRAY2RGB)
_UYVY = PixelLayout(channels=2, to_rgb=cv2.COLOR_YUV2RGB_UYVY, multiple_of=(2, 1))
_YUYV = PixelLayout(channels=2, to_rgb=cv2.COLOR_YUV2RGB_YUY2, multiple_of=(2, 1))

LAYOUTS: Mapping[str, PixelLayout] = MappingProxyType(
    {
        "rgb8": PixelLayout(channels=3, to_rgb=None),
        "bgr8": _BGR,
        "rgba8": PixelLayout(channels=4, to_rgb=cv2.COLOR_RGBA2RGB),
        "bgra8": _BGRA,
        "mono8": _MONO,
        "mono16": _MONO16,
        # The OpenCV type names say nothing of colour; OpenCV's own order is what RViz takes too.
        "8UC1": _MONO,
        "8UC3": _BGR,
        "8UC4": _BGRA,
        "16UC1": _MONO16,
        "32FC1": PixelLayout(scalar="f4", to_rgb=cv2.COLOR_GRAY2RGB),
        "yuv422": _UYVY,
        "uyvy": _UYVY,
        "yuv422_yuy2": _YUYV,
        "yuyv": _YUYV,
        "nv12": PixelLayout(to_rgb=cv2.COLOR_YUV2RGB_NV12, multiple_of=(2, 2), chroma_plane=True),
        "nv21": PixelLayout(to_rgb=cv2.COLOR_YUV2RGB_NV21, multiple_of=(2, 2), chroma_plane=True),
        **{
            f"bayer_{pattern}8": PixelLayout(to_rgb=code, least=3)
            for pattern, code in _BAYER.items()
        },
        **{
            f"bayer_{pattern}16": PixelLayout(scalar="u2", to_rgb=code, least=3)
            for pattern, code in _BAYER.items()
        },
    }
)

ENCODINGS: tuple[str, ...] = tuple(LAYOUTS)
"""Values of `Image.encoding` that are accepted."""


def layout_of(encoding: str, width: int, height: int) -> PixelLayout:
    """Return the layout of an encoding that a picture of this size can have.

    It raises `PictureError`: `unknown_encoding`, `zero_size`, `too_large`, `too_small` or
    `odd_size`.
    """
    layout = LAYOUTS.get(encoding)
    if layout is None:
        raise PictureError(
            "unknown_encoding",
            f"the encoding is {encoding[:60]!r}; accepted: {', '.join(ENCODINGS)}",
        )
    check_size(width, height)
    if min(width, height) < layout.least:
        raise PictureError(
            "too_small",
            f"{encoding} of {width} x {height}; accepted: at least {layout.least} x {layout.least}",
        )
    if width % layout.multiple_of[0] or height % layout.multiple_of[1]:
        raise PictureError(
            "odd_size",
            f"{encoding} of {width} x {height}; accepted: a multiple of "
            f"{layout.multiple_of[0]} x {layout.multiple_of[1]}; change the camera's resolution",
        )
    return layout
