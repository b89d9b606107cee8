"""The mask as runs of equal pixels: how Autoware's perception nodes send masks to each other."""

from __future__ import annotations

import array

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header

_RUN = np.dtype([("value", "u1"), ("length", "<i4")])  # 5 bytes, not aligned


def encode_runs(mask: NDArray[np.uint8], header: Header) -> Image:
    """Build a sensor_msgs/Image of a (H, W) uint8 mask, with its size and encoding (mono8).

    Its data are runs in the order of rows, which may go on across the end of a row: the value as
    one byte, then the length as a 32-bit integer, lowest byte first. Only Autoware can read it as a
    picture.
    """
    height, width = mask.shape
    pixels = mask.reshape(-1)
    ends = np.append(np.flatnonzero(pixels[1:] != pixels[:-1]) + 1, pixels.size)
    runs = np.empty(ends.size if pixels.size else 0, _RUN)
    if pixels.size:
        runs["value"] = pixels[ends - 1]
        runs["length"] = np.diff(ends, prepend=0)
    message = Image(header=header, height=height, width=width, encoding="mono8", step=width)
    data = array.array("B")
    data.frombytes(runs.tobytes())
    message.data = data
    return message
