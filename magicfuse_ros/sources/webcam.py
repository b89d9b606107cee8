"""A camera of this machine, such as a USB webcam, read by OpenCV."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from magicfuse_ros.sources.frame import Frame, SourceError


def webcam_frames(number: int) -> Iterator[Frame]:
    """Read the camera /dev/video`number` for as long as it gives frames.

    It raises `SourceError` if there is no such camera, it cannot be opened, or it gives no more
    frames.
    """
    device = Path(f"/dev/video{number}")
    if not device.exists():
        present = ", ".join(str(each) for each in sorted(Path("/dev").glob("video*")))
        raise SourceError(f"there is no camera {device}; cameras here: {present or 'none'}")
    camera = cv2.VideoCapture(number, cv2.CAP_V4L2)
    try:
        if not camera.isOpened():
            raise SourceError(
                f"camera {device} cannot be opened; check that no other program uses it and that "
                "this user is in the group video"
            )
        start_ns = time.monotonic_ns()
        while True:
            done, bgr = camera.read()
            if not done:
                raise SourceError(f"camera {device} gives no more frames; check its cable")
            time_ns = time.monotonic_ns() - start_ns
            rgb = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
            yield Frame(f"{time_ns // 1_000_000:09d}", time_ns, rgb)
    finally:
        camera.release()
