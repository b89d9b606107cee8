"""A second opinion on sensor_msgs/Image: pixel by pixel, in plain Python, from the definitions.

Slow and without OpenCV or strides on purpose: it shares nothing with the codec that it checks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

RGB_ORDER = {
    "rgb8": (3, "rgb"), "bgr8": (3, "bgr"), "8UC3": (3, "bgr"),
    "rgba8": (4, "rgb"), "bgra8": (4, "bgr"), "8UC4": (4, "bgr"),
}  # fmt: skip
GREY_BYTES = {"mono8": 1, "8UC1": 1, "mono16": 2, "16UC1": 2, "32FC1": 4}
YUV_422 = {"yuv422": "uyvy", "uyvy": "uyvy", "yuv422_yuy2": "yuyv", "yuyv": "yuyv"}
YUV_420 = {"nv12": "uv", "nv21": "vu"}
BAYER = {
    f"bayer_{pattern}{bits}": (pattern, bits // 8)
    for pattern in ("rggb", "bggr", "gbrg", "grbg")
    for bits in (8, 16)
}
ALL = (*RGB_ORDER, *GREY_BYTES, *YUV_422, *YUV_420, *BAYER)


@dataclass
class RawImage:
    """The attributes of sensor_msgs/Image, over any buffer."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: bytes


def row_bytes(encoding: str, width: int) -> int:
    if encoding in RGB_ORDER:
        return width * RGB_ORDER[encoding][0]
    if encoding in GREY_BYTES:
        return width * GREY_BYTES[encoding]
    if encoding in YUV_422:
        return width * 2
    if encoding in YUV_420:
        return width
    return width * BAYER[encoding][1]


def row_count(encoding: str, height: int) -> int:
    return height + height // 2 if encoding in YUV_420 else height


def decode(image: RawImage) -> np.ndarray:
    """(H, W, 3) float64 RGB in 0 to 255, not rounded; NaN where the definition leaves it open."""
    out = np.full((image.height, image.width, 3), np.nan)
    for row in range(image.height):
        for column in range(image.width):
            out[row, column] = _pixel(image, row, column)
    return out


def _pixel(image: RawImage, row: int, column: int) -> tuple[float, float, float]:
    encoding, data = image.encoding, image.data
    start = row * image.step
    if encoding in RGB_ORDER:
        channels, order = RGB_ORDER[encoding]
        at = start + column * channels
        named = dict(zip(order, data[at : at + 3], strict=True))
        return named["r"], named["g"], named["b"]
    if encoding in GREY_BYTES:
        grey = _number(image, start + column * GREY_BYTES[encoding], GREY_BYTES[encoding])
        return grey, grey, grey
    if encoding in YUV_422:
        order = YUV_422[encoding]
        pair = data[start + column // 2 * 4 : start + column // 2 * 4 + 4]
        luma = pair[order.index("y") + 2 * (column % 2)]
        return _bt601(luma, pair[order.index("u")], pair[order.index("v")])
    if encoding in YUV_420:
        chroma = (image.height + row // 2) * image.step + column // 2 * 2
        named = dict(zip(YUV_420[encoding], data[chroma : chroma + 2], strict=True))
        return _bt601(data[start + column], named["u"], named["v"])
    return _bilinear(image, row, column)


def _number(image: RawImage, at: int, size: int) -> float:
    """One number, scaled so that 255 is white."""
    order = ">" if image.is_bigendian else "<"
    kind, white = {1: ("B", 255), 2: ("H", 65535), 4: ("f", 1.0)}[size]
    (value,) = struct.unpack_from(order + kind, image.data, at)
    return min(max(value / white, 0.0), 1.0) * 255.0


def _bt601(y: int, u: int, v: int) -> tuple[float, float, float]:
    """ITU-R BT.601: R, G, B from luma in 16 to 235 and chroma in 16 to 240."""
    luma = max(y - 16, 0) * 255 / 219
    cb, cr = (u - 128) * 255 / 224, (v - 128) * 255 / 224
    rgb = (luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb)
    return tuple(min(max(value, 0.0), 255.0) for value in rgb)


def _bilinear(image: RawImage, row: int, column: int) -> tuple[float, float, float]:
    """Means of the nearest samples of each colour; open at the border, where some are missing."""
    pattern, size = BAYER[image.encoding]

    def color(r: int, c: int) -> str:
        return pattern[r % 2 * 2 + c % 2]

    def sample(r: int, c: int) -> float:
        return _number(image, r * image.step + c * size, size)

    if not (0 < row < image.height - 1 and 0 < column < image.width - 1):
        return np.nan, np.nan, np.nan
    around = [(row + dr, column + dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)]
    rgb = []
    for wanted in "rgb":
        if color(row, column) == wanted:
            rgb.append(sample(row, column))
        else:
            rgb.append(float(np.mean([sample(*at) for at in around if color(*at) == wanted])))
    return tuple(rgb)
