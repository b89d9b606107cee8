"""What cv_bridge makes of camera messages beside the node's own codec: `python
test/measure_cv_bridge.py`, where ROS 2's cv_bridge is installed.

It counts wrong pixels and bytes that are allocated, and measures no time: the figures belong to the
versions in the first line. What is right is what the codec makes of the message without padding and
in the machine's byte order, which test_image_codec.py compares with the encodings' definitions.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from cv_bridge import CvBridge
from measure_codec import HEIGHT, WIDTH, raw_image

from magicfuse_ros.ros.images.codec import decode_image
from magicfuse_ros.ros.images.pixel_layouts import LAYOUTS

ENCODINGS = ("rgb8", "bgr8", "bgra8", "mono8", "mono16", "yuv422", "nv12", "bayer_rggb8", "32FC1")
TOLERANCE = 2
"""Levels by which conversions may differ: YUV and Bayer are rounded in more than one way."""


def outcome(read: Callable[[Any], np.ndarray], message: Any, expected: np.ndarray) -> str:
    try:
        made = read(message)
    except Exception as error:  # noqa: BLE001 - whatever it raises is the finding
        return f"raises {type(error).__name__}"
    if made.shape != expected.shape:
        return f"shape {'×'.join(map(str, made.shape))}"
    wrong = (np.abs(made.astype(int) - expected) > TOLERANCE).any(axis=2).mean()
    return "right" if wrong == 0.0 else f"{wrong:.0%} wrong"


def allocated_kb(read: Callable[[Any], np.ndarray], message: Any) -> str:
    try:
        read(message)
        tracemalloc.start()
        made = read(message)
        peak = tracemalloc.get_traced_memory()[1]
    except Exception:  # noqa: BLE001 - the first column says what it raises
        return "—"
    finally:
        tracemalloc.stop()
    assert made.size
    return f"{peak / 1000:.0f}"


def main() -> None:
    bridge = CvBridge()
    readers = {
        "cv_bridge": lambda message: bridge.imgmsg_to_cv2(message, "rgb8"),
        "this package": decode_image,
    }
    scene = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    print(
        f"{WIDTH} × {HEIGHT}, OpenCV {cv2.__version__}, NumPy {np.__version__}, "
        f"Python {sys.version.split()[0]}\n"
    )
    kinds = ("plain", "rows padded by 1 byte", "by 64 bytes", "the other byte order")
    print(f"| encoding | read by | {' | '.join(kinds)} | allocated (kB) |")
    print(f"|---|---|{'---|' * len(kinds)}--:|")
    for encoding in ENCODINGS:
        plain = raw_image(encoding, scene)
        messages = [plain, *(raw_image(encoding, scene, padding=pad) for pad in (1, 64))]
        expected = decode_image(plain)
        for name, read in readers.items():
            cells = [outcome(read, message, expected) for message in messages]
            if LAYOUTS[encoding].scalar == "u1":
                cells.append("")
            else:
                other = raw_image(encoding, scene, bigendian=sys.byteorder == "little")
                cells.append(outcome(read, other, expected))
            print(f"| `{encoding}` | {name} | {' | '.join(cells)} | {allocated_kb(read, plain)} |")


if __name__ == "__main__":
    main()
