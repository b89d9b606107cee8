"""A bag made of a video, a folder of pictures or a picture."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rclpy.serialization import serialize_message
from rclpy.time import Time
from std_msgs.msg import Header

from magicfuse_ros.bags.image_topics import COMPRESSED_TYPE, IMAGE_TYPE
from magicfuse_ros.bags.reader import Topic
from magicfuse_ros.bags.writer import DEFAULT_STORAGE, BagWriter
from magicfuse_ros.ros.cdr import serialize_image
from magicfuse_ros.ros.images.codec import encode_compressed
from magicfuse_ros.sources.frame import SourceError
from magicfuse_ros.sources.source import Source

JPEG_QUALITY = 95

Transform = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


def _refuse(fault: str) -> None:
    raise SourceError(fault)


def write_bag(
    source: Source,
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
    left_out: Callable[[str], None] = _refuse,
) -> int:
    """Write the frames of `source` as one image topic and return how many there are.

    Parameters
    ----------
    start_ns
        Stamp of the first frame in nanoseconds; the others follow at their own times. Header stamps
        and the bag's own times are the same.
    compressed
        Write JPEG ``CompressedImage`` instead of raw rgb8 ``Image``.
    transform
        Applied to each (H, W, 3) RGB frame with its index.
    stop
        Setting it ends the bag early, properly closed.
    progress
        Called with the number of frames written so far.
    left_out
        Called with a sentence for each frame that cannot be read; without it, the first one is an
        error.

    Raises
    ------
    BagError, SourceError
        The bag cannot be written, or the source not read; nothing is left at `out` then.
    """
    with BagWriter(out, storage) as bag:
        bag.add_topic(Topic(topic, COMPRESSED_TYPE if compressed else IMAGE_TYPE))
        written, fault = 0, ""
        try:
            for frame in source.frames():
                if stop is not None and stop.is_set():
                    return written
                if frame.rgb is None:
                    fault = frame.fault
                    left_out(fault)
                    continue
                picture = frame.rgb if transform is None else transform(frame.rgb, written)
                stamp_ns = start_ns + frame.time_ns
                header = Header(stamp=Time(nanoseconds=stamp_ns).to_msg(), frame_id=frame_id)
                if compressed:
                    data = serialize_message(encode_compressed(picture, header, JPEG_QUALITY))
                else:
                    data = serialize_image(picture, "rgb8", header)
                bag.write(topic, stamp_ns, data)
                written += 1
                progress(written)
            if not written:
                _refuse(f"no frame can be read: {fault}")
        except Exception:
            bag.discard()  # half of a video would pass for all of it, and it can be made again
            raise
    return written
