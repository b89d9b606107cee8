"""Frames from a video file or an image folder, and the bag made of them."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rclpy.serialization import serialize_message
from rclpy.time import Time
from std_msgs.msg import Header

from magicfuse_ros.bags.reader import Topic
from magicfuse_ros.bags.writer import DEFAULT_STORAGE, BagWriter
from magicfuse_ros.ros.images.codec import encode_compressed, encode_image

IMAGE_TYPE = "sensor_msgs/msg/Image"
COMPRESSED_TYPE = "sensor_msgs/msg/CompressedImage"
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
FOLDER_FPS = 10.0
JPEG_QUALITY = 95

Transform = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


class SourceError(ValueError):
    """Frames cannot be read; the text names the file and what is accepted."""


@dataclass(frozen=True)
class FrameSource:
    """Frames of a video file or an image folder.

    Parameters
    ----------
    path
        A video, or a folder of images, taken in the natural order of their names (2 before 10).
    fps
        Frames a second to give. None keeps the video's own rate, and takes `FOLDER_FPS` for a
        folder. Another rate keeps a video's speed: frames are left out or repeated.
    size
        (width, height) to scale every frame to, in pixels. None keeps each frame's own.

    Raises
    ------
    SourceError
        Nothing there, or nothing readable in it.
    ValueError
        A rate or size out of range.
    """

    path: Path
    fps: float | None = None
    size: tuple[int, int] | None = None
    rate: float = field(init=False)
    """Frames a second this source gives."""
    count: int = field(init=False)
    """Frames it gives: exact for a folder, the container's word for a video."""
    _own_rate: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.fps is not None and not (math.isfinite(self.fps) and 0 < self.fps <= 1000):
            raise ValueError(f"fps {self.fps}: accepted are numbers above 0, up to 1000")
        if self.size is not None and not all(1 <= side <= 16384 for side in self.size):
            raise ValueError(f"size {self.size}: accepted are 1 to 16384 pixels a side")
        if not self.path.exists():
            raise SourceError(f"{self.path} does not exist")
        own_rate, own_count = (
            self._look_at_folder() if self.path.is_dir() else self._look_at_video()
        )
        rate = self.fps or own_rate
        kept = own_count if self.path.is_dir() else round(own_count * rate / own_rate)
        object.__setattr__(self, "rate", rate)
        object.__setattr__(self, "count", max(kept, 1))
        object.__setattr__(self, "_own_rate", rate if self.path.is_dir() else own_rate)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield (H, W, 3) RGB frames."""
        given = 0
        for index, bgr in enumerate(self._decoded()):
            # Frame `index` is on screen until (index + 1) / own_rate: it answers every request
            # before that. The small term absorbs rounding where both rates are the same.
            while given / self.rate + 1e-9 < (index + 1) / self._own_rate:
                yield self._finish(bgr)
                given += 1

    def _finish(self, bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.size is not None and (bgr.shape[1], bgr.shape[0]) != self.size:
            shrinks = self.size[0] * self.size[1] < bgr.shape[0] * bgr.shape[1]
            kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            bgr = cv2.resize(bgr, self.size, interpolation=kind)  # type: ignore[assignment]
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]

    def _decoded(self) -> Iterator[NDArray[np.uint8]]:
        if self.path.is_dir():
            for file in image_files(self.path):
                image = cv2.imread(str(file), cv2.IMREAD_COLOR)
                if image is None:
                    raise SourceError(f"{file} is not a readable image: remove or replace it")
                yield image  # type: ignore[misc]
            return
        video = cv2.VideoCapture(str(self.path))
        try:
            while True:
                read, image = video.read()
                if not read:
                    return
                yield image  # type: ignore[misc]
        finally:
            video.release()

    def _look_at_folder(self) -> tuple[float, int]:
        files = image_files(self.path)
        if not files:
            accepted = " ".join(sorted(IMAGE_SUFFIXES))
            raise SourceError(f"folder {self.path} holds no images; accepted are {accepted}")
        return FOLDER_FPS, len(files)

    def _look_at_video(self) -> tuple[float, int]:
        video = cv2.VideoCapture(str(self.path))
        try:
            if not video.isOpened() or not video.read()[0]:
                raise SourceError(
                    f"{self.path} is not a readable video: give a video, an image folder or a bag"
                )
            own_rate = video.get(cv2.CAP_PROP_FPS)
            if not math.isfinite(own_rate) or own_rate <= 0:
                raise SourceError(f"{self.path} does not say its frame rate")
            return own_rate, max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 1)
        finally:
            video.release()


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder in the natural order of their names: 2 before 10."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(files, key=lambda file: _natural(file.name))


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def write_bag(
    source: FrameSource,
    out: Path,
    *,
    start_ns: int,
    storage: str = DEFAULT_STORAGE,
    topic: str = "/image",
    frame_id: str = "camera",
    compressed: bool = False,
    transform: Transform | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[int], None] = lambda _count: None,
) -> int:
    """Write the frames of `source` as one image topic and return how many there are.

    Parameters
    ----------
    source, out
        What to read, and the bag to make.
    start_ns
        Stamp of the first frame in nanoseconds; the others follow at the source's rate. Header
        stamps and the bag's own times are the same.
    storage
        ``mcap`` or ``sqlite3``.
    topic, frame_id
        Topic name and the frame_id in every header.
    compressed
        Write JPEG ``CompressedImage`` instead of raw rgb8 ``Image``.
    transform
        Applied to each (H, W, 3) RGB frame with its index.
    stop
        Setting it ends the bag early, properly closed.
    progress
        Called with the number of frames written so far.

    Raises
    ------
    BagError, SourceError
        Nothing is left at `out` then.
    """
    written = 0
    with BagWriter(out, storage) as bag:
        bag.add_topic(Topic(topic, COMPRESSED_TYPE if compressed else IMAGE_TYPE))
        try:
            for index, frame in enumerate(source):
                if stop is not None and stop.is_set():
                    break
                picture = frame if transform is None else transform(frame, index)
                stamp_ns = start_ns + round(index * 1e9 / source.rate)
                header = Header(stamp=Time(nanoseconds=stamp_ns).to_msg(), frame_id=frame_id)
                message = (
                    encode_compressed(picture, header, JPEG_QUALITY)
                    if compressed
                    else encode_image(picture, "rgb8", header)
                )
                bag.write(topic, stamp_ns, serialize_message(message))
                written = index + 1
                progress(written)
        except Exception:
            bag.discard()  # half of a video would pass for all of it, and it can be made again
            raise
    return written
